//! A device in the hands of a process.
//!
//! What the process gets is the pages of its registers ([`Lendable`]), memory of its own at addresses that it chooses, and
//! its interrupts, by asking for them. What the device reaches is what the process has shared with it, as with any driver: its
//! function has a domain of its own, and is alone in its group.
//!
//! The end of the process takes the device as a quarantine and a release do: it is stopped, reaches nothing, is made quiet, and
//! only then is the memory that it had given back. One that cannot be made quiet keeps it, and stays in quarantine.

use alloc::sync::{Arc, Weak};
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use abi::{DeviceAccess, Error};
use drivers::{
    host::{self, Event, Host, InterruptError},
    hotplug::Hotplug,
    pci::{Device, Lendable, Msi, MsiError, Msix, MsixError},
    quiet,
};
use iommu::{
    ClaimError, DmaDevice, Incident, Iommu, Iova, PciAddress,
    dma::{Bidirectional, DmaError, FromDevice, Mapping, ToDevice},
};
use mm::PhysRange;

use super::{Process, budget::Pages, space::Space};
use crate::memory;

/// Most pieces of memory that a process shares with a device at a time.
const SHARES_MAX: usize = 32;
/// Most interrupts of a device.
pub const INTERRUPTS_MAX: usize = 4;
/// Most BARs of a function.
const BARS: usize = 6;
/// Where PCs have the registers of I/O APICs, remapping units and local APICs, and where interrupts are sent to.
const CHIPSET: PhysRange = PhysRange { start: mm::PhysAddr::new(0xfec0_0000), bytes: 0x0140_0000 };

/// What it takes to give devices to processes.
#[derive(Clone)]
pub struct Giver {
    /// What drivers are given.
    pub host: Arc<dyn Host>,
    /// The subsystem.
    pub iommu: Iommu,
    /// Which functions there are.
    pub hotplug: Arc<Hotplug>,
    /// Units remap interrupts: without that a device can raise any.
    pub remaps_interrupts: bool,
}

/// Why a device is not given to a process.
#[derive(Debug)]
pub enum GiveError {
    /// There is no such function.
    Absent,
    /// It, or whoever drives it, could raise any interrupt.
    Interrupts,
    /// It cannot be isolated from others, or no unit covers it.
    NotAlone {
        /// How many functions its group has.
        members: usize,
    },
    /// Somebody has it, or it is in quarantine.
    Claim(ClaimError),
    /// It could not be reset after its last owner.
    NotQuiet,
    /// Its interrupts cannot be used.
    Msix(MsixError),
    /// The same.
    Msi(MsiError),
    /// There is no interrupt for it.
    Interrupt(InterruptError),
    /// There is no memory to look at its group.
    OutOfMemory,
}

impl fmt::Display for GiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such function"),
            Self::Interrupts => f.write_str("nothing remaps interrupts, so that it could raise any"),
            Self::NotAlone { members } => write!(f, "its isolation group has {members} functions, not 1"),
            Self::Claim(error) => error.fmt(f),
            Self::NotQuiet => f.write_str("it could not be reset"),
            Self::Msix(error) => error.fmt(f),
            Self::Msi(error) => error.fmt(f),
            Self::Interrupt(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for GiveError {}

/// A function that is a process's, until this is dropped.
pub struct Given {
    giver: Giver,
    dma: DmaDevice,
    device: Device,
    interrupts: Interrupts,
    lines: [Arc<Line>; INTERRUPTS_MAX],
    shares: [Option<Share>; SHARES_MAX],
    /// Which BARs the process sees.
    mapped: [bool; BARS],
}

/// How the function raises interrupts.
enum Interrupts {
    None,
    Msi(#[expect(dead_code, reason = "on until it is dropped")] Msi),
    Msix(Msix),
}

/// One interrupt: whether it has come, and whom to wake.
struct Line {
    arrived: AtomicBool,
    process: spin::Once<Weak<Process>>,
}

impl host::Event for Line {
    fn signal(&self) {
        self.arrived.store(true, SeqCst);
        if let Some(process) = self.process.get().and_then(Weak::upgrade) {
            process.changed.wake_all();
        }
    }

    /// The process's thread waits by itself, see [`Given::wait`]; this asks only.
    fn wait(&self, _deadline_ns: u64) -> bool {
        self.arrived.swap(false, SeqCst)
    }
}

/// Memory that the function may reach.
struct Share {
    iova: Iova,
    memory: Shared,
}

enum Shared {
    Read(Mapping<Pages, ToDevice>),
    Write(Mapping<Pages, FromDevice>),
    ReadWrite(Mapping<Pages, Bidirectional>),
}

impl Shared {
    fn unmap(self) -> Result<Pages, DmaError> {
        match self {
            Self::Read(mapping) => mapping.unmap(),
            Self::Write(mapping) => mapping.unmap(),
            Self::ReadWrite(mapping) => mapping.unmap(),
        }
    }
}

impl Giver {
    /// Takes `function`, which nobody has, for a process that is about to be started.
    ///
    /// # Errors
    /// See [`GiveError`].
    pub fn give(&self, function: PciAddress) -> Result<Given, GiveError> {
        if !self.remaps_interrupts {
            return Err(GiveError::Interrupts);
        }
        let functions = self.hotplug.functions();
        let found = functions.iter().find(|found| found.address == function).ok_or(GiveError::Absent)?;
        let members = self.iommu.group(function).map_err(|_| GiveError::OutOfMemory)?.len();
        if members != 1 {
            return Err(GiveError::NotAlone { members });
        }
        let device = Device::open_found(self.host.clone(), found).ok_or(GiveError::Absent)?;
        let dma = self.iommu.claim(function).map_err(GiveError::Claim)?;
        let line = || Arc::new(Line { arrived: AtomicBool::new(false), process: spin::Once::new() });
        let mut given = Given {
            giver: self.clone(),
            dma,
            device,
            interrupts: Interrupts::None,
            lines: core::array::from_fn(|_| line()),
            shares: [const { None }; SHARES_MAX],
            mapped: [false; BARS],
        };
        // Whatever its last owner has left in it. From here on dropping gives it back.
        if !quiet::is_quiet(&self.host, &functions, &[function], function) {
            return Err(GiveError::NotQuiet);
        }
        given.set_up_interrupts()?;
        given.device.enable_memory();
        given.device.enable_bus_master();
        Ok(given)
    }
}

impl Given {
    /// Which function it is.
    pub fn function(&self) -> PciAddress {
        self.dma.function()
    }

    /// Makes its interrupts wake `process`, whose end is a consequence of the device's quarantine.
    pub(super) fn belong_to(&self, process: &Arc<Process>) {
        for line in &self.lines {
            line.process.call_once(|| Arc::downgrade(process));
        }
        let (process, function) = (Arc::downgrade(process), self.function());
        self.dma.on_incident(Arc::new(move |incident| {
            if let (Incident::Quarantined | Incident::Removed, Some(process)) = (incident, process.upgrade())
            {
                log::warn!("{process}: {function} was taken from it");
                process.kill();
            }
        }));
    }

    fn set_up_interrupts(&mut self) -> Result<(), GiveError> {
        let allocate = |line: &Arc<Line>| {
            let event: Arc<dyn Event> = line.clone();
            self.giver.host.allocate_interrupt(self.dma.function(), event).map_err(GiveError::Interrupt)
        };
        self.interrupts = match Msix::open(&self.device) {
            Ok(mut msix) => {
                for (entry, line) in (0..msix.entries()).zip(&self.lines) {
                    msix.set(entry, allocate(line)?).map_err(GiveError::Msix)?;
                }
                Interrupts::Msix(msix)
            }
            Err(MsixError::NoCapability) => match Msi::enable(&self.device, allocate(&self.lines[0])?) {
                Ok(msi) => Interrupts::Msi(msi),
                Err(MsiError::NoCapability) => Interrupts::None,
                Err(error) => return Err(GiveError::Msi(error)),
            },
            Err(error) => return Err(GiveError::Msix(error)),
        };
        Ok(())
    }

    /// How many interrupts it has for the process.
    pub fn interrupts(&self) -> u64 {
        match &self.interrupts {
            Interrupts::None => 0,
            Interrupts::Msi(_) => 1,
            Interrupts::Msix(msix) => u64::from(msix.entries()).min(INTERRUPTS_MAX as u64),
        }
    }

    /// Waits for an interrupt, as the process's thread. Whether it came.
    pub(super) fn wait(&self, process: &Process, number: u64, deadline_ns: u64) -> Result<bool, Error> {
        let line = usize::try_from(number).ok().filter(|_| number < self.interrupts());
        let line = line.and_then(|number| self.lines.get(number)).ok_or(Error::BadAddress)?;
        let mut came = false;
        process.wait_in_kernel(deadline_ns, || {
            came = line.arrived.swap(false, SeqCst);
            came
        });
        Ok(came)
    }

    /// A dword of its configuration space.
    pub fn config_read(&self, offset: u64) -> Result<u64, Error> {
        const BYTES: u16 = 4096;
        let offset = u16::try_from(offset).ok().filter(|&offset| offset < BYTES && offset.is_multiple_of(4));
        Ok(self.device.config().read32(offset.ok_or(Error::BadAddress)?).into())
    }

    /// How long a BAR is of which something can be mapped.
    pub fn bar_bytes(&self, index: u64) -> Result<u64, Error> {
        self.lendable(index).map(|(_, lendable)| lendable.range.bytes)
    }

    /// Shows the process a BAR.
    pub fn map_bar(&mut self, index: u64, space: &mut Space) -> Result<u64, Error> {
        let (index, lendable) = self.lendable(index)?;
        if self.mapped[index] {
            return Err(Error::InUse);
        }
        // SAFETY: registers of the process's device, as firmware or this kernel has placed them; they were checked to be neither
        // memory nor the chip set's, and to be whole pages.
        let start = unsafe { space.map_registers(lendable.range.bytes, lendable.pieces()) }?;
        self.mapped[index] = true;
        Ok(start)
    }

    fn lendable(&self, index: u64) -> Result<(usize, Lendable), Error> {
        let index =
            u8::try_from(index).ok().filter(|&index| usize::from(index) < BARS).ok_or(Error::NotLendable)?;
        let lendable = Lendable::of(&self.device, index).map_err(|error| {
            log::debug!("{}: {error}", self.function());
            Error::NotLendable
        })?;
        let range = lendable.range;
        let is_chipset = range.start.as_u64() < CHIPSET.start.as_u64() + CHIPSET.bytes
            && CHIPSET.start.as_u64() < range.start.as_u64() + range.bytes;
        if is_chipset || memory::is_own(range) {
            log::warn!(
                "{}: BAR {index} is at {:#x}, where no registers can be",
                self.function(),
                range.start.as_u64()
            );
            return Err(Error::NotLendable);
        }
        Ok((index.into(), lendable))
    }

    /// Lets it reach the memory that the process has at `address`.
    pub fn share(
        &mut self,
        address: u64,
        iova: u64,
        way: DeviceAccess,
        space: &mut Space,
    ) -> Result<(), Error> {
        let slot = self.shares.iter_mut().find(|slot| slot.is_none()).ok_or(Error::OutOfMemory)?;
        let pages = space.lend(address)?;
        let iova = Iova::new(iova);
        let mapped = match way {
            DeviceAccess::Read => self.dma.dma_map_at(pages, ToDevice, iova).map(Shared::Read),
            DeviceAccess::Write => self.dma.dma_map_at(pages, FromDevice, iova).map(Shared::Write),
            DeviceAccess::ReadWrite => self.dma.dma_map_at(pages, Bidirectional, iova).map(Shared::ReadWrite),
        };
        match mapped {
            Ok(memory) => {
                *slot = Some(Share { iova, memory });
                Ok(())
            }
            Err(rejected) => {
                let error = rejected.error;
                // What the device may have seen stays lent.
                if let Some(pages) = rejected.buffer {
                    space.take_back(pages);
                }
                Err(match error {
                    DmaError::IovaTaken { .. } | DmaError::NoIova { .. } => Error::BadIova,
                    DmaError::OutOfMemory => Error::OutOfMemory,
                    _ => Error::DeviceLost,
                })
            }
        }
    }

    /// Takes from it what it reaches at `iova`.
    pub fn unshare(&mut self, iova: u64, space: &mut Space) -> Result<(), Error> {
        let is_it =
            |slot: &&mut Option<Share>| slot.as_ref().is_some_and(|share| share.iova.as_u64() == iova);
        let share = self.shares.iter_mut().find(is_it).and_then(Option::take).ok_or(Error::BadIova)?;
        let pages = share.memory.unmap().map_err(|error| {
            log::warn!("{}: {error}", self.function());
            Error::DeviceLost
        })?;
        space.take_back(pages);
        Ok(())
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let function = self.function();
        let Giver { host, iommu, hotplug, .. } = &self.giver;
        // What comes now is no news to the process.
        self.dma.on_incident(Arc::new(|_| {}));
        if self.dma.was_taken_back() {
            // It is quiet, and may be somebody else's.
            self.interrupts = Interrupts::None;
        } else {
            self.device.disable_bus_master();
            self.interrupts = Interrupts::None;
            let functions = hotplug.functions();
            let is_quiet = |member| quiet::is_quiet(host, &functions, &[function], member);
            if let Err(error) = iommu.release(function, is_quiet) {
                log::error!("{function} keeps what it could reach: {error}");
            }
        }
        for share in self.shares.iter_mut().filter_map(Option::take) {
            if let Err(error) = share.memory.unmap() {
                log::debug!("{function}: {error}");
            }
        }
    }
}
