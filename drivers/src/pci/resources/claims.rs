//! Who has which physical addresses.
//!
//! A function says itself where its registers are, and may lie. Bridges are believed: what is behind one is in its
//! windows, or cannot be reached. So before registers are mapped for anybody, a driver of the kernel's or a process,
//! they are compared with the windows of the bridge above, and with all that anybody else has: what the host knows of
//! from firmware and itself ([`Claims::add`]), and what the other functions decode. Where two functions say that they
//! are in one place, neither is believed.

use alloc::{collections::TryReserveError, vec::Vec};
use core::{fmt, iter};

use iommu::PciAddress;
use mm::{PhysAddr, PhysRange};

use super::{
    super::{
        bar::{BARS, Bar, BarError, BarKind},
        config::{Config, ConfigSpace},
        function::{Function, Layout},
    },
    Window,
};

/// Who has a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimant {
    /// RAM.
    Memory,
    /// Memory that firmware has kept for itself.
    Firmware,
    /// The fixed addresses of the chip set.
    Chipset,
    /// Configuration space.
    ConfigurationSpace,
    /// An I/O APIC.
    IoApic,
    /// A remapping unit.
    RemappingUnit,
    /// A function, by a BAR.
    Bar {
        /// The function.
        function: PciAddress,
        /// Index of the BAR.
        index: u8,
    },
    /// The virtual functions that a function can have.
    VirtualFunctions {
        /// The physical function.
        of: PciAddress,
        /// Index of their BAR.
        index: u8,
    },
    /// What is behind a bridge.
    Behind {
        /// The bridge.
        bridge: PciAddress,
    },
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Firmware => f.write_str("firmware's memory"),
            Self::Chipset => f.write_str("the chip set's addresses"),
            Self::ConfigurationSpace => f.write_str("configuration space"),
            Self::IoApic => f.write_str("an I/O APIC"),
            Self::RemappingUnit => f.write_str("a remapping unit"),
            Self::Bar { function, index } => write!(f, "BAR {index} of {function}"),
            Self::VirtualFunctions { of, index } => write!(f, "BAR {index} of the virtual functions of {of}"),
            Self::Behind { bridge } => write!(f, "what is behind {bridge}"),
        }
    }
}

/// A range, and who has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// Who has it.
    pub by: Claimant,
}

impl Claim {
    /// Whether any of `first..=last` is in it.
    #[must_use]
    pub const fn meets(&self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}-{:#x}", self.by, self.first, self.last)
    }
}

/// Why registers cannot be where they are said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misplaced {
    /// Nobody knows the function.
    Unknown {
        /// The function.
        function: PciAddress,
    },
    /// Somebody else is there.
    Taken {
        /// Where they are said to be.
        range: PhysRange,
        /// Who is there.
        claim: Claim,
    },
    /// The bridge above does not pass all of it on.
    NotPassedOn {
        /// Where they are said to be.
        range: PhysRange,
        /// The bridge.
        bridge: PciAddress,
    },
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { function } => write!(f, "there is no function {function}"),
            Self::Taken { range: PhysRange { start, bytes }, claim } => {
                write!(f, "its {bytes:#x} bytes at {start} overlap {claim}")
            }
            Self::NotPassedOn { range: PhysRange { start, bytes }, bridge } => {
                write!(f, "its {bytes:#x} bytes at {start} are not in a window of {bridge}")
            }
        }
    }
}

impl core::error::Error for Misplaced {}

/// The BARs of a function, each with whoever may answer there instead. They are made by [`Claims::settle`] alone, so
/// that nothing is mapped that was not compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places([Option<Result<Bar, Misplaced>>; BARS as usize]);

impl Places {
    /// BAR `index`, which is nobody else's.
    ///
    /// # Errors
    /// There is no such BAR, or somebody else may answer there.
    pub fn bar(&self, index: u8) -> Result<Bar, BarError> {
        let place = self.0.get(usize::from(index)).ok_or(BarError::NoSuchBar(index))?;
        place.ok_or(BarError::Absent(index))?.map_err(|why| BarError::Misplaced { index, why })
    }
}

/// What is known to be somebody's, besides what functions decode.
#[derive(Default, Debug)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Nothing is.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Somebody has the addresses from `first` to `last`. Who is added first is named first.
    ///
    /// # Errors
    /// No memory; nothing has changed.
    pub fn add(&mut self, first: u64, last: u64, by: Claimant) -> Result<(), TryReserveError> {
        self.0.try_reserve(1)?;
        self.0.push(Claim { first, last, by });
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> + Clone {
        self.0.iter()
    }

    /// Who has any of `first..=last`.
    #[must_use]
    pub fn holder(&self, first: u64, last: u64) -> Option<&Claim> {
        self.0.iter().find(|claim| claim.meets(first, last))
    }

    /// Addresses at which something else than memory answers: configuration space, I/O APICs, and what the functions on
    /// root buses decode, in whose windows everything is that is behind them. Where one says that memory is its own it
    /// is not believed, and reported; its neighbours are.
    ///
    /// BARs of functions that were not measured are sized on the way, as by
    /// [`Apertures::find`](super::Apertures::find).
    pub fn registers<C: ConfigSpace + ?Sized>(
        &self,
        space: &C,
        functions: &[Function],
    ) -> impl Iterator<Item = PhysRange> {
        let fixed =
            self.iter().filter(|claim| matches!(claim.by, Claimant::ConfigurationSpace | Claimant::IoApic));
        let on_root_buses = functions.iter().filter(|function| function.parent.is_none());
        let decoded = on_root_buses.flat_map(|function| claims_of(space, function));
        decoded.chain(fixed.copied()).filter_map(|claim| {
            let range = self.without_memory(&claim);
            if range.is_none() {
                log::warn!("pci: {claim} cannot be registers");
            }
            range
        })
    }

    /// Where `claim` is, if that can be and is no memory.
    fn without_memory(&self, claim: &Claim) -> Option<PhysRange> {
        let &Claim { first, last, .. } = claim;
        let (start, _) = (PhysAddr::checked(first)?, PhysAddr::checked(last)?);
        let mut memory = self.iter().filter(|other| other.by == Claimant::Memory);
        let is_memory = memory.any(|memory| memory.meets(first, last));
        (!is_memory).then(|| PhysRange::new(start, last - first + 1))
    }

    /// Settles which registers drivers may map of `functions` from number `first` on, which nobody drives yet: those
    /// that were [measured](Function::measure) where nobody else can answer. Comes when all claims and functions are
    /// known. Takes no memory.
    pub fn settle<C: ConfigSpace + ?Sized>(&self, space: &C, functions: &mut [Function], first: usize) {
        for index in first..functions.len() {
            functions[index].places = self.places(space, functions, &functions[index]);
        }
    }

    fn places<C: ConfigSpace + ?Sized>(
        &self,
        space: &C,
        functions: &[Function],
        function: &Function,
    ) -> Option<Places> {
        let place = |bar: Bar| {
            // Ports, and what has no address, are mapped by nobody.
            let Ok((start, bytes)) = bar.memory() else { return Ok(bar) };
            let range = PhysRange::new(start, bytes as u64);
            self.check(space, functions, function.address, range).map(|()| bar)
        };
        Some(Places(function.bars?.map(|bar| bar.map(place))))
    }

    /// Checks that nobody but `function`, one of `functions`, can answer at `range`. Takes no memory.
    ///
    /// # Errors
    /// See [`Misplaced`].
    pub fn check<C: ConfigSpace + ?Sized>(
        &self,
        space: &C,
        functions: &[Function],
        function: PciAddress,
        range: PhysRange,
    ) -> Result<(), Misplaced> {
        let known = |address| functions.iter().find(|known| known.address == address);
        let own = known(function).ok_or(Misplaced::Unknown { function })?;
        let (first, last) = (range.start.as_u64(), range.start.as_u64().saturating_add(range.bytes - 1));
        if let Some(&claim) = self.holder(first, last) {
            return Err(Misplaced::Taken { range, claim });
        }
        if let Some(bridge) = own.parent {
            let config = Config::new(space, bridge);
            let mut windows = Window::BOTH.into_iter().filter_map(|window| window.read(config));
            if !windows.any(|(low, high)| low <= first && last <= high) {
                return Err(Misplaced::NotPassedOn { range, bridge });
            }
        }
        // Not more bridges are above a function than there are buses.
        let above = || iter::successors(own.parent, |&bridge| known(bridge)?.parent).take(1 << 8);
        let is_own = |by: &Claimant| match *by {
            Claimant::Bar { function, .. } => function == own.address,
            Claimant::VirtualFunctions { of, .. } => own.physical == Some(of),
            Claimant::Behind { bridge } => above().any(|other| other == bridge),
            _ => false,
        };
        let mut others = functions.iter().flat_map(|other| claims_of(space, other));
        match others.find(|claim| claim.meets(first, last) && !is_own(&claim.by)) {
            Some(claim) => Err(Misplaced::Taken { range, claim }),
            None => Ok(()),
        }
    }
}

/// What `function` decodes: its BARs in memory, those of the virtual functions that it can have, and as a bridge its
/// windows.
///
/// BARs are sized on the way if it was not measured, for which its decoding is off for a moment.
pub(super) fn claims_of<C: ConfigSpace + ?Sized>(
    space: &C,
    function: &Function,
) -> impl Iterator<Item = Claim> {
    let (config, layout, address) = (Config::new(space, function.address), function.layout, function.address);
    let measured = function.bars.into_iter().flatten().flatten();
    let unmeasured = function.bars.is_none().then(|| Bar::all(config, layout)).into_iter().flatten();
    let is_placed = |bar: &Bar| bar.kind != BarKind::Port && bar.base != 0;
    let claim = |bar: Bar, count: u64, by| {
        let bytes = bar.bytes.saturating_mul(count);
        Claim { first: bar.base, last: bar.base.saturating_add(bytes - 1), by }
    };
    let bars = measured.chain(unmeasured).filter(is_placed);
    let bars = bars.map(move |bar| claim(bar, 1, Claimant::Bar { function: address, index: bar.index }));
    let room = u64::from(function.virtual_room);
    let virtual_bars = function.virtual_bars.filter(|_| room > 0).into_iter().flatten().flatten();
    let virtual_bars = virtual_bars
        .map(move |bar| claim(bar, room, Claimant::VirtualFunctions { of: address, index: bar.index }));
    let windows = Window::BOTH.into_iter().filter(move |_| matches!(layout, Layout::Bridge(_)));
    let windows = windows.filter_map(move |window| window.read(config));
    let windows =
        windows.map(move |(first, last)| Claim { first, last, by: Claimant::Behind { bridge: address } });
    bars.chain(virtual_bars).chain(windows)
}
