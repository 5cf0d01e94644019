//! Virtual functions: Single Root I/O Virtualization.
//!
//! A physical function offers a number of virtual ones, each with a requester id of its own. They are there as long as
//! it has VF Enable set, and say little of themselves: vendor and device read as all ones and the BARs as zeros, so
//! that who they are and where their registers are comes from the capability of the physical function.
//!
//! Only virtual functions on the bus of the physical one are enabled: those on further buses would need bus numbers
//! that bridges above have not been given.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use iommu::PciAddress;

use super::{
    bar::{BARS, Bar, BarError, BarKind, Bars},
    capability::extended_id,
    config::Config,
    function::Function,
    reset::{DEADLINE_NS, pause},
};
use crate::host::Host;

/// Offsets in the SR-IOV extended capability.
mod layout {
    pub const CONTROL: u16 = 0x08;
    pub const INITIAL_VFS: u16 = 0x0c;
    pub const TOTAL_VFS: u16 = 0x0e;
    pub const NUM_VFS: u16 = 0x10;
    pub const FIRST_VF_OFFSET: u16 = 0x14;
    pub const VF_STRIDE: u16 = 0x16;
    pub const VF_DEVICE_ID: u16 = 0x1a;
    pub const SUPPORTED_PAGE_SIZES: u16 = 0x1c;
    pub const SYSTEM_PAGE_SIZE: u16 = 0x20;
    pub const VF_BARS: u16 = 0x24;
    pub const BYTES: u16 = 0x40;
}

/// Bits of SR-IOV Control.
mod control {
    /// VF Enable.
    pub const ENABLE: u16 = 1 << 0;
    /// VF MSE: memory space enable, of all virtual functions at once.
    pub const MEMORY: u16 = 1 << 3;
    /// ARI Capable Hierarchy: function numbers may have eight bits.
    pub const ARI: u16 = 1 << 4;
}

/// Bit of the page sizes that stands for 4 KiB.
const PAGE_4K: u32 = 1;
const PAGE_BYTES: u64 = 4096;

/// How long nobody may touch a virtual function after VF Enable was set, and nobody VF Enable after it was cleared.
const SETTLE_ON_NS: u64 = 100_000_000;
const SETTLE_OFF_NS: u64 = 1_000_000_000;

/// Why there are no virtual functions, or why they stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SriovError {
    /// The physical function does not answer any more: what its virtual ones do is not known.
    Gone,
    /// It was told to have no virtual functions any more, and has VF Enable set.
    StaysOn {
        /// SR-IOV Control.
        control: u16,
    },
    /// It has fewer than were asked for, or none was.
    Count {
        /// How many were asked for.
        wanted: u16,
        /// How many it has.
        offered: u16,
    },
    /// Virtual functions are on already.
    On {
        /// How many.
        count: u16,
    },
    /// It does not know pages of 4 KiB.
    PageSize {
        /// Supported Page Sizes.
        supported: u32,
    },
    /// A register of virtual functions makes no sense, or has no address.
    Bar(BarError),
    /// Registers of two virtual functions would share a page.
    SmallBar {
        /// Index of the BAR.
        index: u8,
        /// Bytes of each function.
        bytes: u64,
    },
    /// Their registers have no addresses.
    NoAddresses,
    /// A register of virtual functions did not take its address.
    NotPlaced {
        /// Index of the BAR.
        index: u8,
    },
    /// A register of the capability did not take what was written.
    NotTaken {
        /// Offset in the capability.
        register: u16,
        /// What was written.
        wanted: u16,
        /// What it reads.
        found: u16,
    },
    /// A virtual function would be on another bus than the physical one.
    OtherBus {
        /// Its routing id: bus, device and function.
        routing_id: u32,
    },
    /// A virtual function would have the address of another function.
    Taken {
        /// The address.
        function: PciAddress,
    },
    /// The port above does not pass on requests to it.
    NotForwarded {
        /// The virtual function.
        function: PciAddress,
    },
    /// A virtual function does not answer in time.
    Absent {
        /// Which.
        function: PciAddress,
    },
    /// No memory for a list.
    OutOfMemory,
}

impl fmt::Display for SriovError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the physical function does not answer"),
            Self::StaysOn { control } => {
                write!(f, "the virtual functions stay on: SR-IOV Control is {control:#x}")
            }
            Self::Count { wanted, offered } => write!(f, "{wanted} virtual functions of {offered}"),
            Self::On { count } => write!(f, "{count} virtual functions are on"),
            Self::PageSize { supported } => write!(f, "no pages of 4 KiB, but sizes {supported:#x}"),
            Self::Bar(error) => write!(f, "virtual functions: {error}"),
            Self::SmallBar { index, bytes } => {
                write!(f, "virtual functions share pages: BAR {index} has {bytes:#x} bytes")
            }
            Self::NoAddresses => f.write_str("the registers of virtual functions have no addresses"),
            Self::NotPlaced { index } => write!(f, "BAR {index} of virtual functions takes no address"),
            Self::NotTaken { register, wanted, found } => {
                write!(f, "register {register:#x} of SR-IOV holds {found:#x} and not {wanted:#x}")
            }
            Self::OtherBus { routing_id } => {
                write!(f, "a virtual function would be on another bus: its routing id is {routing_id:#x}")
            }
            Self::Taken { function } => write!(f, "a virtual function would be where {function} is"),
            Self::NotForwarded { function } => write!(f, "the port above does not reach {function}"),
            Self::Absent { function } => write!(f, "virtual function {function} does not answer"),
            Self::OutOfMemory => f.write_str("no memory for virtual functions"),
        }
    }
}

impl core::error::Error for SriovError {}

impl From<BarError> for SriovError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl From<TryReserveError> for SriovError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

/// The SR-IOV capability of a physical function.
pub struct Sriov<'a> {
    host: &'a dyn Host,
    physical: &'a Function,
    capability: u16,
}

impl<'a> Sriov<'a> {
    /// The capability of `physical`, if it has one.
    pub fn open(host: &'a dyn Host, physical: &'a Function) -> Option<Self> {
        let config = Config::new(host, physical.address);
        let capability = config.find_extended(extended_id::SRIOV, layout::BYTES)?;
        physical.physical.is_none().then_some(Self { host, physical, capability })
    }

    /// How many virtual functions it can have: TotalVFs, of which InitialVFs are there without migration.
    #[must_use]
    pub fn offered(&self) -> u16 {
        let [initial, total] = [layout::INITIAL_VFS, layout::TOTAL_VFS].map(|register| self.read16(register));
        // Nothing answers.
        if total == u16::MAX { 0 } else { initial.min(total) }
    }

    /// Whether there are virtual functions.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.config().is_present() && self.read16(layout::CONTROL) & control::ENABLE != 0
    }

    /// The registers of the first virtual function, sized for pages of 4 KiB, with no addresses. There must be no
    /// virtual functions.
    pub(super) fn size_bars(&self) -> Result<Bars, SriovError> {
        self.set_page_size()?;
        let mut bars = Bars::default();
        let mut index = 0;
        while index < BARS {
            let bar = match Bar::read_quiet(self.config(), self.capability + layout::VF_BARS, index, BARS) {
                Err(BarError::Absent(_)) => {
                    index += 1;
                    continue;
                }
                bar => bar?,
            };
            match bar.kind {
                BarKind::Port => return Err(BarError::NotMemory(index).into()),
                BarKind::Memory { .. } if bar.bytes < PAGE_BYTES => {
                    return Err(SriovError::SmallBar { index, bytes: bar.bytes });
                }
                BarKind::Memory { wide, .. } => {
                    bars[usize::from(index)] = Some(Bar { base: 0, ..bar });
                    index += 1 + u8::from(wide);
                }
            }
        }
        Ok(bars)
    }

    /// Turns `count` virtual functions on, and returns them: they can be talked to, and may not send requests yet.
    /// `known` are all other functions.
    ///
    /// # Errors
    /// See [`SriovError`]. There are none then, but after [`StaysOn`](SriovError::StaysOn) and
    /// [`Gone`](SriovError::Gone): the IOMMU does not know those, so that they reach nothing.
    pub fn enable(&self, count: u16, known: &[Function]) -> Result<Vec<Function>, SriovError> {
        if !self.config().is_present() {
            return Err(SriovError::Gone);
        }
        // What it says now is no reason to put registers where others have theirs.
        let room = self.physical.virtual_bars.map(|_| self.physical.virtual_room);
        let offered = self.offered().min(room.unwrap_or(u16::MAX));
        if count == 0 || count > offered {
            return Err(SriovError::Count { wanted: count, offered });
        }
        if self.is_on() {
            return Err(SriovError::On { count: self.read16(layout::NUM_VFS) });
        }
        let enabled = self.prepare(count).and_then(|first| self.turn_on(count, &first, known));
        enabled.map_err(|error| self.disable().err().unwrap_or(error))
    }

    /// Turns all virtual functions off, and waits until nothing is left of them: they touch memory no more.
    ///
    /// # Errors
    /// [`StaysOn`](SriovError::StaysOn); [`Gone`](SriovError::Gone): a function that does not answer may only say so.
    pub fn disable(&self) -> Result<(), SriovError> {
        let before = self.read16(layout::CONTROL);
        if !self.config().is_present() {
            return Err(SriovError::Gone);
        }
        let was_on = before & control::ENABLE != 0;
        let off = before & !(control::ENABLE | control::MEMORY | control::ARI);
        self.write16(layout::CONTROL, off);
        if was_on {
            pause(self.host, SETTLE_OFF_NS);
        }
        let control = self.read16(layout::CONTROL);
        if !self.config().is_present() {
            return Err(SriovError::Gone);
        }
        if control & control::ENABLE != 0 {
            return Err(SriovError::StaysOn { control });
        }
        self.write16(layout::NUM_VFS, 0);
        Ok(())
    }

    /// Brings everything into the capability that has to be there before VF Enable. The registers of the first function
    /// are returned.
    fn prepare(&self, count: u16) -> Result<Bars, SriovError> {
        let bars = self.physical.virtual_bars.ok_or(SriovError::NoAddresses)?;
        // A reset of the physical function may have taken all of it away.
        self.set_page_size()?;
        for bar in bars.iter().flatten() {
            if !bar.place_in(self.config(), self.capability + layout::VF_BARS, bar.base) {
                return Err(SriovError::NotPlaced { index: bar.index });
            }
        }
        let is_forwarded = self.config().find_extended(extended_id::ARI, 8).is_some()
            && self.physical.parent.is_some_and(|port| self.config_of(port).forward_all_functions(true));
        if is_forwarded {
            // Before NumVFs: offset and stride depend on both. Only the first physical function of a device has the
            // bit.
            let control = self.read16(layout::CONTROL);
            self.write16(layout::CONTROL, control | control::ARI);
        }
        self.write16(layout::NUM_VFS, count);
        self.expect(layout::NUM_VFS, count)?;
        Ok(bars)
    }

    fn turn_on(&self, count: u16, first: &Bars, known: &[Function]) -> Result<Vec<Function>, SriovError> {
        let mut addresses: Vec<PciAddress> = Vec::new();
        addresses.try_reserve_exact(count.into())?;
        for number in 0..count {
            let function = self.address(number)?;
            let is_known = known.iter().any(|known| known.address == function);
            if is_known || function == self.physical.address || addresses.contains(&function) {
                return Err(SriovError::Taken { function });
            }
            addresses.push(function);
        }
        let on = self.read16(layout::CONTROL) | control::ENABLE | control::MEMORY;
        self.write16(layout::CONTROL, on);
        pause(self.host, SETTLE_ON_NS);
        self.expect(layout::CONTROL, on)?;
        // One deadline for all of them: there may be hundreds.
        let deadline_ns = self.host.now_ns().saturating_add(DEADLINE_NS);
        let device = self.read16(layout::VF_DEVICE_ID);
        let mut functions = Vec::new();
        functions.try_reserve_exact(addresses.len())?;
        for (number, function) in (0_u64..).zip(addresses) {
            let config = self.config_of(function);
            while !config.is_present() {
                if self.host.now_ns() >= deadline_ns {
                    return Err(SriovError::Absent { function });
                }
                self.host.relax();
            }
            // None of them ends beyond 2^64: there is room for so many.
            let own = |bar: Bar| Bar { base: bar.base + number * bar.bytes, ..bar };
            functions.push(self.physical.virtual_one(config, device, first.map(|bar| bar.map(own))));
        }
        Ok(functions)
    }

    /// Where virtual function `number` is.
    fn address(&self, number: u16) -> Result<PciAddress, SriovError> {
        let PciAddress { segment, bus, .. } = self.physical.address;
        let routing_id = routing_id(self.config(), self.capability, number);
        if routing_id >> 8 != u32::from(bus) {
            return Err(SriovError::OtherBus { routing_id });
        }
        let function = PciAddress::from_devfn(segment, bus, routing_id as u8);
        let is_ari = self.read16(layout::CONTROL) & control::ARI != 0;
        // Behind a port there is only device 0, unless function numbers have eight bits.
        if self.physical.parent.is_some() && function.device() != self.physical.address.device() && !is_ari {
            return Err(SriovError::NotForwarded { function });
        }
        Ok(function)
    }

    fn set_page_size(&self) -> Result<(), SriovError> {
        let config = self.config();
        let supported = config.read32(self.capability + layout::SUPPORTED_PAGE_SIZES);
        if supported & PAGE_4K == 0 || supported == u32::MAX {
            return Err(SriovError::PageSize { supported });
        }
        config.write32(self.capability + layout::SYSTEM_PAGE_SIZE, PAGE_4K);
        self.expect(layout::SYSTEM_PAGE_SIZE, PAGE_4K as u16)
    }

    fn expect(&self, register: u16, wanted: u16) -> Result<(), SriovError> {
        let found = self.read16(register);
        if found == wanted { Ok(()) } else { Err(SriovError::NotTaken { register, wanted, found }) }
    }

    fn read16(&self, register: u16) -> u16 {
        self.config().read16(self.capability + register)
    }

    /// Writes one word alone: some neighbours are cleared by ones.
    fn write16(&self, register: u16, value: u16) {
        self.config().write_word(self.capability + register, value);
    }

    fn config(&self) -> Config<'a, dyn Host> {
        self.config_of(self.physical.address)
    }

    fn config_of(&self, function: PciAddress) -> Config<'a, dyn Host> {
        Config::new(self.host, function)
    }
}

/// The virtual functions that `physical` has now, as it says itself: with a reset of it they are gone.
pub fn virtual_functions(host: &dyn Host, physical: PciAddress) -> impl Iterator<Item = PciAddress> {
    let config = Config::new(host, physical);
    let capability = config.find_extended(extended_id::SRIOV, layout::BYTES);
    let on = capability.filter(|capability| {
        config.is_present() && config.read16(capability + layout::CONTROL) & control::ENABLE != 0
    });
    on.into_iter().flat_map(move |capability| {
        (0..config.read16(capability + layout::NUM_VFS)).map(move |number| {
            let routing_id = routing_id(config, capability, number);
            PciAddress::from_devfn(physical.segment, (routing_id >> 8) as u8, routing_id as u8)
        })
    })
}

/// Bus, device and function of virtual function `number`. Beyond 16 bits there is nothing.
fn routing_id(physical: Config<'_, dyn Host>, capability: u16, number: u16) -> u32 {
    let [first, stride] = [layout::FIRST_VF_OFFSET, layout::VF_STRIDE]
        .map(|register| u32::from(physical.read16(capability + register)));
    let own = u32::from(physical.function().bus) << 8 | u32::from(physical.function().devfn());
    own.saturating_add(first).saturating_add(stride.saturating_mul(number.into()))
}

#[cfg(test)]
#[path = "sriov_tests.rs"]
mod tests;
