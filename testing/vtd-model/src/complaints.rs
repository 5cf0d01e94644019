//! What the driver did wrongly.

use std::{fmt, sync::Mutex};

/// One rule that the driver broke.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Complaint {
    /// Which rule.
    pub rule: Rule,
    /// The values that explain it.
    pub text: String,
}

/// The rules that the model watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Rule {
    /// Registers are accessed by whole aligned dwords or qwords, low half first.
    AccessWidth,
    /// An access to an offset where no register is, or beyond what was mapped.
    NoSuchRegister,
    /// A reserved bit was written as 1 into a register, a descriptor or an entry.
    ReservedBits,
    /// One write to GCMD changes one bit.
    OneCommandAtATime,
    /// A command was given while the one before had not finished.
    CommandWhileBusy,
    /// A command that the unit does not have, or that needs another one first.
    CommandOrder,
    /// CCMD or IOTLB registers used while the queue is on, or on a unit that has none.
    RegisterInvalidationForbidden,
    /// A tail outside the queue, moved backwards or past the head.
    QueueTail,
    /// The queue was turned off with work in it.
    QueueOff,
    /// Context and IOTLB invalidations in one batch with no wait between them.
    InvalidationOrder,
    /// An invalidation that the unit cannot do: address mask, alignment, granularity, domain id.
    BadInvalidation,
    /// A domain id that the unit has no room for, or 0 in caching mode.
    DomainId,
    /// A root, context or interrupt entry that was present was changed without clearing it and flushing first.
    ChangedWhilePresent,
    /// A table that hardware can reach has lines that were never written back.
    LinkedBeforeWrittenBack,
    /// Hardware would have to set a bit in a table.
    WritesToTable,
    /// A page of a table came back while a unit could still walk it.
    FreedWhileReachable,
    /// A page came back twice, or was never given out, or was used after it came back.
    BadFree,
    /// A buffer came back to its driver while a unit or a device still held a translation to it.
    BufferStillReachable,
    /// A device reached memory that was never lent to it.
    StrayDma,
    /// A device was kept from memory that firmware reserved for it.
    ReservedMemoryBlocked,
    /// A fault record was "cleared" with 0, or FSTS bits were written that cannot be cleared.
    FaultStatus,
    /// An event message that would reach no CPU.
    EventMessage,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

/// The complaints so far. Once there are many, further ones are only counted.
#[derive(Debug, Default)]
pub struct Complaints {
    list: Mutex<(Vec<Complaint>, usize)>,
}

/// Complaints kept in full.
const KEPT: usize = 32;

impl Complaints {
    /// Adds one.
    pub fn add(&self, rule: Rule, text: impl Into<String>) {
        let mut list = self.list.lock().unwrap();
        list.1 += 1;
        if list.0.len() < KEPT {
            list.0.push(Complaint { rule, text: text.into() });
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.lock().unwrap().1 == 0
    }

    /// Takes the complaints that were kept.
    pub fn take(&self) -> Vec<Complaint> {
        std::mem::take(&mut *self.list.lock().unwrap()).0
    }
}
