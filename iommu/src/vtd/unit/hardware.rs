//! What every part of a unit's driver needs: its registers, and whether it still answers.

use core::sync::atomic::{AtomicBool, Ordering};

use mm::PhysAddr;

use super::Location;
use crate::{
    dma::Stuck,
    reach::HostWidth,
    vtd::{capability::Capability, mode::TableStage, registers::Bank},
};

/// The registers of a unit and what is known of it.
pub(in crate::vtd) struct Hardware<R> {
    pub index: usize,
    pub segment: u16,
    pub base: PhysAddr,
    pub capability: Capability,
    /// What its page tables are, from bring-up on.
    pub stage: TableStage,
    /// What it can put out: where its tables may lie.
    pub width: HostWidth,
    pub registers: Bank<R>,
    /// Set once and never cleared: the unit missed a deadline, or is gone.
    stuck: AtomicBool,
}

impl<R> Hardware<R> {
    pub fn new(index: usize, location: Location, capability: Capability, registers: Bank<R>) -> Self {
        let Location { base, segment, host_address_bits } = location;
        let (width, stuck) = (HostWidth(host_address_bits), AtomicBool::new(false));
        let stage = TableStage::Second;
        Self { index, segment, base, capability, stage, width, registers, stuck }
    }

    #[inline]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// Gives the unit up.
    pub fn mark_stuck(&self) -> Stuck {
        self.stuck.store(true, Ordering::Release);
        self.stuck()
    }

    /// The error of a unit that does not answer.
    pub fn stuck(&self) -> Stuck {
        Stuck { unit: self.index }
    }

    /// Fails at once if the unit was given up.
    #[inline]
    pub fn check(&self) -> Result<(), Stuck> {
        if self.is_stuck() { Err(self.stuck()) } else { Ok(()) }
    }
}
