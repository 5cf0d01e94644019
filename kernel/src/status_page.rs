//! The page that the kernel's web server shows: the IOMMU as it is now.

use alloc::{string::String, vec::Vec};
use core::fmt::Write;

use iommu::{
    Iommu,
    dump::{DomainReport, GroupReport, GroupStanding, UnitReport, Visitor},
    fault::Fault,
};

use crate::{arch::clock, memory};

/// Faults that are shown: the last ones.
const FAULTS_SHOWN: usize = 32;

/// The page at `path`; `None` if there is none.
pub fn page(iommu: &Iommu, path: &str) -> Option<String> {
    (path == "/").then(|| {
        let mut page = Page::default();
        iommu.visit(&mut page);
        page.finish(iommu)
    })
}

#[derive(Default)]
struct Page {
    units: String,
    groups: String,
    /// The group that was shown last has no domain yet.
    is_open: bool,
    faults: Vec<String>,
    fault_count: usize,
    lost: u64,
}

impl Page {
    fn close_group(&mut self) {
        if core::mem::take(&mut self.is_open) {
            self.groups.push_str("  blocked\n");
        }
    }

    fn finish(mut self, iommu: &Iommu) -> String {
        self.close_group();
        let mut text = String::from("Sluice: the IOMMU\n\n");
        let frames = memory::frames::statistics();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "up              {} s\nmemory          {} of {} frames free\nlive mappings   {}\n\n",
            clock::now_ns() / clock::NS_PER_S,
            frames.free,
            frames.total,
            iommu.live_mappings(),
        );
        if self.units.is_empty() {
            self.units.push_str("no remapping unit is in use\n");
        }
        let _ = write!(
            text,
            "{}\n{}\nfaults: {}, lost: {}\n",
            self.units, self.groups, self.fault_count, self.lost
        );
        let hidden = self.faults.len().saturating_sub(FAULTS_SHOWN);
        self.faults.iter().skip(hidden).for_each(|fault| {
            let _ = writeln!(text, "  {fault}");
        });
        text
    }
}

impl Visitor for Page {
    fn unit(&mut self, unit: &UnitReport) {
        let on = |on: bool| if on { "on" } else { "off" };
        let _ = writeln!(
            self.units,
            "unit {} at {}: translation {}, queue {}, interrupt remapping {}, {} domain ids in use{}",
            unit.unit,
            unit.base,
            on(unit.translates()),
            on(unit.queues_invalidations()),
            on(unit.remaps_interrupts()),
            unit.domains,
            if unit.alive { "" } else { ", DOES NOT ANSWER" },
        );
    }

    fn group(&mut self, group: &GroupReport<'_>) {
        self.close_group();
        let _ = write!(self.groups, "group {}: faults {},", group.group, group.faults);
        for function in group.functions {
            let _ = write!(self.groups, " {function}");
        }
        if matches!(group.standing, GroupStanding::Quarantined { .. }) {
            self.groups.push_str(" (quarantine)");
        }
        self.groups.push('\n');
        self.is_open = true;
    }

    fn domain(&mut self, domain: &DomainReport) {
        let DomainReport { number, levels, mapped_pages, .. } = domain;
        let _ = writeln!(self.groups, "  domain {number}, {levels} levels, {mapped_pages} pages mapped");
        self.is_open = false;
    }

    fn fault(&mut self, fault: &Fault) {
        self.fault_count += 1;
        self.faults.push(alloc::format!("{fault}"));
    }

    fn lost_faults(&mut self, count: u64) {
        self.lost = count;
    }
}
