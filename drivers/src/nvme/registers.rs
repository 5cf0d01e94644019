//! The controller's registers.

use nvme_spec::registers::{Capabilities, offset};

use crate::mmio::{Mmio, OutsideWindow, ReadOnly, Register, WriteOnly};

/// The registers in front of the doorbells.
pub struct Registers {
    pub capabilities: Register<u64, ReadOnly>,
    pub version: Register<u32, ReadOnly>,
    pub configuration: Register<u32>,
    pub status: Register<u32, ReadOnly>,
    pub admin_attributes: Register<u32>,
    pub admin_submission: Register<u64>,
    pub admin_completion: Register<u64>,
    pub memory_size: Register<u32, ReadOnly>,
}

impl Registers {
    pub fn at(bar: &Mmio) -> Result<Self, OutsideWindow> {
        Ok(Self {
            capabilities: bar.register(offset::CAPABILITIES)?,
            version: bar.register(offset::VERSION)?,
            configuration: bar.register(offset::CONFIGURATION)?,
            status: bar.register(offset::STATUS)?,
            admin_attributes: bar.register(offset::ADMIN_ATTRIBUTES)?,
            admin_submission: bar.register(offset::ADMIN_SUBMISSION)?,
            admin_completion: bar.register(offset::ADMIN_COMPLETION)?,
            memory_size: bar.register(offset::CONTROLLER_MEMORY_SIZE)?,
        })
    }
}

/// The doorbells of one queue pair.
pub struct Doorbells {
    pub submission_tail: Register<u32, WriteOnly>,
    pub completion_head: Register<u32, WriteOnly>,
}

impl Doorbells {
    pub fn at(bar: &Mmio, capabilities: Capabilities, queue: u16) -> Result<Self, OutsideWindow> {
        let (at, stride) = (capabilities.doorbell(queue), capabilities.doorbell_stride());
        Ok(Self { submission_tail: bar.register(at)?, completion_head: bar.register(at + stride)? })
    }
}
