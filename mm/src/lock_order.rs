//! Finds locks that are taken in the wrong order, before two CPUs ever meet in a deadlock.
//!
//! The locks of a kernel have classes, numbered in the one order in which they nest. Each CPU has a [`HeldLocks`]. All
//! locks are taken with interrupts off, as an interrupt handler that waits for what it interrupted waits for ever; so a
//! lock that is taken with interrupts on is an error too, whether or not a handler ever takes it.
//!
//! The crates that this kernel is made of tell their host of each lock in debug builds (here
//! [`Processor::lock_taken`](crate::frames::Processor::lock_taken)); the host knows the order of all of them.

use core::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Number of classes that there can be.
pub const CLASSES: u8 = 64;

/// The classes of which a CPU holds a lock.
#[derive(Debug, Default)]
pub struct HeldLocks(AtomicU64);

/// A lock must not be taken now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockOrderError {
    /// A lock of the same class or of a later one is held: another CPU may hold this one and wait for that.
    OutOfOrder {
        /// The class of the lock.
        class: u8,
        /// The last class of which one is held.
        held: u8,
    },
    /// Interrupts are on: a handler that takes it would wait for ever.
    Interruptible {
        /// The class of the lock.
        class: u8,
    },
    /// There is no such class.
    NoClass {
        /// What was given for one.
        class: u8,
    },
}

impl fmt::Display for LockOrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfOrder { class, held } => {
                write!(f, "lock of class {class} wanted while one of class {held} is held")
            }
            Self::Interruptible { class } => write!(f, "lock of class {class} wanted with interrupts on"),
            Self::NoClass { class } => write!(f, "no lock is of class {class}"),
        }
    }
}

impl core::error::Error for LockOrderError {}

impl HeldLocks {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether a lock of `class` may be taken now.
    ///
    /// # Errors
    /// See [`LockOrderError`].
    pub fn check(&self, class: u8, interrupts_on: bool) -> Result<(), LockOrderError> {
        if class >= CLASSES {
            return Err(LockOrderError::NoClass { class });
        }
        if interrupts_on {
            return Err(LockOrderError::Interruptible { class });
        }
        let held = self.0.load(Relaxed);
        if held >> class != 0 {
            return Err(LockOrderError::OutOfOrder { class, held: held.ilog2() as u8 });
        }
        Ok(())
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// Whether one of `classes` is.
    #[must_use]
    pub fn holds_any_of(&self, classes: Range<u8>) -> bool {
        classes.into_iter().any(|class| class < CLASSES && self.0.load(Relaxed) >> class & 1 != 0)
    }

    /// Notes that a lock of `class` is taken, to be told before it is waited for. Called by its own CPU only, as is
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// See [`LockOrderError`]; then nothing is noted.
    pub fn take(&self, class: u8, interrupts_on: bool) -> Result<(), LockOrderError> {
        self.check(class, interrupts_on)?;
        self.0.store(self.0.load(Relaxed) | 1 << class, Relaxed);
        Ok(())
    }

    /// Notes that the lock of `class` is given back.
    pub fn release(&self, class: u8) {
        if class < CLASSES {
            self.0.store(self.0.load(Relaxed) & !(1 << class), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_nest_in_the_order_of_their_classes_only() {
        let held = HeldLocks::new();
        assert_eq!(held.take(3, false), Ok(()));
        assert_eq!(held.take(7, false), Ok(()));
        for class in [0, 3, 5, 7] {
            assert_eq!(held.take(class, false), Err(LockOrderError::OutOfOrder { class, held: 7 }));
        }
        assert_eq!(held.take(63, false), Ok(()));
        assert_eq!(held.check(62, false), Err(LockOrderError::OutOfOrder { class: 62, held: 63 }));
    }

    #[test]
    fn locks_are_given_back_in_any_order() {
        let held = HeldLocks::new();
        held.take(3, false).unwrap();
        held.take(7, false).unwrap();
        held.release(3);
        assert_eq!(held.take(5, false), Err(LockOrderError::OutOfOrder { class: 5, held: 7 }));
        assert!(!held.is_empty());
        assert!(held.holds_any_of(7..8) && held.holds_any_of(0..CLASSES) && held.holds_any_of(6..200));
        assert!(!held.holds_any_of(0..7) && !held.holds_any_of(8..CLASSES) && !held.holds_any_of(7..7));
        held.release(7);
        assert!(held.is_empty());
        assert_eq!(held.take(0, false), Ok(()));
        assert_eq!(held.take(5, false), Ok(()));
    }

    #[test]
    fn a_lock_that_an_interrupt_could_find_held_is_refused() {
        let held = HeldLocks::new();
        assert_eq!(held.take(3, true), Err(LockOrderError::Interruptible { class: 3 }));
        assert_eq!(held.take(2, false), Ok(()), "it was not noted");
    }

    #[test]
    fn there_are_sixty_four_classes() {
        assert_eq!(HeldLocks::new().take(64, false), Err(LockOrderError::NoClass { class: 64 }));
        HeldLocks::new().release(64);
    }
}
