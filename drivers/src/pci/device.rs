//! One function in the hands of its driver.

use alloc::sync::Arc;

use iommu::{DmaDevice, PciAddress};

use super::{
    bar::{Bar, BarError},
    config::{Config, command},
    function::{Class, Function, Id, Layout},
    resources::{Misplaced, Places},
};
use crate::{host::Host, mmio::Mmio};

/// Longest BAR that is mapped: far more than any register set, far less than address space.
const BAR_LIMIT_BYTES: u64 = 64 << 20;

/// A function that a driver has claimed, as it was found. What it says of itself later changes nothing: it is not
/// asked again who it is, nor where its registers are.
#[derive(Clone)]
pub struct Device {
    host: Arc<dyn Host>,
    function: PciAddress,
    id: Id,
    class: Class,
    layout: Layout,
    places: Option<Places>,
    /// By what its driver has it, if it is known.
    hold: Option<DmaDevice>,
}

impl Device {
    /// Opens `function`; `None` if nothing answers there any more. Its registers can be mapped if it was
    /// [settled](super::Claims::settle) that they are nobody else's.
    pub fn open(host: Arc<dyn Host>, function: &Function) -> Option<Self> {
        let &Function { address, id, class, layout, places, .. } = function;
        let is_present = Config::new(&*host, address).is_present();
        is_present.then_some(Self { host, function: address, id, class, layout, places, hold: None })
    }

    /// The function in the hands of who has `dma`. Once it was taken from him, he can neither let it master the bus nor
    /// keep it from that, and its interrupts are let go of without touching it.
    #[must_use]
    pub fn held_by(self, dma: &DmaDevice) -> Self {
        Self { hold: Some(dma.clone()), ..self }
    }

    /// Whether the function was taken from its driver, who asks, and may be another's: its registers and its
    /// configuration space are none of his business any more.
    ///
    /// It could also be taken between this look and what he does after it. Nobody else gets it then, because who
    /// releases a function that works waits for the end of its driver before that
    /// ([`Drivers::unbind`](crate::hotplug::Drivers::unbind)).
    #[must_use]
    pub fn was_taken_back(&self) -> bool {
        self.hold.as_ref().is_some_and(DmaDevice::was_taken_back)
    }

    /// The host that the function is reached through.
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// Where the function is.
    pub fn function(&self) -> PciAddress {
        self.function
    }

    /// Configuration space.
    pub fn config(&self) -> Config<'_, dyn Host> {
        Config::new(&*self.host, self.function)
    }

    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        matches!(self.layout, Layout::Bridge(_) | Layout::CardBus(_))
    }

    /// Vendor and device id.
    pub fn id(&self) -> Id {
        self.id
    }

    /// What it does.
    pub fn class(&self) -> Class {
        self.class
    }

    /// A BAR, as it was when the function was [measured](Function::measure).
    ///
    /// # Errors
    /// There was no such register that made sense, or somebody else may answer there.
    pub fn bar(&self, index: u8) -> Result<Bar, BarError> {
        let unknown = Misplaced::Unknown { function: self.function };
        self.places.as_ref().ok_or(BarError::Misplaced { index, why: unknown })?.bar(index)
    }

    /// Maps a memory BAR and turns memory decoding on.
    ///
    /// # Errors
    /// It is no usable memory BAR, is longer than 64 MiB, may be somebody else's, or the host cannot map it.
    pub fn map_bar(&self, index: u8) -> Result<Mmio, BarError> {
        let bar = self.bar(index)?;
        let (base, bytes) = bar.memory()?;
        let not_mapped = BarError::NotMapped { index, base: bar.base, bytes: bar.bytes };
        if bar.bytes > BAR_LIMIT_BYTES {
            return Err(not_mapped);
        }
        let mmio = self.host.map_mmio(base, bytes).ok_or(not_mapped)?;
        self.config().change_command(command::MEMORY, 0);
        Ok(mmio)
    }

    /// Lets the function answer at the addresses of its memory BARs.
    pub fn enable_memory(&self) {
        self.config().change_command(command::MEMORY, 0);
    }

    /// Lets the function send requests: DMA and message-signalled interrupts. Its pin interrupt is turned off.
    pub fn enable_bus_master(&self) {
        if !self.was_taken_back() {
            self.config().change_command(command::BUS_MASTER | command::INTX_DISABLE, 0);
        }
    }

    /// Stops the function from sending requests.
    pub fn disable_bus_master(&self) {
        if !self.was_taken_back() {
            self.config().change_command(0, command::BUS_MASTER);
        }
    }
}
