//! What becomes of a domain's mappings while groups leave it.

use crate::{
    dma::DmaError,
    sync::atomic::{AtomicU32, Ordering},
};

/// Whether anything new is mapped in a domain, and how many groups have left it and may not be quiet.
///
/// What such a group had translated before it was blocked may still be on its way, so nothing that the domain has
/// mapped comes back until it is quiet.
pub(super) struct Standing(AtomicU32);

impl Standing {
    /// Nothing new is mapped. It stays so.
    const CLOSED: u32 = 1 << 31;
    /// The table is another owner's: nothing is ever mapped.
    const SHARED: u32 = 1 << 30;

    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Of a domain that maps nothing, as its table is its owner's.
    pub fn of_shared() -> Self {
        Self(AtomicU32::new(Self::SHARED))
    }

    #[inline]
    fn read(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.read() & Self::CLOSED != 0
    }

    /// All but whose the table is.
    #[inline]
    fn but_for_the_table(&self) -> u32 {
        self.read() & !Self::SHARED
    }

    /// Whether nothing is mapped any more, and no group that left may not be quiet.
    pub fn is_over(&self) -> bool {
        self.but_for_the_table() == Self::CLOSED
    }

    pub fn close(&self) {
        self.0.fetch_or(Self::CLOSED, Ordering::SeqCst);
    }

    /// A group is about to be blocked.
    pub fn begin_restless(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// The only group that the domain can have is about to be blocked, and the domain ends with it: both at once, so
    /// that its driver is never told that its mappings wait for another's.
    pub fn close_restless(&self) {
        let update = |standing| Some((standing | Self::CLOSED) + 1);
        let _always_some = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
    }

    /// A group that was blocked is quiet.
    pub fn end_restless(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether anything may be mapped. Not while a group may not be quiet: what the others map meanwhile could not come
    /// back either, and would be more with each of their requests.
    #[inline]
    pub fn check_map(&self) -> Result<(), DmaError> {
        match self.read() {
            0 => Ok(()),
            1..Self::SHARED => Err(DmaError::Restless),
            Self::SHARED..Self::CLOSED => Err(DmaError::SharedTable),
            _ => Err(DmaError::Revoked),
        }
    }

    /// Whether what was mapped may come back.
    #[inline]
    pub fn check_return(&self) -> Result<(), DmaError> {
        match self.but_for_the_table() {
            0 | Self::CLOSED => Ok(()),
            1..Self::CLOSED => Err(DmaError::Restless),
            _ => Err(DmaError::Revoked),
        }
    }

    /// Whether what was mapped may at least begin to come back: its way ends with [`check_return`](Self::check_return).
    #[inline]
    pub fn check_retire(&self) -> Result<(), DmaError> {
        match self.check_return() {
            Err(DmaError::Restless) => Ok(()),
            result => result,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_comes_back_when_all_that_left_are_quiet() {
        let standing = Standing::new();
        assert_eq!((standing.check_map(), standing.check_return()), (Ok(()), Ok(())));
        standing.begin_restless();
        standing.begin_restless();
        standing.end_restless();
        assert_eq!(standing.check_return(), Err(DmaError::Restless));
        assert_eq!((standing.check_map(), standing.check_retire()), (Err(DmaError::Restless), Ok(())));
        standing.end_restless();
        assert_eq!((standing.check_map(), standing.check_return()), (Ok(()), Ok(())));
        standing.close_restless();
        assert_eq!(standing.check_map(), Err(DmaError::Revoked));
        assert_eq!(standing.check_return(), Err(DmaError::Revoked));
        assert_eq!(standing.check_retire(), Err(DmaError::Revoked));
        standing.end_restless();
        assert_eq!((standing.check_map(), standing.check_return()), (Err(DmaError::Revoked), Ok(())));
    }

    #[test]
    fn over_a_shared_table_nothing_is_mapped_and_groups_come_and_go() {
        let standing = Standing::of_shared();
        assert_eq!((standing.check_map(), standing.check_return()), (Err(DmaError::SharedTable), Ok(())));
        standing.begin_restless();
        assert_eq!(standing.check_map(), Err(DmaError::SharedTable));
        assert_eq!(standing.check_return(), Err(DmaError::Restless));
        standing.close();
        assert_eq!(
            (standing.check_map(), standing.check_return()),
            (Err(DmaError::Revoked), Err(DmaError::Revoked))
        );
        assert!(standing.is_closed() && !standing.is_over());
        standing.end_restless();
        assert_eq!(standing.check_return(), Ok(()));
        assert!(standing.is_over());
    }
}
