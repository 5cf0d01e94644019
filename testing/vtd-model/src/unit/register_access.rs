//! Reads and writes of registers.

use super::Unit;
use crate::{
    complaints::Rule,
    entries::bits,
    faults::status,
    registers::{Located, Register, locate},
    world::World,
};

/// The version register: bits 3:0 minor, 7:4 major.
const ALL_ONES: u64 = u64::MAX;

impl Unit {
    /// Lets everything happen that is due.
    pub fn advance(&mut self, world: &mut World) {
        self.advance_commands(world);
        self.advance_queue(world);
    }

    /// A read of `width` bytes, 4 or 8.
    pub fn read(&mut self, world: &mut World, offset: usize, width: usize) -> u64 {
        if self.misbehaviour.gone {
            return ALL_ONES >> (64 - 8 * width);
        }
        self.advance(world);
        let Some(located) = self.check_access(world, offset, width) else { return 0 };
        let half = if located.bytes == 16 { located.at / 8 } else { 0 };
        let value = self.value(world, located.register, half);
        let shift = located.at % 8 * 8;
        value >> shift & ALL_ONES >> (64 - 8 * width)
    }

    /// A write of `width` bytes, 4 or 8.
    pub fn write(&mut self, world: &mut World, offset: usize, width: usize, value: u64) {
        self.writes += 1;
        if self.misbehaviour.gone {
            return;
        }
        self.advance(world);
        let Some(located) = self.check_access(world, offset, width) else { return };
        let low_half_only = located.bytes == 8 && width == 4 && located.at == 0;
        let high_half_only = located.bytes == 8 && width == 4 && located.at == 4;
        if high_half_only && self.half_written != Some(offset - 4) {
            self.complain(
                world,
                Rule::AccessWidth,
                format!("high half of {:?} before the low one", located.register),
            );
        }
        self.half_written = low_half_only.then_some(offset);
        if located.bytes == 16 {
            self.write_record(world, located, width, value);
        } else if low_half_only || high_half_only {
            let old = self.stored(located.register);
            let merged =
                if low_half_only { old & !bits(31, 0) | value } else { old & bits(31, 0) | value << 32 };
            self.store(world, located.register, merged);
        } else {
            self.store(world, located.register, value);
        }
    }

    fn check_access(&self, world: &World, offset: usize, width: usize) -> Option<Located> {
        let located = locate(&self.config, offset);
        match located {
            None => self.complain(world, Rule::NoSuchRegister, format!("{width} bytes at {offset:#x}")),
            Some(located) if !located.allows(width) || !offset.is_multiple_of(width) => {
                let text = format!("{width} bytes at {offset:#x} of {:?}", located.register);
                self.complain(world, Rule::AccessWidth, text);
                return None;
            }
            Some(_) => {}
        }
        located
    }

    /// What a read gives. `half` selects the qword of a fault record.
    fn value(&self, world: &World, register: Register, half: usize) -> u64 {
        match register {
            Register::Version => self.config.version.into(),
            Register::Capability => self.misbehaviour.capability.map_or(self.config.cap(), |c| c.0),
            Register::ExtendedCapability => self.misbehaviour.capability.map_or(self.config.ecap(), |c| c.1),
            Register::GlobalCommand | Register::InvalidateAddress => {
                self.complain(world, Rule::AccessWidth, format!("read of {register:?}, which is write-only"));
                0
            }
            Register::GlobalStatus => self.status.into(),
            Register::FaultStatus => self.faults.status().into(),
            Register::FaultControl => self.fault_event.control().into(),
            Register::PageControl => self.page_event.control().into(),
            Register::CompletionStatus => self.completed.into(),
            Register::CompletionControl => self.completion_event.control().into(),
            Register::QueueHead => self.queue.head_register(),
            Register::QueueTail => self.queue.tail_register(),
            Register::QueueError => self.queue.error_register(),
            Register::FaultRecord(index) => self.faults.read(index, half),
            Register::ProtectedEnable => {
                u64::from(self.protection_requested) << 31 | u64::from(self.protection)
            }
            stored => self.stored(stored),
        }
    }

    /// The registers that simply keep what was written.
    fn stored(&self, register: Register) -> u64 {
        match register {
            Register::RootAddress => self.root_address,
            Register::ContextCommand => self.commands.context_register,
            Register::IotlbInvalidate => self.commands.iotlb_register,
            Register::InvalidateAddress => self.commands.address_register,
            Register::FaultData => self.fault_event.data.into(),
            Register::FaultAddress => self.fault_event.address.into(),
            Register::FaultUpperAddress => self.fault_event.upper_address.into(),
            Register::CompletionData => self.completion_event.data.into(),
            Register::CompletionAddress => self.completion_event.address.into(),
            Register::CompletionUpperAddress => self.completion_event.upper_address.into(),
            Register::ProtectedLowBase => self.protected[0],
            Register::ProtectedLowLimit => self.protected[1],
            Register::ProtectedHighBase => self.protected[2],
            Register::ProtectedHighLimit => self.protected[3],
            Register::QueueTail => self.queue.tail_register(),
            Register::QueueAddress => self.queue.address,
            Register::InterruptTable => self.interrupt_address,
            _ => 0,
        }
    }

    fn store(&mut self, world: &mut World, register: Register, value: u64) {
        let dword = value as u32;
        match register {
            Register::GlobalCommand => self.write_global_command(world, dword),
            Register::RootAddress => self.root_address = value,
            Register::ContextCommand => self.write_context_command(world, value),
            Register::IotlbInvalidate => self.write_iotlb_command(world, value),
            Register::InvalidateAddress => self.commands.address_register = value,
            Register::FaultStatus => self.write_fault_status(world, dword),
            Register::FaultControl => {
                self.check_control(world, dword);
                let message = self.fault_event.set_control(dword);
                Self::send(world, message);
            }
            Register::CompletionControl => {
                self.check_control(world, dword);
                let message = self.completion_event.set_control(dword);
                Self::send(world, message);
            }
            Register::PageControl => {
                self.check_control(world, dword);
                let message = self.page_event.set_control(dword);
                Self::send(world, message);
            }
            Register::CompletionStatus => {
                if dword & 1 != 0 {
                    self.completed = false;
                    self.completion_event.causes_gone();
                }
            }
            Register::ProtectedEnable => {
                self.protection_requested = dword >> 31 != 0;
                self.write_protection(world, dword);
            }
            Register::QueueTail => self.write_tail(world, value),
            Register::QueueAddress => self.queue.address = value,
            Register::InterruptTable => self.interrupt_address = value,
            message => self.write_message(world, message, dword),
        }
    }

    /// The registers that hold the messages of the two events.
    fn write_message(&mut self, world: &World, register: Register, value: u32) {
        let fine = match register {
            Register::FaultData | Register::CompletionData => value >> 16 == 0,
            Register::FaultAddress | Register::CompletionAddress => value >> 20 == 0xfee && value & 3 == 0,
            Register::FaultUpperAddress | Register::CompletionUpperAddress => self.config.eim || value == 0,
            _ => {
                self.complain(world, Rule::AccessWidth, format!("write of {register:?}, which is read-only"));
                return;
            }
        };
        if !fine {
            self.complain(world, Rule::EventMessage, format!("{register:?} = {value:#x}"));
        }
        match register {
            Register::FaultData => self.fault_event.data = value,
            Register::FaultAddress => self.fault_event.address = value,
            Register::FaultUpperAddress => self.fault_event.upper_address = value,
            Register::CompletionData => self.completion_event.data = value,
            Register::CompletionAddress => self.completion_event.address = value,
            _ => self.completion_event.upper_address = value,
        }
    }

    /// Only the mask of an event's control register can be written; the pending bit may be written back as read.
    fn check_control(&self, world: &World, value: u32) {
        if u64::from(value) & bits(29, 0) != 0 {
            self.complain(world, Rule::ReservedBits, format!("event control {value:#x}"));
        }
    }

    fn write_fault_status(&mut self, world: &World, value: u32) {
        let log = if self.config.advanced_fault_log { status::LOG_OVERFLOW | status::LOG_PENDING } else { 0 };
        if value & !(status::CLEARABLE | log) != 0 {
            self.complain(
                world,
                Rule::FaultStatus,
                format!("FSTS = {value:#x}: only PFO, IQE, ICE, ITE clear"),
            );
        }
        self.faults.clear_status(value);
        self.settle_fault_event();
    }

    fn write_record(&mut self, world: &World, located: Located, width: usize, value: u64) {
        let Register::FaultRecord(index) = located.register else { return };
        let upper = match (located.at, width) {
            (8, 8) => value,
            (12, 4) => value << 32,
            _ => 0,
        };
        if upper >> 63 == 0 {
            self.complain(world, Rule::FaultStatus, format!("fault record {index} written without F = 1"));
        }
        self.faults.clear_record(index, upper);
        self.settle_fault_event();
    }

    fn settle_fault_event(&mut self) {
        if !self.faults.any_pending() {
            self.fault_event.causes_gone();
        }
    }
}
