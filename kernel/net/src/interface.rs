//! An interface and its thread.

use alloc::{boxed::Box, string::ToString, sync::Arc};
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use drivers::{
    host::{Event, Host, SpawnError},
    lock::Lock,
    net::{NetDevice, NotQuiet},
};
use iommu::DmaDevice;
use smoltcp::wire::Ipv4Address;

use crate::{
    fetch::{Fetch, FetchError, Fetched, Sink},
    http::Url,
    job::{self, Inbox, Job, Pending, Refused},
    ping::{Buffers, Ping, PingError},
    resolve::{Resolve, ResolveError},
    server::{Pages, Server},
    stack::{Stack, Status},
};

/// How long [`Interface::shut_down`] waits for the thread, which itself waits for the device.
const SHUTDOWN_DEADLINE_NS: u64 = 20_000_000_000;

/// Why an interface was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// No memory for it.
    OutOfMemory,
    /// No thread.
    Spawn(SpawnError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("no memory for the interface"),
            Self::Spawn(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

/// A network interface in use. Dropping it shuts it down in the background.
pub struct Interface {
    shared: Arc<Shared>,
    dma: DmaDevice,
}

/// What the thread shares with everybody else.
struct Shared {
    host: Arc<dyn Host>,
    inbox: Inbox,
    /// The device's event, which also says that there is a job.
    wake: Arc<dyn Event>,
    status: Lock<Status>,
    stop: AtomicBool,
    reset: AtomicBool,
    stopped: Arc<dyn Event>,
    /// Set when the device has become quiet for good.
    is_quiet: AtomicBool,
}

impl Interface {
    /// Starts the thread of an interface on `device`. It asks for an address by DHCP, and shows `pages` on port 80.
    /// `seed` is as random as the host can make it: ports and sequence numbers depend on it.
    ///
    /// # Errors
    /// See [`StartError`]. The device is left quiet.
    pub fn start(
        host: &Arc<dyn Host>,
        device: Box<dyn NetDevice>,
        seed: u64,
        pages: Pages,
    ) -> Result<Self, StartError> {
        let (dma, wake) = (device.dma().clone(), device.event());
        let mut stack = Stack::new(device, seed, host.now_ns()).ok_or(StartError::OutOfMemory)?;
        stack.serve(|sockets| Server::new(HTTP_PORT, pages, sockets)).ok_or(StartError::OutOfMemory)?;
        let shared = Arc::new(Shared::new(host, wake, &stack).ok_or(StartError::OutOfMemory)?);
        let thread = shared.clone();
        host.spawn("net", Box::new(move || thread.run(stack))).map_err(StartError::Spawn)?;
        Ok(Self { shared, dma })
    }

    /// The device's DMA handle.
    #[must_use]
    pub fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    /// As it was a moment ago.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.shared.status.lock()
    }

    /// Fetches a file into `sink`. The result comes within seconds of the last byte, or of the other side's silence.
    ///
    /// # Errors
    /// The interface cannot take the job.
    pub fn fetch<S: Sink>(
        &self,
        url: Url,
        sink: S,
    ) -> Result<Pending<Result<Fetched<S>, FetchError>>, Refused> {
        let (promise, pending) = job::promise(&self.shared.host);
        let fetch = Fetch::new(url, sink, promise).ok_or(Refused::OutOfMemory)?;
        self.submit(Box::new(fetch)).map(|()| pending)
    }

    /// Asks `to` whether it is there. The result is how long the answer took, in nanoseconds.
    ///
    /// # Errors
    /// The interface cannot take the job.
    pub fn ping(&self, to: Ipv4Address) -> Result<Pending<Result<u64, PingError>>, Refused> {
        let (promise, pending) = job::promise(&self.shared.host);
        let buffers = Some(Buffers::new().ok_or(Refused::OutOfMemory)?);
        self.submit(Box::new(Ping { to, buffers, sent: None, promise })).map(|()| pending)
    }

    /// Asks the name server for an address of `name`.
    ///
    /// # Errors
    /// The interface cannot take the job.
    pub fn resolve(&self, name: &str) -> Result<Pending<Result<Ipv4Address, ResolveError>>, Refused> {
        let (promise, pending) = job::promise(&self.shared.host);
        let resolve = Resolve { name: name.to_string(), query: None, promise };
        self.submit(Box::new(resolve)).map(|()| pending)
    }

    /// Has the device reset and started again, soon: what it has then is lost, as far as nobody sends it again.
    pub fn reset_device(&self) {
        self.shared.reset.store(true, Ordering::Release);
        self.shared.wake.signal();
    }

    /// Ends the thread and makes the device quiet for good.
    ///
    /// # Errors
    /// It did not become quiet in time: what it had stays pinned.
    pub fn shut_down(&self) -> Result<(), NotQuiet> {
        self.stop();
        let deadline_ns = self.shared.host.now_ns().saturating_add(SHUTDOWN_DEADLINE_NS);
        if self.shared.stopped.wait(deadline_ns) {
            // For whoever else waits.
            self.shared.stopped.signal();
        }
        if self.shared.is_quiet.load(Ordering::Acquire) { Ok(()) } else { Err(NotQuiet) }
    }

    fn submit(&self, job: Box<dyn Job>) -> Result<(), Refused> {
        if self.shared.stop.load(Ordering::Acquire) {
            return Err(Refused::ShutDown);
        }
        self.shared.inbox.put(job)?;
        self.shared.wake.signal();
        Ok(())
    }

    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.signal();
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the server is.
const HTTP_PORT: u16 = 80;

impl Shared {
    /// `None` without memory.
    fn new(host: &Arc<dyn Host>, wake: Arc<dyn Event>, stack: &Stack) -> Option<Self> {
        Some(Self {
            host: host.clone(),
            inbox: Inbox::new(host)?,
            wake,
            status: Lock::new(host.clone(), stack.status()),
            stop: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            stopped: host.event(),
            is_quiet: AtomicBool::new(false),
        })
    }

    fn run(&self, mut stack: Stack) {
        while !self.stop.load(Ordering::Acquire) {
            if self.reset.swap(false, Ordering::AcqRel) {
                stack.adapter.device.reset();
            }
            let due_ns = stack.turn(self.host.now_ns(), &self.inbox);
            *self.status.lock() = stack.status();
            if due_ns > self.host.now_ns() && !stack.adapter.device.rearm() {
                self.wake.wait(due_ns);
            }
        }
        let quiet = stack.adapter.device.shut_down().is_ok();
        self.is_quiet.store(quiet, Ordering::Release);
        self.inbox.close();
        self.stopped.signal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{NoResult, Promise, Step},
        stack::Net,
        tests::{host::TestHost, packets::Cable},
    };

    /// A job that waits for nothing that comes.
    struct Idle(#[expect(dead_code, reason = "dropped with the job")] Promise<()>);

    impl Job for Idle {
        fn step(&mut self, _net: &mut Net<'_>) -> Step {
            Step::Wait { until_ns: u64::MAX }
        }

        fn end(&mut self, _net: &mut Net<'_>) {}
    }

    #[test]
    fn jobs_end_with_their_thread() {
        let host: Arc<dyn Host> = Arc::new(TestHost);
        let mut stack = Stack::new(Box::new(Cable::new().0), 42, 0).unwrap();
        let shared = Shared::new(&host, host.event(), &stack).unwrap();
        let idle = || {
            let (promise, pending) = job::promise(&host);
            shared.inbox.put(Box::new(Idle(promise))).map(|()| pending)
        };
        let begun = idle().unwrap();
        stack.turn(0, &shared.inbox);
        let waiting = idle().unwrap();
        assert_eq!([begun.wait(0), waiting.wait(0)], [Err(NoResult::TimedOut); 2]);
        shared.stop.store(true, Ordering::Release);
        shared.run(stack);
        assert_eq!([begun.wait(0), waiting.wait(0)], [Err(NoResult::Gone); 2]);
        assert_eq!(idle().err(), Some(Refused::ShutDown));
    }
}
