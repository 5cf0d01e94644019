//! A device in the hands of a process.
//!
//! What the process gets is the pages of its registers ([`Lendable`]), memory of its own at addresses that it chooses,
//! and its interrupts, by asking for them. What the device reaches is what the process has shared with it, or its whole
//! address space, by the same addresses: its function is alone in its group, and assigned to a domain that was created
//! for it. So it is never trusted with all memory, as those of the kernel may be, nor given with memory that is
//! firmware's.
//!
//! The end of the process takes the device as a quarantine and a release do: it is stopped, reaches nothing, is made
//! quiet, and only then is the memory that it had given back. One that cannot be made quiet keeps it, and stays in
//! quarantine.

mod clear;
mod give;
mod serve;

use alloc::sync::{Arc, Weak};
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use abi::{DeviceAccess, Error};
use drivers::{
    block::served::Service,
    host::{self, Event},
    pci::{Device, Function, Lendable, Msi, MsiError, Msix, MsixError},
    quiet,
};
use iommu::{
    DmaDevice, DmaDomain, Iova, PciAddress, ReleaseError,
    dma::{Bidirectional, DmaError, FromDevice, Mapping, ToDevice},
};

pub use give::{GiveError, Giver};

use super::{Process, budget::Pages, space::Space};
use crate::{
    arch::clock,
    threads::{self, WaitQueue},
};

/// Most pieces of memory that a process shares with a device at a time.
const SHARES_MAX: usize = 32;
/// Most interrupts of a device.
pub const INTERRUPTS_MAX: usize = 4;
/// Most BARs of a function.
const BARS: usize = 6;
/// How long the end of a process waits for others that change its device's group.
const BUSY_NS: u64 = 10_000_000_000;
/// How often it looks.
const BUSY_STEP_NS: u64 = 1_000_000;

/// A function that is a process's, until this is dropped.
pub struct Given {
    giver: Giver,
    domain: DmaDomain,
    dma: DmaDevice,
    fate: Arc<Fate>,
    device: Device,
    /// The function as it was found.
    found: Function,
    interrupts: Interrupts,
    lines: [Arc<Line>; INTERRUPTS_MAX],
    shares: [Option<Share>; SHARES_MAX],
    /// Its domain walks the table of the process.
    has_space: bool,
    /// The address space of the process that is to be started with it.
    space: Option<Space>,
    /// Which BARs the process sees.
    mapped: [bool; BARS],
    /// Of which it was said why nobody can.
    refused: [bool; BARS],
    /// Whether the process may make a block device of it, which takes threads and memory that cannot be refused.
    is_for_disk: bool,
    /// The block device that the process makes of it.
    service: Option<Service>,
}

/// What becomes of a device while a process has it.
struct Fate {
    /// It was taken away.
    is_lost: AtomicBool,
    /// The process gives it back: what comes now is no news to it.
    is_over: AtomicBool,
    /// Whose it is, once that has been started.
    process: spin::Once<Weak<Process>>,
}

impl Fate {
    /// It was taken from its process, whose end that is.
    fn lose(&self, function: PciAddress) {
        if self.is_over.load(SeqCst) || self.is_lost.swap(true, SeqCst) {
            return;
        }
        if let Some(process) = self.process.get().and_then(Weak::upgrade) {
            log::warn!("{process}: {function} was taken from it");
            process.kill();
        }
    }
}

/// How the function raises interrupts.
enum Interrupts {
    None,
    Msi(Msi),
    Msix(Msix),
}

impl Interrupts {
    /// Gives them back without touching the device, which may be somebody else's.
    fn abandon(self) {
        match self {
            Self::None => {}
            Self::Msi(msi) => msi.abandon(),
            Self::Msix(msix) => msix.abandon(),
        }
    }
}

/// One interrupt: whether it has come, and whom to wake. It has nothing of the process but where that waits, as what is
/// dropped in an interrupt may not be the last of anything that frees memory.
struct Line {
    arrived: AtomicBool,
    changed: spin::Once<Arc<WaitQueue>>,
}

impl host::Event for Line {
    fn signal(&self) {
        self.arrived.store(true, SeqCst);
        if let Some(changed) = self.changed.get() {
            changed.wake_all();
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

impl Given {
    /// Which function it is.
    pub fn function(&self) -> PciAddress {
        self.dma.function()
    }

    /// With the right to make a block device of it, for whoever has it then.
    #[must_use]
    pub fn for_disk(mut self) -> Self {
        self.is_for_disk = true;
        self
    }

    /// The address space that it has and the process is to have.
    pub fn take_space(&mut self) -> Option<Space> {
        self.space.take()
    }

    /// Whether it has the addresses of its process.
    pub fn has_space(&self) -> bool {
        self.has_space
    }

    /// Whether it was taken away.
    pub fn is_lost(&self) -> bool {
        self.fate.is_lost.load(SeqCst) || self.dma.was_taken_back()
    }

    /// Makes its interrupts wake `process`, whose end is a consequence of the device's quarantine.
    pub(super) fn belong_to(&self, process: &Arc<Process>) {
        for line in &self.lines {
            line.changed.call_once(|| process.changed.clone());
        }
        self.fate.process.call_once(|| Arc::downgrade(process));
        // It may have happened before there was somebody to tell.
        if self.is_lost() {
            process.kill();
        }
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

    /// Waits for one of `events`, as the process's thread. Those that came.
    pub(super) fn wait(&self, process: &Process, events: u64, deadline_ns: u64) -> Result<u64, Error> {
        let interrupts = (1 << self.interrupts()) - 1;
        let of_service = if self.service.is_some() { abi::EVENT_REQUEST | abi::EVENT_RESET } else { 0 };
        if events == 0 || events & !(interrupts | of_service) != 0 {
            return Err(Error::NoSuchEvent);
        }
        let mut came = 0;
        process.wait_in_kernel(deadline_ns, || {
            came = self.take_events(events);
            came != 0
        });
        Ok(came)
    }

    /// Those of `events` that are there. Interrupts are told once.
    fn take_events(&self, events: u64) -> u64 {
        let lines = (0..).zip(&self.lines).filter(|(number, _)| events & 1 << number != 0);
        let came =
            lines.filter(|(_, line)| line.arrived.swap(false, SeqCst)).map(|(number, _)| 1_u64 << number);
        let interrupts = came.sum::<u64>();
        let of_service = |event, is_so: fn(&Service) -> bool| {
            if events & event != 0 && self.service.as_ref().is_some_and(is_so) { event } else { 0 }
        };
        interrupts
            | of_service(abi::EVENT_REQUEST, Service::has_requests)
            | of_service(abi::EVENT_RESET, Service::is_to_reset)
    }

    /// A dword of its configuration space.
    pub fn config_read(&self, offset: u64) -> Result<u64, Error> {
        const BYTES: u16 = 4096;
        let offset = u16::try_from(offset).ok().filter(|&offset| offset < BYTES && offset.is_multiple_of(4));
        Ok(self.device.config().read32(offset.ok_or(Error::BadAddress)?).into())
    }

    /// How long a BAR is of which something can be mapped.
    pub fn bar_bytes(&mut self, index: u64) -> Result<u64, Error> {
        self.lendable(index).map(|(_, lendable)| lendable.range.bytes)
    }

    /// Shows the process a BAR.
    pub fn map_bar(&mut self, index: u64, space: &mut Space) -> Result<u64, Error> {
        let (index, lendable) = self.lendable(index)?;
        if self.mapped[index] {
            return Err(Error::InUse);
        }
        // SAFETY: of the process's device, where firmware or this kernel has placed it; it was checked to be nobody
        // else's, RAM least of all.
        let start = unsafe { space.map_bar(&lendable) }?;
        self.mapped[index] = true;
        Ok(start)
    }

    fn lendable(&mut self, index: u64) -> Result<(usize, Lendable), Error> {
        let index =
            u8::try_from(index).ok().filter(|&index| usize::from(index) < BARS).ok_or(Error::NotLendable)?;
        let lendable = match Lendable::of(&self.device, index) {
            Ok(lendable) => lendable,
            Err(error) => return Err(self.refuse(index, &error)),
        };
        if let Err(error) = self.giver.hotplug.check_registers(self.function(), lendable.range) {
            return Err(self.refuse(index, &error));
        }
        Ok((index.into(), lendable))
    }

    /// Says why nobody can see a BAR, once.
    fn refuse(&mut self, index: u8, why: &dyn fmt::Display) -> Error {
        if !core::mem::replace(&mut self.refused[usize::from(index)], true) {
            log::info!("{}: BAR {index} is not for processes: {why}", self.function());
        }
        Error::NotLendable
    }

    /// Lets it reach the memory that the process has at `address`.
    pub fn share(
        &mut self,
        address: u64,
        iova: u64,
        way: DeviceAccess,
        space: &mut Space,
    ) -> Result<(), Error> {
        if self.has_space {
            return Err(Error::SpaceShared);
        }
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
                    DmaError::IovaTaken { .. }
                    | DmaError::IovaReserved { .. }
                    | DmaError::IovaBeyond { .. }
                    | DmaError::IovaUnaligned { .. }
                    | DmaError::NoIova { .. } => Error::BadIova,
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
            // The program still sees pages that the kernel may get back any time now: it does not run again.
            self.fate.lose(self.dma.function());
            Error::DeviceLost
        })?;
        space.take_back(pages);
        Ok(())
    }
}

impl Given {
    /// Whether its function could be made quiet. Takes no memory.
    fn is_quiet(&self, function: PciAddress) -> bool {
        quiet::is_quiet(&self.giver.host, core::slice::from_ref(&self.found), &[function], function)
    }

    /// Has the function taken from its process, unless somebody has done so before: it may be another's by now.
    fn release(&self) -> Result<(), ReleaseError> {
        let deadline_ns = clock::now_ns() + BUSY_NS;
        let is_quiet = |function| self.is_quiet(function);
        loop {
            match self.dma.release(is_quiet) {
                Err(ReleaseError::Over { .. }) => return Ok(()),
                // It is just being put into quarantine, or others take it.
                Err(ReleaseError::Busy { .. }) if clock::now_ns() < deadline_ns => {
                    threads::sleep_until(clock::now_ns() + BUSY_STEP_NS);
                }
                result => return result,
            }
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.fate.is_over.store(true, SeqCst);
        // The device had no buffer of those who wait: they are told at once.
        if let Some(service) = &self.service {
            service.stop();
        }
        let interrupts = core::mem::replace(&mut self.interrupts, Interrupts::None);
        let released = self.release();
        // Nobody touches the function here: it may have another owner already.
        interrupts.abandon();
        if let Err(error) = released {
            log::error!("{} keeps what it could reach: {error}", self.function());
        }
        let shares = core::mem::replace(&mut self.shares, [const { None }; SHARES_MAX]);
        for share in shares.into_iter().flatten() {
            if matches!(released, Err(ReleaseError::Busy { .. })) {
                // Whoever takes it now has not begun: the domain would give back what the device may still write.
                core::mem::forget(share);
            } else if let Err(error) = share.memory.unmap() {
                log::debug!("{}: {error}", self.function());
            }
        }
        // A domain over the table of the process keeps that, if need be, until its function is quiet.
        if released.is_ok() || self.has_space {
            destroy(&self.domain);
        }
    }
}

/// Ends a domain: an empty one, or one over the space, which may have its device still.
fn destroy(domain: &DmaDomain) {
    if let Err(error) = domain.destroy() {
        log::warn!("{error}");
    }
}
