//! The one place that writes GCMD and PMEN.

use super::{
    Unit,
    deadline::{COMMAND_TIMEOUT_NS, wait_until},
    error::CommandError,
};
use crate::{
    Platform,
    vtd::spec::{GlobalCommand, GlobalStatus, ProtectedMemoryEnable},
};

/// A change of one bit of GCMD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    Translation(bool),
    Queue(bool),
    InterruptRemapping(bool),
    BlockCompatibilityInterrupts,
    SetRootTable,
    SetInterruptTable,
    FlushWriteBuffer,
    /// Faults go to the fault recording registers.
    AdvancedFaultLogOff,
}

impl Command {
    /// `command` with the bit changed.
    fn apply(self, command: GlobalCommand) -> GlobalCommand {
        match self {
            Self::Translation(on) => command.with_translation(on),
            Self::Queue(on) => command.with_queued_invalidation(on),
            Self::InterruptRemapping(on) => command.with_interrupt_remapping(on),
            Self::BlockCompatibilityInterrupts => command.with_compatibility_interrupts(false),
            Self::SetRootTable => command.with_set_root_table(true),
            Self::SetInterruptTable => command.with_set_interrupt_table(true),
            Self::FlushWriteBuffer => command.with_write_buffer_flush(true),
            Self::AdvancedFaultLogOff => command.with_advanced_fault_log(false),
        }
    }

    fn is_done(self, status: GlobalStatus) -> bool {
        match self {
            Self::Translation(on) => status.translation() == on,
            Self::Queue(on) => status.queued_invalidation() == on,
            Self::InterruptRemapping(on) => status.interrupt_remapping() == on,
            Self::BlockCompatibilityInterrupts => !status.compatibility_interrupts(),
            Self::SetRootTable => status.root_table_set(),
            Self::SetInterruptTable => status.interrupt_table_set(),
            Self::FlushWriteBuffer => !status.write_buffer_busy(),
            Self::AdvancedFaultLogOff => !status.advanced_fault_log(),
        }
    }

    /// The bit of GSTS that tells.
    fn bit(self) -> &'static str {
        match self {
            Self::Translation(_) => "TES",
            Self::Queue(_) => "QIES",
            Self::InterruptRemapping(_) => "IRES",
            Self::BlockCompatibilityInterrupts => "CFIS",
            Self::SetRootTable => "RTPS",
            Self::SetInterruptTable => "IRTPS",
            Self::FlushWriteBuffer => "WBFS",
            Self::AdvancedFaultLogOff => "AFLS",
        }
    }
}

/// What a register reads as when nothing answers.
const ABSENT: u32 = u32::MAX;

impl<P: Platform> Unit<P> {
    /// Carries `command` out and waits for the status bit that tells so. Everything else stays as it is, and one-shot
    /// bits are never repeated.
    pub(super) fn command(&self, platform: &P, command: Command) -> Result<(), CommandError> {
        let unit = self.index();
        let registers = &self.hardware.registers;
        let result = (|| {
            let _claimed = self.commands.take(platform).ok_or(CommandError::Busy { unit })?;
            let before: GlobalStatus = registers.read();
            if before.into_bits() == ABSENT {
                return Err(CommandError::Gone { unit });
            }
            registers.write(command.apply(before.unchanged()));
            let done = || {
                let status: GlobalStatus = registers.read();
                status.into_bits() != ABSENT && command.is_done(status)
            };
            if wait_until(platform, COMMAND_TIMEOUT_NS, done) {
                Ok(())
            } else {
                Err(CommandError::Timeout { unit, register: "GSTS", bit: command.bit() })
            }
        })();
        self.give_up_on(result)
    }

    /// Lets DMA into the regions that firmware blocked.
    pub(super) fn release_protected_memory(&self, platform: &P) -> Result<(), CommandError> {
        if !self.capability().has_protected_memory() {
            return Ok(());
        }
        let unit = self.index();
        let registers = &self.hardware.registers;
        let result = (|| {
            let _claimed = self.commands.take(platform).ok_or(CommandError::Busy { unit })?;
            let before: ProtectedMemoryEnable = registers.read();
            if !before.enable() && !before.active() {
                return Ok(());
            }
            registers.write(ProtectedMemoryEnable::new().with_enable(false));
            let released = || !registers.read::<ProtectedMemoryEnable>().active();
            if wait_until(platform, COMMAND_TIMEOUT_NS, released) {
                Ok(())
            } else {
                Err(CommandError::Timeout { unit, register: "PMEN", bit: "PRS" })
            }
        })();
        self.give_up_on(result)
    }

    fn give_up_on(&self, result: Result<(), CommandError>) -> Result<(), CommandError> {
        result.inspect_err(|_| {
            self.hardware.mark_stuck();
        })
    }
}
