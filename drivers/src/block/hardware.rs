//! What a block driver does for the [engine](super::engine): the device's queues, and its registers.

use core::fmt;

use super::flight::{Done, InFlight};

/// One queue of a device. Everything that it takes from the device is checked before it is believed.
pub trait Queue: Send + 'static {
    /// What a device can do wrong in its queue.
    type Error: fmt::Display + Send;

    /// Most requests at a time.
    fn depth(&self) -> usize;

    /// Number of requests that the device has.
    fn in_flight(&self) -> usize;

    /// Puts a request where the device finds it. The device is told by [`ring`](Self::ring).
    ///
    /// # Errors
    /// The request comes back if there is no room.
    #[expect(
        clippy::result_large_err,
        reason = "nothing is lost: what does not fit comes back, and takes no memory for that"
    )]
    fn start(&mut self, flight: InFlight) -> Result<(), InFlight>;

    /// Tells the device of what was started since the last time, if it wants to know.
    fn ring(&mut self);

    /// Takes back the next request that the device has finished.
    ///
    /// # Errors
    /// What the device says cannot be true: it has to be reset.
    fn take_finished(&mut self) -> Result<Option<Done>, Self::Error>;

    /// Tells the device how far finished requests have been taken, and to interrupt for the next one. True if more have
    /// been finished meanwhile, so that there may be no interrupt for them.
    fn rearm(&mut self) -> bool;

    /// The device's name of a request that it should have finished by now.
    fn overdue(&self, now_ns: u64) -> Option<u16>;

    /// Takes one request back from a device that has been reset; `None` when there are no more.
    fn take_back(&mut self) -> Option<InFlight>;

    /// Makes the queue as new, while the device is reset and every request has been taken back.
    fn restart(&mut self);
}

/// A device apart from its queues. Only the keeper has it, so that waiting for it holds nobody up.
pub trait Hardware: Send + 'static {
    /// The driver, in the log.
    const NAME: &'static str;

    /// Why it cannot be started or stopped.
    type Error: fmt::Display;

    /// Starts the device, which is reset, with its queues, which are empty.
    ///
    /// # Errors
    /// It does not work. It may have begun to.
    fn start(&mut self) -> Result<(), Self::Error>;

    /// Whether the device runs: it asks for no reset, was not given up, and still answers.
    fn is_running(&self) -> bool;

    /// Asks the device to end one request of queue number `queue`. True if it knows how to, and has taken note.
    fn abort(&mut self, _queue: usize, _request: u16) -> bool {
        false
    }

    /// Makes the device quiet: when this returns `Ok` it has forgotten its queues and touches no memory.
    ///
    /// # Errors
    /// It did not say so in time. What it was given must stay as it is.
    fn stop(&mut self, how: Stop) -> Result<(), Self::Error>;

    /// Takes bus mastering away.
    fn disconnect(&mut self);
}

/// How a device is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It will be started again.
    ToRestart,
    /// It will not be started again, so that it may want to put its affairs in order.
    ForGood,
    /// It reaches no memory any more: nothing can be asked of it that it would have to read or to answer there.
    CutOff,
}
