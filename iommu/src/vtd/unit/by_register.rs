//! Invalidation by register, for units without a queue.
//!
//! One command at a time, each awaited: slow, and good enough for the few old units that need it.

use super::{
    Unit,
    deadline::{COMMAND_TIMEOUT_NS, wait_until},
};
use crate::{
    Platform,
    dma::Stuck,
    vtd::{
        queue::{ContextScope, Invalidation, InvalidationError, IotlbScope},
        spec::{ContextCommand, Granularity, InvalidateAddress, IotlbCommand},
    },
};

impl<P: Platform> Unit<P> {
    pub(super) fn invalidate_by_register(
        &self,
        platform: &P,
        invalidation: &Invalidation,
    ) -> Result<(), InvalidationError> {
        let unit = self.index();
        match *invalidation {
            Invalidation::Context(scope) => Ok(self.invalidate_context(platform, scope)?),
            Invalidation::Pasid(_) => Err(InvalidationError::Unsupported { unit, what: "PASID cache" }),
            Invalidation::Iotlb(scope) => Ok(self.invalidate_iotlb(platform, scope)?),
            Invalidation::DeviceTlb { .. } => {
                Err(InvalidationError::Unsupported { unit, what: "device TLB" })
            }
            Invalidation::InterruptEntries(_) => {
                Err(InvalidationError::Unsupported { unit, what: "interrupt entries" })
            }
        }
    }

    fn invalidate_context(&self, platform: &P, scope: ContextScope) -> Result<(), Stuck> {
        let everything = ContextCommand::new().with_granularity(Granularity::Global as u8);
        let command = match scope {
            ContextScope::Global => everything,
            ContextScope::Domain(domain) => {
                ContextCommand::new().with_granularity(Granularity::Domain as u8).with_domain(domain.as_u16())
            }
            ContextScope::Device { domain, source, mask } => ContextCommand::new()
                .with_granularity(Granularity::Selective as u8)
                .with_domain(domain.as_u16())
                .with_source(source.requester)
                .with_function_mask(mask as u8),
        };
        if self.context_command(platform, command)? || self.context_command(platform, everything)? {
            return Ok(());
        }
        Err(self.hardware.mark_stuck())
    }

    /// Returns whether the unit accepted the command.
    fn context_command(&self, platform: &P, command: ContextCommand) -> Result<bool, Stuck> {
        self.hardware.check()?;
        let registers = &self.hardware.registers;
        let _claimed = self.commands.take(platform).ok_or_else(|| self.hardware.mark_stuck())?;
        registers.write(command.with_invalidate(true));
        let mut answer = command;
        let done = || {
            answer = registers.read();
            !answer.invalidate()
        };
        if !wait_until(platform, COMMAND_TIMEOUT_NS, done) {
            return Err(self.hardware.mark_stuck());
        }
        Ok(answer.actual() != 0)
    }

    fn invalidate_iotlb(&self, platform: &P, scope: IotlbScope) -> Result<(), Stuck> {
        let command = |granularity: Granularity| {
            IotlbCommand::new()
                .with_granularity(granularity as u8)
                .with_drain_reads(self.capability().drains_reads())
                .with_drain_writes(self.capability().drains_writes())
        };
        let everything = command(Granularity::Global);
        let (address, wanted) = match scope {
            IotlbScope::Global => (None, everything),
            IotlbScope::Domain(domain) => (None, command(Granularity::Domain).with_domain(domain.as_u16())),
            IotlbScope::Pages { domain, first, order, leaf_only } => {
                let address = InvalidateAddress::new()
                    .with_order(order)
                    .with_leaf_only(leaf_only)
                    .with_frame(first.as_u64() >> mm::PAGE_SHIFT);
                (Some(address), command(Granularity::Selective).with_domain(domain.as_u16()))
            }
        };
        if self.iotlb_command(platform, address, wanted)? || self.iotlb_command(platform, None, everything)? {
            return Ok(());
        }
        Err(self.hardware.mark_stuck())
    }

    /// Returns whether the unit accepted the command.
    fn iotlb_command(
        &self,
        platform: &P,
        address: Option<InvalidateAddress>,
        command: IotlbCommand,
    ) -> Result<bool, Stuck> {
        self.hardware.check()?;
        let (registers, area) = (&self.hardware.registers, self.capability().invalidate_area());
        let _claimed = self.commands.take(platform).ok_or_else(|| self.hardware.mark_stuck())?;
        if let Some(address) = address {
            registers.write_invalidate(area, address);
        }
        registers.write_invalidate(area, command.with_invalidate(true));
        let mut answer = command;
        let done = || {
            answer = registers.read_invalidate(area);
            !answer.invalidate()
        };
        if !wait_until(platform, COMMAND_TIMEOUT_NS, done) {
            return Err(self.hardware.mark_stuck());
        }
        Ok(answer.actual() != 0)
    }
}
