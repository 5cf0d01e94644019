//! One remapping unit: found, brought up, commanded, and given up when it stops answering.
//!
//! Bring-up goes in an order in which the unit never uses a table or a cache that is not right: see [`Unit::bring_up`].
//! Translation is turned on by a separate call, last, after every table of every unit is in place. Until then memory is
//! as open to bus masters as without a unit: what firmware had translated is not, from when its translation is turned
//! off. The host sees to it that there are none, but for devices that need reserved memory, and what firmware protects
//! by other means (PMEN) stays so until translation is on.
//!
//! A unit that does not do what it was told within its deadline is *stuck* for good: every later request fails at once,
//! and what the unit may still reach stays pinned. Nothing here tries again behind the caller's back.

mod bring_up;
mod by_register;
mod claim;
mod command;
mod deadline;
mod error;
mod events;
mod hardware;
#[cfg(test)]
mod tests;

use core::{fmt, sync::atomic::AtomicU64};

use mm::{PhysAddr, PhysRange};

pub(super) use self::hardware::Hardware;
pub use self::{
    bring_up::{BringUp, InterruptSetup},
    error::{BringUpError, CommandError, DiscoverError},
};
use self::{claim::Claim, command::Command};
use super::{
    capability::{Capability, FIRST_PAGE_BYTES},
    fault::EventRate,
    format::FIRST_STAGE_BITS,
    mode::{TableStage, TranslationMode},
    queue::{
        Invalidation, InvalidationError, IotlbScope, Queue, QueueReport, QueueStatistics, Stage, Ticket,
    },
    registers::Bank,
    remap::InterruptTable,
    spec::{AddressWidth, FaultStatus, GlobalStatus, RootTableAddress},
};
use crate::{
    Platform,
    dma::Stuck,
    platform::{LockClass, Registers},
    sync::IrqLock,
};

/// Where firmware says that a unit is (DRHD), and what it can reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Physical address of its registers.
    pub base: PhysAddr,
    /// PCI segment that it serves.
    pub segment: u16,
    /// Width of the addresses that it can put out (host address width of the DMAR table), in bits. Its tables lie
    /// below.
    pub host_address_bits: u8,
}

/// One remapping unit.
pub struct Unit<P: Platform> {
    pub(super) hardware: Hardware<P::Registers>,
    commands: Claim,
    /// Legacy until it is brought up.
    mode: TranslationMode,
    pub(super) queue: Option<Queue>,
    interrupts: Option<InterruptTable>,
    /// Held by whoever drains the fault records.
    pub(super) draining: IrqLock<EventRate>,
    /// How often the fault records were full.
    pub(super) overflows: AtomicU64,
}

impl<P: Platform> Unit<P> {
    /// Maps the registers of unit number `index` and learns what it can do. The unit is left as it is.
    ///
    /// # Errors
    /// [`DiscoverError`] if there is no unit at the address, or what it says of itself makes no sense.
    pub fn discover(platform: &P, index: usize, location: Location) -> Result<Self, DiscoverError> {
        let base = location.base;
        if base.as_u64() == 0 || !base.is_aligned(mm::PAGE_BYTES) {
            return Err(DiscoverError::BadBase { base });
        }
        let first = Bank::new(map(platform, base, FIRST_PAGE_BYTES)?);
        let capability = Capability::decode(first.read(), first.read(), first.read())
            .map_err(|error| DiscoverError::Capability { base, error })?;
        let bytes = capability.register_bytes();
        let registers = if bytes > FIRST_PAGE_BYTES { Bank::new(map(platform, base, bytes)?) } else { first };
        Ok(Self {
            hardware: Hardware::new(index, location, capability, registers),
            commands: Claim::new(),
            mode: TranslationMode::Legacy,
            queue: None,
            interrupts: None,
            draining: IrqLock::new(LockClass::FaultRecords, EventRate::new()),
            overflows: AtomicU64::new(0),
        })
    }

    /// Its index among the units of the machine.
    pub fn index(&self) -> usize {
        self.hardware.index
    }

    /// The PCI segment that it serves.
    pub fn segment(&self) -> u16 {
        self.hardware.segment
    }

    /// Physical address of its registers.
    pub fn base(&self) -> PhysAddr {
        self.hardware.base
    }

    /// All of its registers.
    pub fn registers(&self) -> PhysRange {
        PhysRange::new(self.base(), self.capability().register_bytes() as u64)
    }

    /// What it can do.
    pub fn capability(&self) -> &Capability {
        &self.hardware.capability
    }

    /// Width in bits of the addresses that its page tables translate; 0 if it has none.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        match self.mode.stage() {
            TableStage::First => FIRST_STAGE_BITS.min(self.capability().address_bits()),
            TableStage::Second => self.capability().fitting_width().map_or(0, AddressWidth::bits),
        }
    }

    /// Which tables it walks.
    pub fn mode(&self) -> TranslationMode {
        self.mode
    }

    /// Whether it remembers that a leaf was not there (CAP.CM), so that a new one must be invalidated. Of the first
    /// stage no unit does.
    pub fn caches_missing_leaves(&self) -> bool {
        self.capability().caches_not_present() && self.mode.stage() == TableStage::Second
    }

    /// Whether it has stopped answering.
    pub fn is_stuck(&self) -> bool {
        self.hardware.is_stuck()
    }

    /// GSTS as it reads now.
    pub fn read_global_status(&self) -> GlobalStatus {
        self.hardware.registers.read()
    }

    /// RTADDR as it reads now.
    pub fn read_root_table_address(&self) -> RootTableAddress {
        self.hardware.registers.read()
    }

    /// FSTS as it reads now.
    pub fn read_fault_status(&self) -> FaultStatus {
        self.hardware.registers.read()
    }

    /// Its interrupt-remapping table, if interrupts are remapped.
    pub fn interrupts(&self) -> Option<&InterruptTable> {
        self.interrupts.as_ref()
    }

    /// What the invalidation queue has done so far; `None` without a queue.
    pub fn queue_statistics(&self, platform: &P) -> Option<QueueStatistics> {
        self.queue.as_ref().map(|queue| queue.statistics(platform))
    }

    /// The oldest report of an error of the invalidation queue that nobody has taken yet.
    pub fn take_queue_report(&self, platform: &P) -> Option<QueueReport> {
        self.queue.as_ref()?.take_report(platform)
    }

    /// Starts the invalidations in `batch`, in one go. With the queue, they are under way when this returns; without
    /// it, they are done.
    ///
    /// IOTLB invalidations follow those of the context cache, and device TLBs follow both, wherever they stand in the
    /// batch. The caller holds no lock.
    ///
    /// # Errors
    /// [`InvalidationError`]; nothing may be taken for invalidated then.
    #[inline]
    pub fn submit<'a>(
        &'a self,
        platform: &P,
        batch: &'a [Invalidation],
    ) -> Result<Ticket<'a, P>, InvalidationError> {
        match &self.queue {
            Some(queue) => Ticket::submit(platform, &self.hardware, queue, batch),
            None => {
                for stage in Stage::ALL {
                    let mut of_stage = batch.iter().filter(|invalidation| invalidation.stage() == stage);
                    of_stage
                        .try_for_each(|invalidation| self.invalidate_by_register(platform, invalidation))?;
                }
                Ok(Ticket::done())
            }
        }
    }

    /// Carries out the invalidations in `batch`; when this returns, nothing of them is cached any more.
    ///
    /// # Errors
    /// [`InvalidationError`]; see [`Ticket::wait`].
    #[inline]
    pub fn invalidate(&self, platform: &P, batch: &[Invalidation]) -> Result<(), InvalidationError> {
        match &self.queue {
            Some(queue) => queue.carry_out(platform, &self.hardware, batch),
            None => self.submit(platform, batch)?.wait(platform),
        }
    }

    /// The same for translations alone: at most [`MAX_PAGE_DESCRIPTORS`](super::MAX_PAGE_DESCRIPTORS) scopes.
    ///
    /// # Errors
    /// Those of [`invalidate`](Self::invalidate).
    #[inline(always)]
    pub fn forget(&self, platform: &P, scopes: &[IotlbScope]) -> Result<(), InvalidationError> {
        match &self.queue {
            Some(queue) => queue.forget(platform, &self.hardware, scopes),
            None => scopes
                .iter()
                .try_for_each(|&scope| self.invalidate_by_register(platform, &Invalidation::Iotlb(scope))),
        }
    }

    /// Makes hardware see entries that were not present before (CAP.RWBF). Does nothing on most units.
    ///
    /// # Errors
    /// [`Stuck`] if the unit does not answer.
    pub fn flush_write_buffer(&self, platform: &P) -> Result<(), Stuck> {
        if !self.capability().needs_write_buffer_flush() {
            return Ok(());
        }
        self.hardware.check()?;
        self.command(platform, Command::FlushWriteBuffer).map_err(|_| self.hardware.stuck())
    }
}

impl<P: Platform> fmt::Debug for Unit<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("index", &self.index())
            .field("segment", &self.segment())
            .field("base", &self.base())
            .field("stuck", &self.is_stuck())
            .finish_non_exhaustive()
    }
}

fn map<P: Platform>(platform: &P, base: PhysAddr, bytes: usize) -> Result<P::Registers, DiscoverError> {
    let registers = platform.map_registers(base, bytes).ok_or(DiscoverError::NotMapped { base, bytes })?;
    if registers.bytes() < bytes {
        return Err(DiscoverError::NotMapped { base, bytes });
    }
    Ok(registers)
}
