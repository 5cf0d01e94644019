//! The queue against a unit that obeys, refuses, dawdles or dies.

mod devices;
mod errors;
#[cfg(loom)]
mod interleavings;
mod order;
mod pressure;
mod ring;
mod slots;

use core::num::NonZeroU8;
use std::{string::ToString, vec, vec::Vec};

use mm::PhysAddr;

use super::*;
use crate::{
    Iova, SourceId,
    vtd::{
        mode::{TableStage, TranslationMode},
        spec::{DeviceTlbScope, DomainId, FunctionMask, Granularity},
        testing::{Executed, FakePlatform, FakeUnit},
        unit::{BringUp, Location, Unit},
    },
};

const CAP: u64 = 0x00d2_008c_222f_0606;
/// As QEMU's, with device TLBs.
const ECAP: u64 = 0x00f0_0f4e;
const COHERENT: u64 = 1;

const FSTS: usize = 0x34;
const ERRORS: u32 = 0x70;

const DOMAIN: DomainId = DomainId::new(9);

/// A unit that is up, its log empty.
fn unit(platform: &FakePlatform) -> Unit<FakePlatform> {
    unit_with_queue(platform, 0)
}

/// The same, with 2^`queue_order` pages of queue.
fn unit_with_queue(platform: &FakePlatform, queue_order: u8) -> Unit<FakePlatform> {
    let location = Location { base: PhysAddr::new(0xfed9_0000), segment: 0, host_address_bits: 46 };
    let mut unit = Unit::discover(platform, 0, location).unwrap();
    let root = PhysAddr::new(0x1000);
    let how = BringUp { root, mode: TranslationMode::Legacy, queue: true, queue_order, interrupts: None };
    // SAFETY: no device exists.
    unsafe { unit.bring_up(platform, &how) }.unwrap();
    platform.unit.take_log();
    unit
}

fn domain() -> Invalidation {
    Invalidation::Iotlb(IotlbScope::Domain(DOMAIN))
}

fn pages(first: u64) -> Invalidation {
    Invalidation::Iotlb(IotlbScope::Pages {
        domain: DOMAIN,
        first: Iova::new(first << 12),
        order: 0,
        leaf_only: true,
    })
}

fn context() -> Invalidation {
    let source = SourceId { segment: 0, requester: 0x0308 };
    Invalidation::Context(ContextScope::Device { domain: DOMAIN, source, mask: FunctionMask::Exact })
}

fn device(requester: u16) -> Invalidation {
    Invalidation::DeviceTlb {
        source: SourceId { segment: 0, requester },
        physical_function: 0,
        queue_depth: NonZeroU8::MIN,
        scope: DeviceTlbScope::Pages { first: Iova::new(0x1000), order: 0 },
    }
}

fn timed_out(requester: u16) -> Result<(), InvalidationError> {
    Err(InvalidationError::DeviceTimeout { source: SourceId { segment: 0, requester }, others: false })
}

fn stuck() -> InvalidationError {
    InvalidationError::Stuck(Stuck { unit: 0 })
}

/// Something that a unit does, or that is done to it.
type UnitEvent = fn(&FakeUnit);

/// Has the unit do something at each of these times, while somebody waits.
fn meanwhile<const N: usize>(platform: &FakePlatform, events: [(u64, UnitEvent); N]) {
    let (unit, clock) = (platform.unit.clone(), platform.clock_ns.clone());
    let mut events = events.into_iter().peekable();
    *platform.on_relax.lock().unwrap() = Some(std::boxed::Box::new(move || {
        while let Some((_, event)) = events.next_if(|&(at_ns, _)| at_ns <= clock.load(Ordering::Relaxed)) {
            event(&unit);
        }
    }));
}

/// A word for each descriptor.
fn words(descriptors: &[Descriptor]) -> Vec<&'static str> {
    let word = |descriptor: &Descriptor| match descriptor {
        Descriptor::Context { .. } => "context",
        Descriptor::Iotlb { granularity: Granularity::Global, .. } => "all",
        Descriptor::Iotlb { .. } => "iotlb",
        Descriptor::DeviceTlb { .. } => "device",
        Descriptor::InterruptEntries { .. } => "interrupts",
        Descriptor::PasidCache { .. } => "pasids",
        Descriptor::PasidIotlb { .. } => "of pasid 0",
        Descriptor::Wait(wait) if wait.fence => "fence",
        Descriptor::Wait(_) => "wait",
    };
    descriptors.iter().map(word).collect()
}

fn doorbells(log: &[Executed]) -> Vec<usize> {
    let doorbell = |event: &Executed| match event {
        Executed::Doorbell(tail) => Some(*tail),
        _ => None,
    };
    log.iter().filter_map(doorbell).collect()
}

#[test]
fn errors_read_well() {
    let source = SourceId { segment: 0, requester: 0x0310 };
    let timeout = InvalidationError::DeviceTimeout { source, others: true };
    assert_eq!(timeout.to_string(), "device 0000:03:02.0 and others did not invalidate its TLB");
    let unexpected = QueueReport::UnexpectedCompletion { source };
    assert_eq!(unexpected.to_string(), "device 0000:03:02.0 completed an invalidation that nobody asked for");
}
