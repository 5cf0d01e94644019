//! Virtual time: it moves only when the driver does something.

use std::sync::atomic::{AtomicU64, Ordering};

/// The clock of a machine. Nothing sleeps: a wait of a second takes as many rounds as the step sizes say.
#[derive(Debug)]
pub struct Clock {
    now_ns: AtomicU64,
    relax_ns: AtomicU64,
    access_ns: AtomicU64,
    /// Rounds of busy waits since the driver last did anything else.
    rounds: AtomicU64,
}

/// Rounds of one wait after which it is taken for endless: far more than any deadline leaves room for.
const ENDLESS: u64 = 20_000_000;

impl Clock {
    /// A clock that moves by `relax_ns` in each round of a busy wait and by `access_ns` with each register access.
    #[must_use]
    pub fn new(relax_ns: u64, access_ns: u64) -> Self {
        // Not zero: a driver that takes 0 for "never" would be found here.
        Self {
            now_ns: AtomicU64::new(1_000),
            relax_ns: AtomicU64::new(relax_ns),
            access_ns: AtomicU64::new(access_ns),
            rounds: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since some time before power-on.
    pub fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    /// Lets `ns` nanoseconds pass.
    pub fn advance(&self, ns: u64) -> u64 {
        self.now_ns.fetch_add(ns, Ordering::Relaxed) + ns
    }

    /// The driver does something: whatever it waited for is over.
    pub fn progress(&self) {
        self.rounds.store(0, Ordering::Relaxed);
    }

    /// One round of a busy wait passes.
    ///
    /// # Panics
    /// If the wait has no end.
    pub fn relax(&self) -> u64 {
        assert!(self.rounds.fetch_add(1, Ordering::Relaxed) < ENDLESS, "a wait without an end");
        self.advance(self.relax_ns.load(Ordering::Relaxed))
    }

    /// The time of one register access passes.
    pub fn access(&self) -> u64 {
        self.advance(self.access_ns.load(Ordering::Relaxed))
    }

    /// Makes each round of a busy wait take `ns`: large steps make time-outs cheap to reach.
    pub fn set_relax_ns(&self, ns: u64) {
        self.relax_ns.store(ns, Ordering::Relaxed);
    }
}
