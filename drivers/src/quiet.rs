//! Making a function quiet before its memory is used for something else.

use alloc::sync::Arc;
use core::fmt;

use iommu::{DmaDevice, PciAddress};

use crate::{
    e1000e::{self, E1000eError},
    edu::{self, EduError},
    host::Host,
    pci::{
        Config, Device, Function, ResetError, reset_bus, reset_by_power, reset_function, virtual_functions,
    },
    virtio::{self, TransportError},
};

/// Why a function may still touch memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotQuiet {
    /// It could not be reset.
    Reset(ResetError),
    /// It is an `edu`, and does not come to rest.
    Edu(EduError),
    /// It is a virtio device, and was not reset.
    Virtio(TransportError),
    /// It is an Intel 82574, and was not reset.
    E1000e(E1000eError),
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(error) => error.fmt(f),
            Self::Edu(error) => error.fmt(f),
            Self::Virtio(error) => error.fmt(f),
            Self::E1000e(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for NotQuiet {}

impl From<ResetError> for NotQuiet {
    fn from(error: ResetError) -> Self {
        Self::Reset(error)
    }
}

/// A function to be made quiet, and what is around it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The function, as it was found: what it says of itself now is not asked.
    pub function: &'a Function,
    /// The bridge right above it; `None` on a root bus.
    pub bridge: Option<PciAddress>,
    /// The functions of its isolation group, itself included: a reset may take these with it, and no others.
    pub group: &'a [PciAddress],
}

/// Makes a function quiet, whoever used it: when this returns `Ok`, nothing that it had begun touches memory any more.
///
/// By the first of these that works: a function-level reset, a reset by power management, a way of its own (a virtio
/// device's or a network controller's reset, the end of an `edu`'s transfer), a reset of the bus that it is on. A
/// bridge begins nothing itself.
///
/// # Errors
/// Why the first of them that it has did not work. It is left without bus mastering, unless it has virtual functions
/// outside of its group, which a reset would end: they have to be turned off first ([`ResetError::Shared`]).
pub fn quieten(host: &Arc<dyn Host>, target: Target<'_>) -> Result<(), NotQuiet> {
    let device = Device::open(host.clone(), target.function).ok_or(ResetError::Absent)?;
    if device.is_bridge() {
        return Ok(());
    }
    let mut ended = target.group.iter().flat_map(|&member| virtual_functions(&**host, member));
    if let Some(with) = ended.find(|function| !target.group.contains(function)) {
        return Err(ResetError::Shared { with }.into());
    }
    let mut reason = NotQuiet::Reset(ResetError::NoMethod);
    for way in [by_function_level, by_power, by_its_own, by_bus] {
        match way(host, &device, target) {
            Ok(()) => return Ok(()),
            Err(NotQuiet::Reset(ResetError::NoMethod)) => {}
            Err(error) if reason == NotQuiet::Reset(ResetError::NoMethod) => reason = error,
            Err(_) => {}
        }
    }
    Err(reason)
}

/// Whether `function`, of the isolation group `group` and one of `functions`, could be made quiet; the log says why
/// not. For [`Iommu::release`](iommu::Iommu::release).
pub fn is_quiet(
    host: &Arc<dyn Host>,
    functions: &[Function],
    group: &[PciAddress],
    function: PciAddress,
) -> bool {
    let found = functions.iter().find(|found| found.address == function);
    let result = match found {
        Some(found) => quieten(host, Target { function: found, bridge: found.parent, group }),
        None => Err(ResetError::Absent.into()),
    };
    result.inspect_err(|error| log::warn!("{function}: {error}")).is_ok()
}

/// Whether `dma`'s function was taken from its driver, who asks: then it is quiet, and there is nothing left to ask it.
/// A function that does not answer any more is about to be taken back by whoever serves its slot; that is waited for.
pub fn is_taken_back(host: &dyn Host, dma: &DmaDevice) -> bool {
    const DEADLINE_NS: u64 = 5_000_000_000;
    let deadline_ns = host.now_ns().saturating_add(DEADLINE_NS);
    while !dma.was_taken_back() {
        if Config::new(host, dma.function()).is_present() || host.now_ns() >= deadline_ns {
            return false;
        }
        host.relax();
    }
    true
}

fn by_function_level(host: &Arc<dyn Host>, device: &Device, _target: Target<'_>) -> Result<(), NotQuiet> {
    Ok(reset_function(&**host, device.function())?)
}

fn by_power(host: &Arc<dyn Host>, device: &Device, _target: Target<'_>) -> Result<(), NotQuiet> {
    Ok(reset_by_power(&**host, device.function())?)
}

fn by_its_own(_host: &Arc<dyn Host>, device: &Device, _target: Target<'_>) -> Result<(), NotQuiet> {
    match device.id() {
        id if id == edu::ID => edu::await_quiet(device).map_err(NotQuiet::Edu),
        id if id.vendor == virtio::VENDOR => virtio::await_quiet(device).map_err(NotQuiet::Virtio),
        id if id == e1000e::ID => e1000e::await_quiet(device).map_err(NotQuiet::E1000e),
        _ => Err(ResetError::NoMethod.into()),
    }
}

fn by_bus(host: &Arc<dyn Host>, _device: &Device, target: Target<'_>) -> Result<(), NotQuiet> {
    let bridge = target.bridge.ok_or(ResetError::NoMethod)?;
    Ok(reset_bus(&**host, bridge, target.group)?)
}
