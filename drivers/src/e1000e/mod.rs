//! The Intel 82574 network controller, QEMU's `e1000e`: one ring in each direction, MSI-X, checksums completed by the
//! device.
//!
//! Interrupts are one-shot: the controller clears what it has raised from its mask (EIAC), and `rearm` sets it again.
//! They are not moderated.

mod descriptor;
mod error;
mod registers;
mod rings;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, sync::Arc};

use iommu::DmaDevice;

pub use self::error::E1000eError;
use self::{registers::Registers, rings::Ring};
use crate::{
    host::Host,
    net::{
        FRAME_LIMIT_BYTES, NetDevice, NetInfo,
        attention::Attention,
        engine::{Engine, Setup},
        rings::Rings as _,
    },
    pci::{Device, Function, Id, Msix},
};

/// What the controller is called.
pub const ID: Id = Id { vendor: 0x8086, device: 0x10d3 };

/// MSI-X entries; the controller is told of them by IVAR.
const FRAMES_ENTRY: u16 = 0;
const OTHER_ENTRY: u16 = 1;

/// Takes `function`, whose DMA handle is `dma`, such a controller, into use.
///
/// # Errors
/// It is none, or something it needs is not to be had. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Box<dyn NetDevice>, E1000eError> {
    let device = Device::open(host.clone(), function).ok_or(E1000eError::Absent)?.held_by(&dma);
    let registers = Registers::at(&device.map_bar(0)?)?;
    registers.reset(&**host)?;
    let mac = registers.mac().ok_or(E1000eError::NoMac)?;
    let mut msix = Msix::open(&device)?;
    let wake = host.event();
    let attention = Attention::new(&wake);
    for (entry, event) in [(FRAMES_ENTRY, wake.clone()), (OTHER_ENTRY, attention.clone())] {
        msix.set(entry, host.allocate_interrupt(dma.function(), event)?)?;
    }
    let rings = Ring::pair(&dma, device, registers, msix)?;
    let info = NetInfo {
        driver: rings::Controller::NAME,
        mac,
        frame_bytes: FRAME_LIMIT_BYTES,
        transmit_checksum: true,
        transmit_depth: rings.room(),
        receive_depth: rings.receive_depth(),
    };
    Ok(Box::new(Engine::start(host, Setup { dma, info, wake, attention, rings })?))
}

/// Makes `device`, such a controller that no driver uses, quiet. It is left without bus mastering.
///
/// # Errors
/// Its registers are unusable, or it did not say that it is quiet in time.
pub fn await_quiet(device: &Device) -> Result<(), E1000eError> {
    device.disable_bus_master();
    Registers::at(&device.map_bar(0)?)?.reset(&**device.host())
}
