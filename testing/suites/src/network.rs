//! Network interfaces: files fetched from the host, pages served to it, and neighbours that go for what a driver has
//! mapped.
//!
//! The host's side is `xtask`'s: a server with files whose contents it knows, and a client of the guest's own server.

use alloc::{format, sync::Arc, vec::Vec};

use harness::{Context, Failure, check, check_eq, test};
use iommu::Iova;
use net::{FetchError, Fetched, Interface, Ipv4Address, Sink, http::Url};
use sha2::{Digest, Sha256};

use crate::{
    disk::Hex,
    machine::{Machine, lacks},
    mapping::await_live_mappings,
    reports,
};

/// How long an interface may take to get its address.
const ADDRESS_DEADLINE_NS: u64 = 30_000_000_000;

/// Longer than a fetch waits for a silent server.
const FETCH_DEADLINE_NS: u64 = 30_000_000_000;

/// The host, as QEMU's user networking shows it.
const HOST: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);

/// Every interface, once it has an address.
pub fn interfaces(machine: &Machine) -> Result<Vec<Arc<Interface>>, Failure> {
    let all: Vec<_> = (0..).map_while(|number| machine.interface(number)).collect();
    check!(!all.is_empty(), "no interface could be opened");
    for interface in &all {
        let deadline_ns = machine.host.now_ns().saturating_add(ADDRESS_DEADLINE_NS);
        while interface.status().address.is_none() {
            check!(machine.host.now_ns() < deadline_ns, "{:?} has no address", interface.dma());
            machine.host.relax();
        }
    }
    Ok(all)
}

struct Hashing(Sha256);

impl Sink for Hashing {
    fn take(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn url(machine: &Machine, path: &str) -> Result<Url, Failure> {
    let port = machine.net_port.ok_or_else(|| Failure::new("the host serves no files"))?;
    Ok(format!("http://{HOST}:{port}{path}").parse()?)
}

/// Fetches a file of the host's, for as long as it gets on.
pub fn fetch<S: Sink>(
    machine: &Machine,
    interface: &Interface,
    path: &str,
    sink: S,
) -> Result<Result<Fetched<S>, FetchError>, Failure> {
    let job = interface.fetch(url(machine, path)?, sink)?;
    let mut progress = 0;
    loop {
        let deadline_ns = machine.host.now_ns().saturating_add(FETCH_DEADLINE_NS);
        if let Ok(result) = job.wait(deadline_ns) {
            return Ok(result);
        }
        check!(job.progress() > progress, "the fetch stands still at {progress} bytes");
        progress = job.progress();
    }
}

/// Fetches `bytes` bytes and tells the host what came.
fn fetch_and_report(context: &Context<'_>, interface: &Interface, bytes: u64) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let fetched = fetch(machine, interface, &format!("/data/{bytes}"), Hashing(Sha256::new()))??;
    check_eq!(fetched.bytes, bytes);
    context.value("fetched", format_args!("{bytes} {}", Hex(fetched.sink.0.finalize().to_vec())));
    Ok(())
}

test! {
    /// A file, by each interface: the host knows what should have come.
    deadline_ms = 300_000,
    lacks = lacks::net_host,
    fn a_file_comes_as_the_host_has_it(context) {
        let machine = Machine::of(context)?;
        for interface in interfaces(machine)? {
            let live = machine.iommu.live_mappings();
            fetch_and_report(context, &interface, machine.fetch_mib << 20)?;
            await_live_mappings(machine, live)?;
            check_eq!(interface.status().counters.doubtful, 0);
            check_eq!(interface.status().counters.damaged, 0);
        }
    }
}

test! {
    /// Errors of the other side reach the caller.
    deadline_ms = 120_000,
    lacks = lacks::net_host,
    fn what_does_not_come_is_an_error(context) {
        let machine = Machine::of(context)?;
        for interface in interfaces(machine)? {
            let error = |path| {
                let result = fetch(machine, &interface, path, Hashing(Sha256::new()))?;
                Ok::<_, Failure>(result.map(|fetched| fetched.bytes))
            };
            check_eq!(error("/nothing")?, Err(FetchError::Status(404)));
            check_eq!(error("/short")?, Err(FetchError::Short { bytes: 1000, promised: 2000 }));
            check_eq!(error("/nonsense")?, Err(FetchError::NotHttp));
            check_eq!(error("/data/1")?, Ok(1));
        }
    }
}

test! {
    /// The router answers, by each interface.
    deadline_ms = 60_000,
    lacks = lacks::net,
    fn the_router_is_there(context) {
        let machine = Machine::of(context)?;
        for interface in interfaces(machine)? {
            let deadline_ns = machine.host.now_ns().saturating_add(FETCH_DEADLINE_NS);
            interface.ping(HOST)?.wait(deadline_ns)??;
        }
    }
}

test! {
    /// A reset in the middle of a file costs time and nothing else: what is lost is sent again.
    deadline_ms = 300_000,
    lacks = lacks::net_host,
    fn a_reset_in_mid_transfer_loses_nothing(context) {
        const BYTES: u64 = 4 << 20;
        let machine = Machine::of(context)?;
        for interface in interfaces(machine)? {
            let resets = interface.status().counters.resets;
            let job = interface.fetch(url(machine, &format!("/data/{BYTES}"))?, Hashing(Sha256::new()))?;
            let deadline_ns = machine.host.now_ns().saturating_add(FETCH_DEADLINE_NS);
            while job.progress() == 0 && machine.host.now_ns() < deadline_ns {
                machine.host.relax();
            }
            interface.reset_device();
            let fetched = loop {
                let progress = job.progress();
                let deadline_ns = machine.host.now_ns().saturating_add(FETCH_DEADLINE_NS);
                match job.wait(deadline_ns) {
                    Ok(result) => break result?,
                    Err(_) => check!(job.progress() > progress, "the fetch stands still at {progress} bytes"),
                }
            };
            check_eq!(fetched.bytes, BYTES);
            context.value("fetched", format_args!("{BYTES} {}", Hex(fetched.sink.0.finalize().to_vec())));
            check_eq!(interface.status().counters.resets, resets + 1);
        }
    }
}

test! {
    /// While files come, another device goes for each page that the interface's driver has mapped, rings and buffers:
    /// all of it is blocked, and what comes is as it should be.
    deadline_ms = 300_000,
    lacks = lacks::isolated_nvme_and_net_host,
    fn what_its_driver_has_mapped_is_out_of_reach_for_others(context) {
        /// Pages tried of each interface.
        const MOST_PAGES: usize = 256;
        const BYTES: u64 = 1 << 20;
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let mapped = |function| reports::group(&machine.iommu, function).unwrap_or_default().mappings;
        let covers = |mappings: &[iommu::dump::MappingReport], page: u64| {
            mappings.iter().any(|run| (run.iova.as_u64()..run.iova.as_u64() + run.bytes).contains(&page))
        };
        for interface in interfaces(machine)? {
            let own = mapped(nvme.dma().function());
            let runs = mapped(interface.dma().function());
            let pages = runs.iter().flat_map(|run| {
                (0..run.bytes / 4096).map(|page| run.iova.as_u64() + page * 4096)
            });
            // The same address may be the attacker's own, in its own domain.
            let targets: Vec<u64> = pages.filter(|&page| !covers(&own, page)).take(MOST_PAGES).collect();
            check!(targets.len() > 16, "only {} pages of the interface's to go for", targets.len());
            let job = interface.fetch(url(machine, &format!("/data/{BYTES}"))?, Hashing(Sha256::new()))?;
            for page in targets {
                let before = nvme.dma().fault_count();
                nvme.write_at(Iova::new(page))?;
                check!(nvme.dma().fault_count() > before, "a write to {page:#x} was not blocked");
            }
            let deadline_ns = machine.host.now_ns().saturating_add(4 * FETCH_DEADLINE_NS);
            let fetched = job.wait(deadline_ns)??;
            context.value("fetched", format_args!("{BYTES} {}", Hex(fetched.sink.0.finalize().to_vec())));
        }
    }
}

test! {
    /// The host fetches the status page, as often as was agreed, by each interface.
    deadline_ms = 600_000,
    lacks = lacks::visitors,
    fn the_status_page_is_served(context) {
        let machine = Machine::of(context)?;
        let all = interfaces(machine)?;
        // Told after the addresses are there: visitors may come now.
        context.value("serving", format_args!("{}", all.len()));
        for interface in all {
            let mut served = 0;
            let mut since_ns = machine.host.now_ns();
            while served < machine.visitors {
                machine.host.relax();
                let now = interface.status().served;
                if now > served {
                    (served, since_ns) = (now, machine.host.now_ns());
                }
                let silence_ns = machine.host.now_ns() - since_ns;
                check!(silence_ns < 2 * FETCH_DEADLINE_NS, "{served} of {} visitors came", machine.visitors);
            }
        }
    }
}

test! {
    /// Each interface loses its driver to quarantine and gets another, which the router answers.
    deadline_ms = 120_000,
    lacks = lacks::isolated_net,
    fn an_interface_comes_back_from_quarantine(context) {
        let machine = Machine::of(context)?;
        for interface in interfaces(machine)? {
            let function = interface.dma().function();
            drop(interface);
            machine.iommu.quarantine(function)?;
            check!(machine.restart(function)?, "it has no driver");
        }
        for interface in interfaces(machine)? {
            let deadline_ns = machine.host.now_ns().saturating_add(FETCH_DEADLINE_NS);
            interface.ping(HOST)?.wait(deadline_ns)??;
        }
    }
}
