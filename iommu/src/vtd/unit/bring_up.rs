//! From whatever firmware left to a unit that translates.

use mm::PhysAddr;

use super::{
    BringUpError, Unit,
    command::Command,
    deadline::{COMMAND_TIMEOUT_NS, wait_until},
};
use crate::{
    Platform,
    platform::Event,
    vtd::{
        mode::{TableStage, TranslationMode},
        queue::{InterruptScope, Invalidation, Queue},
        remap::InterruptTable,
        spec::{QueueHead, QueueTail, RootTableAddress},
    },
};

/// How a unit is to be brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BringUp {
    /// The root table, written back if the unit does not snoop.
    pub root: PhysAddr,
    /// What its entries look like. Scalable mode takes the queue.
    pub mode: TranslationMode,
    /// Use the invalidation queue if there is one.
    pub queue: bool,
    /// log2 of the number of its pages: see [`Options::queue_order`](crate::Options::queue_order).
    pub queue_order: u8,
    /// Remap interrupts, if the unit can.
    pub interrupts: Option<InterruptSetup>,
}

/// How interrupts are to be remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptSetup {
    /// log2 of the number of entries: 8 to 16.
    pub entries_order: u8,
    /// The CPUs' local APICs are in x2APIC mode: use destinations of 32 bits, if the unit has them.
    pub x2apic: bool,
}

impl<P: Platform> Unit<P> {
    /// Takes the unit over from firmware and makes it ready, with translation off:
    ///
    /// events masked - firmware's fault log off - old faults forgotten - queue, interrupt remapping and translation
    /// off - faults forgotten again - write buffer flushed - queue on - root table set and everything cached
    /// forgotten - write buffer flushed, interrupt remapping on, if asked for - fault events on.
    ///
    /// The queue comes before the root table because some units cannot invalidate by register, or do not finish doing
    /// so, without it.
    ///
    /// From here on until [`enable_translation`](Self::enable_translation) the unit keeps no device from memory,
    /// whatever firmware had it do. The host has turned bus mastering off on every endpoint that it can do without:
    /// those that firmware reserved memory for go on.
    ///
    /// # Errors
    /// [`BringUpError`]; the unit must not be used then, except to [`withdraw`](Self::withdraw) it, and nothing given
    /// to it may be used for anything else.
    ///
    /// # Safety
    /// From the moment that translation is on until the unit is shut down, the tables below [`BringUp::root`] are all
    /// that keeps devices from memory: they exist, belong to nobody else, and lead only to memory that devices may
    /// reach.
    pub unsafe fn bring_up(&mut self, platform: &P, how: &BringUp) -> Result<(), BringUpError> {
        self.mode = how.mode;
        self.hardware.stage = how.mode.stage();
        self.take_over(platform)?;
        self.flush_write_buffer(platform)?;
        if how.queue && self.capability().has_queue() {
            self.start_queue(platform, how)?;
        } else if !self.capability().has_register_invalidation() {
            return Err(BringUpError::NoInvalidation { unit: self.index() });
        }
        self.set_root(platform, how.root)?;
        if let Some(setup) = how.interrupts
            && self.capability().has_interrupt_remapping()
            && self.queue.is_some()
        {
            self.start_interrupt_remapping(platform, setup)?;
        }
        let event = Event::Fault { unit: self.index() };
        let message = platform.allocate_vector(event).ok_or(BringUpError::NoVector { unit: self.index() })?;
        self.enable_fault_events(message);
        Ok(())
    }

    /// Turns translation on, then lets DMA into the memory that firmware protected until now.
    ///
    /// # Errors
    /// [`BringUpError`]; the devices behind the unit must not become bus masters then.
    pub fn enable_translation(&self, platform: &P) -> Result<(), BringUpError> {
        let has_tables = self.mode.stage() == TableStage::First || self.capability().widest().is_some();
        if !has_tables {
            let first_stage = self.capability().has_scalable_mode() && self.capability().has_first_stage();
            return Err(BringUpError::NoTranslation { unit: self.index(), first_stage });
        }
        self.hardware.check()?;
        self.command(platform, Command::Translation(true))?;
        self.release_protected_memory(platform)?;
        Ok(())
    }

    /// Turns everything off, for another kernel to take over. No device is a bus master at this time. The unit takes no
    /// requests afterwards.
    ///
    /// # Errors
    /// [`BringUpError`] if the unit does not obey.
    pub fn shut_down(&self, platform: &P) -> Result<(), BringUpError> {
        self.turn_off(platform)?;
        self.release_protected_memory(platform)?;
        Ok(())
    }

    /// Turns off again what is on, because the machine's units do not all come up: the host goes on with interrupts
    /// that nobody remaps, and nobody would take the unit's events. What firmware protects stays so, as far as it was
    /// not let go ([`enable_translation`](Self::enable_translation)). A unit that does not obey stays as it is.
    pub fn withdraw(&self, platform: &P) {
        let status = self.read_global_status();
        if !status.translation() && !status.interrupt_remapping() && !status.queued_invalidation() {
            return;
        }
        if let Err(error) = self.turn_off(platform) {
            log::error!("{error}: remapping unit {} stays on", self.index());
        }
    }

    fn turn_off(&self, platform: &P) -> Result<(), BringUpError> {
        self.hardware.check()?;
        self.invalidate(platform, self.mode.everything())?;
        if self.interrupts.is_some() {
            self.invalidate(platform, &INTERRUPTS)?;
        }
        self.hardware.mark_stuck();
        self.mask_events();
        let status = self.read_global_status();
        if status.translation() {
            self.command(platform, Command::Translation(false))?;
        }
        if status.interrupt_remapping() {
            self.command(platform, Command::InterruptRemapping(false))?;
        }
        if status.queued_invalidation() {
            self.drain_queue(platform);
            self.command(platform, Command::Queue(false))?;
        }
        Ok(())
    }

    /// Turns off what firmware, or a kernel before this one, left on.
    fn take_over(&self, platform: &P) -> Result<(), BringUpError> {
        self.mask_events();
        let status = self.read_global_status();
        // The first command, because every other one would change this bit too.
        if status.advanced_fault_log() {
            self.command(platform, Command::AdvancedFaultLogOff)?;
        }
        // An error stops the queue, which would not come to its end then, and some units turn off none that has not.
        self.clear_faults();
        if status.queued_invalidation() {
            self.drain_queue(platform);
            self.command(platform, Command::Queue(false))?;
        }
        if status.interrupt_remapping() {
            self.command(platform, Command::InterruptRemapping(false))?;
        }
        if status.translation() {
            self.command(platform, Command::Translation(false))?;
        }
        // Once more, for what came meanwhile.
        self.clear_faults();
        Ok(())
    }

    /// Lets the hardware finish what is in the queue. One that does not is turned off all the same: whether it obeys,
    /// the command that follows finds out.
    fn drain_queue(&self, platform: &P) {
        let registers = &self.hardware.registers;
        let empty = || registers.read::<QueueHead>().units() == registers.read::<QueueTail>().units();
        wait_until(platform, COMMAND_TIMEOUT_NS, empty);
    }

    fn start_queue(&mut self, platform: &P, how: &BringUp) -> Result<(), BringUpError> {
        let queue = Queue::new(platform, &self.hardware, how.queue_order, how.mode.is_scalable())
            .map_err(|error| BringUpError::of_table(self.index(), error))?;
        self.hardware.registers.write(QueueTail::new());
        self.hardware.registers.write(queue.address());
        self.command(platform, Command::Queue(true))?;
        self.queue = Some(queue);
        Ok(())
    }

    fn set_root(&self, platform: &P, root: PhysAddr) -> Result<(), BringUpError> {
        self.hardware.registers.write(RootTableAddress::at(root, self.mode.table()));
        self.command(platform, Command::SetRootTable)?;
        if !self.capability().set_root_invalidates() {
            self.invalidate(platform, self.mode.everything())?;
        }
        Ok(())
    }

    fn start_interrupt_remapping(&mut self, platform: &P, setup: InterruptSetup) -> Result<(), BringUpError> {
        let InterruptSetup { entries_order, x2apic } = setup;
        let table = InterruptTable::new(platform, &self.hardware, entries_order, x2apic)
            .map_err(|error| BringUpError::of_table(self.index(), error))?;
        // A unit that forgets by itself is told nothing else that would have it see the new table.
        self.flush_write_buffer(platform)?;
        self.hardware.registers.write(table.register());
        self.command(platform, Command::SetInterruptTable)?;
        if !self.capability().set_interrupt_table_invalidates() {
            self.invalidate(platform, &INTERRUPTS)?;
        }
        self.command(platform, Command::InterruptRemapping(true))?;
        if self.read_global_status().compatibility_interrupts() {
            self.command(platform, Command::BlockCompatibilityInterrupts)?;
        }
        self.interrupts = Some(table);
        Ok(())
    }
}

/// The cache of interrupt entries.
const INTERRUPTS: [Invalidation; 1] = [Invalidation::InterruptEntries(InterruptScope::Global)];
