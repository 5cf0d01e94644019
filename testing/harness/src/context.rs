//! What a test, and the runner, see of the machine.

use core::{any::Any, fmt};

/// What the runner needs of the kernel.
pub trait Machine: Sync {
    /// Writes text on the console.
    fn print(&self, text: fmt::Arguments<'_>);

    /// Sends one line, given without its end, on the control channel.
    fn send(&self, line: fmt::Arguments<'_>);

    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Ends the machine unless [`disarm_watchdog`](Self::disarm_watchdog) is called before `deadline_ns`: the test that
    /// runs then is to be charged by [`fail_running`](crate::fail_running).
    fn arm_watchdog(&self, deadline_ns: u64);

    /// See [`arm_watchdog`](Self::arm_watchdog).
    fn disarm_watchdog(&self);
}

/// What a test is given.
pub struct Context<'a> {
    pub(crate) machine: &'a dyn Machine,
    pub(crate) environment: &'a (dyn Any + Sync),
}

impl<'a> Context<'a> {
    /// A context on `machine`. `environment` is whatever the kernel wants to hand to its tests.
    #[must_use]
    pub fn new(machine: &'a dyn Machine, environment: &'a (dyn Any + Sync)) -> Self {
        Self { machine, environment }
    }

    /// Monotonic time in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.machine.now_ns()
    }

    /// What the kernel handed to its tests, if that is a `T`.
    #[must_use]
    pub fn environment<T: Any>(&self) -> Option<&'a T> {
        let environment: &'a dyn Any = self.environment;
        environment.downcast_ref()
    }

    /// Asks the host to plug the device `name` in. What comes of it shows in the machine.
    pub fn plug(&self, name: &str) {
        self.machine.send(format_args!("plug {name}"));
    }

    /// Asks the host to have the device `name` taken out.
    pub fn unplug(&self, name: &str) {
        self.machine.send(format_args!("unplug {name}"));
    }

    /// Asks the host to look at the screen of the display `name`: it has to show picture `picture` soon, or, if that is
    /// 0, nothing of any picture now. The host presses a key when it does.
    pub fn look(&self, name: &str, picture: u32) {
        self.machine.send(format_args!("look {name} {picture}"));
    }

    /// Asks the host to keep the whole machine from running for so long, some time soon. The machine is not told.
    pub fn hold_still(&self, ms: u64) {
        self.machine.send(format_args!("hold {ms}"));
    }

    /// Reports a result that the host compares with its own.
    pub fn value(&self, key: &str, text: fmt::Arguments<'_>) {
        self.machine.send(format_args!("value {key} {text}"));
    }
}
