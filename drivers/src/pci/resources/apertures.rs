//! The host bridge's addresses, as far as nobody uses them.

use alloc::collections::TryReserveError;

use iommu::PciAddress;

use super::{
    super::{
        config::{Config, ConfigSpace},
        function::Function,
    },
    Ranges, Window,
    claims::claims_of,
};

/// Addresses below 4 GiB that the host bridge passes on to root buses and that nothing decodes.
///
/// Without an interpreter for ACPI's `_CRS` they are worked out, on the safe side: what lies between the end of memory
/// below 4 GiB and the fixed addresses of the chipset (from the I/O APICs up), which is how the chipsets of PCs that
/// have VT-d divide these addresses, less what firmware's memory map and tables name, and less what firmware has given
/// to the functions and bridges of root buses.
#[derive(Debug)]
pub struct Apertures {
    free: Ranges,
}

/// Where the chipset's fixed addresses begin: I/O APICs, timers, remapping units, local APICs, firmware.
const CHIPSET: u64 = 0xfec0_0000;

impl Apertures {
    /// The apertures of a machine whose memory below 4 GiB ends before `memory_end`. `taken` are ranges, each with its
    /// first and last address, that belong to something else.
    ///
    /// BARs of functions that were not measured are sized on the way, for which their decoding is off for a moment: no
    /// driver may run yet.
    ///
    /// # Errors
    /// No memory.
    pub fn find<C: ConfigSpace + ?Sized>(
        space: &C,
        functions: &[Function],
        memory_end: u64,
        taken: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, TryReserveError> {
        let mut free = Ranges::new();
        if memory_end < CHIPSET {
            free.add(memory_end, CHIPSET - 1)?;
        }
        for (first, last) in taken {
            free.remove(first, last)?;
        }
        for function in functions.iter().filter(|function| function.parent.is_none()) {
            remove_registers(space, function, &mut free)?;
        }
        Ok(Self { free })
    }

    /// No addresses.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { free: Ranges::new() }
    }

    /// What the memory window of `bridge` has left: `functions` are all that there are. Addresses in it may be taken
    /// for any register: reading ahead is no more than allowed.
    ///
    /// # Errors
    /// No memory.
    pub fn left_by<C: ConfigSpace + ?Sized>(
        space: &C,
        bridge: PciAddress,
        functions: &[Function],
    ) -> Result<Self, TryReserveError> {
        Ok(Self { free: left_in(Window::Memory, space, bridge, functions)? })
    }

    /// What is free.
    pub fn free(&self) -> &Ranges {
        &self.free
    }

    /// Takes `bytes` bytes at a multiple of `align`.
    pub(super) fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        self.free.take(bytes, align)
    }

    /// Gives a range back.
    pub(super) fn give_back(&mut self, first: u64, last: u64) {
        if last < CHIPSET && self.free.add(first, last).is_err() {
            log::warn!("pci: no memory to note that {first:#x}-{last:#x} is free");
        }
    }
}

/// What of `window` of `bridge` none of `functions` right behind it decodes or passes on.
pub(super) fn left_in<C: ConfigSpace + ?Sized>(
    window: Window,
    space: &C,
    bridge: PciAddress,
    functions: &[Function],
) -> Result<Ranges, TryReserveError> {
    let mut free = Ranges::new();
    if let Some((first, last)) = window.read(Config::new(space, bridge)) {
        free.add(first, last)?;
    }
    for function in functions.iter().filter(|function| function.parent == Some(bridge)) {
        remove_registers(space, function, &mut free)?;
    }
    Ok(free)
}

/// Removes what `function` decodes.
fn remove_registers<C: ConfigSpace + ?Sized>(
    space: &C,
    function: &Function,
    free: &mut Ranges,
) -> Result<(), TryReserveError> {
    claims_of(space, function).try_for_each(|claim| free.remove(claim.first, claim.last))
}
