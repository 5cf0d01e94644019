//! Devices that are plugged in and pulled out while the machine runs, by the slots of PCI Express ports.
//!
//! ```text
//!   slot's interrupt -> thread -> in:  power on -> link up -> enumerate -> addresses -> iommu knows it, blocked -> driver
//!                                 out: asked for (button): driver goes -> taken back: blocked, power off -> memory
//!                                      by surprise:        taken back: blocked, power off -> memory -> driver goes
//! ```
//!
//! A driver whose device vanished finds that registers read all ones, and that it may map nothing any more.

mod port;
#[cfg(test)]
mod turn_tests;
mod virtual_functions;

use alloc::{boxed::Box, collections::TryReserveError, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{HotplugError, Iommu, PciAddress, ReleaseError};
use mm::PhysRange;

pub use self::virtual_functions::VirtualError;
use self::{
    port::Port,
    virtual_functions::{OWNED_MAX, Owned},
};
use crate::{
    host::{Event, Host},
    lock::Lock,
    pci::{Apertures, Claims, Function, Misplaced, PortType},
    quiet::is_quiet,
};

/// How long somebody else may be changing what is behind a port.
const BUSY_DEADLINE_NS: u64 = 5_000_000_000;
/// How long others may be changing which functions there are: more than all the deadlines of what is done meanwhile.
const TURN_DEADLINE_NS: u64 = 60_000_000_000;
/// After what time it is tried again to serve a slot for which there was no turn.
const RETRY_NS: u64 = 1_000_000_000;

/// The drivers of what is plugged in.
pub trait Drivers: Send + Sync {
    /// A function that nobody has claimed has appeared. Its registers have addresses.
    fn bind(&self, function: &Function);

    /// Ends the driver of `function`, if there is one. Unless `is_gone`, the device still works, and can be shut down.
    ///
    /// It is another driver's soon after this returns, so that this one's must not touch it any more by then, however
    /// long that takes.
    fn unbind(&self, function: PciAddress, is_gone: bool);
}

/// The PCI functions of a machine, whether they were there from the start or were plugged in.
pub struct Hotplug {
    host: Arc<dyn Host>,
    iommu: Iommu,
    drivers: Arc<dyn Drivers>,
    functions: Lock<Vec<Function>>,
    claims: Claims,
    /// Whether somebody is changing which functions there are.
    changing: AtomicBool,
    /// Physical functions that are nobody else's.
    owned: Lock<[Option<Owned>; OWNED_MAX]>,
}

impl Hotplug {
    /// Serves the slots of the ports among `functions` from now on. `apertures` is where addresses come from that the
    /// ports' own windows do not offer, `claims` what addresses others than functions have. A slot that cannot be
    /// served is reported and left alone.
    #[must_use]
    pub fn start(
        host: &Arc<dyn Host>,
        iommu: &Iommu,
        mut functions: Vec<Function>,
        apertures: Apertures,
        claims: Claims,
        drivers: Arc<dyn Drivers>,
    ) -> Arc<Self> {
        let event = host.event();
        functions.sort_unstable_by_key(|function| function.address);
        let functions = Lock::new(host.clone(), functions);
        let hotplug = Arc::new(Self {
            host: host.clone(),
            iommu: iommu.clone(),
            drivers,
            functions,
            claims,
            changing: AtomicBool::new(false),
            owned: Lock::new(host.clone(), [const { None }; OWNED_MAX]),
        });
        let mut server = Server {
            hotplug: hotplug.clone(),
            ports: Vec::new(),
            looked_at: Vec::new(),
            apertures,
            event,
            unserved: 0,
            is_running: false,
        };
        server.open_ports();
        if !server.ports.is_empty()
            && let Err(error) = host.spawn("hotplug", Box::new(move || server.run()))
        {
            log::warn!("pci: no slot is served: {error}");
        }
        hotplug
    }

    /// Every function as things are now, sorted by address.
    ///
    /// # Errors
    /// No memory for the list.
    pub fn functions(&self) -> Result<Vec<Function>, TryReserveError> {
        // The copy is made outside of the lock, which is held with interrupts off: what has changed meanwhile shows.
        loop {
            let count = self.functions.lock().len();
            let mut copy = Vec::new();
            copy.try_reserve_exact(count)?;
            let functions = self.functions.lock();
            if functions.len() <= copy.capacity() {
                copy.extend(functions.iter().cloned());
                return Ok(copy);
            }
        }
    }

    /// Every function, sorted by address, each as it is when its turn comes. Takes no memory.
    pub fn each(&self) -> impl Iterator<Item = Function> {
        let mut last = None;
        core::iter::from_fn(move || {
            let functions = self.functions.lock();
            let index = functions.partition_point(|function| Some(function.address) <= last);
            let next = functions.get(index).cloned()?;
            last = Some(next.address);
            Some(next)
        })
    }

    /// The function at `address` as things are now. Takes no memory.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<Function> {
        let functions = self.functions.lock();
        let index = functions.binary_search_by_key(&address, |function| function.address).ok()?;
        functions.get(index).cloned()
    }

    /// Whether `function`, of the isolation group `group`, could be made quiet; the log says why not. Takes no memory.
    /// For [`Iommu::release`].
    pub fn is_quiet(&self, group: &[PciAddress], function: PciAddress) -> bool {
        is_quiet(&self.host, self.function(function).as_slice(), group, function)
    }

    /// What addresses others than functions have.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Checks that nobody but `function` can answer at `range`, as things are now. Takes no memory.
    ///
    /// # Errors
    /// See [`Misplaced`].
    pub fn check_registers(&self, function: PciAddress, range: PhysRange) -> Result<(), Misplaced> {
        self.claims.check(&*self.host, &self.functions.lock(), function, range)
    }

    /// Memory for a list with `count` more functions: what can fail of [`enter`](Self::enter).
    fn room(&self, count: usize, _turn: &Turn<'_>) -> Result<Vec<Function>, TryReserveError> {
        let mut room = Vec::new();
        let wanted = self.functions.lock().len() + count;
        room.try_reserve_exact(wanted)?;
        Ok(room)
    }

    /// Adds what has appeared, for which `room` was made in the same turn, and settles which registers of it drivers
    /// may map.
    fn enter(&self, new: &mut [Function], mut room: Vec<Function>, _turn: &Turn<'_>) {
        // Only whoever has the turn changes the list.
        room.extend(self.functions.lock().iter().cloned());
        let first = room.len();
        room.extend_from_slice(new);
        self.claims.settle(&*self.host, &mut room, first);
        new.clone_from_slice(&room[first..]);
        room.sort_unstable_by_key(|function| function.address);
        let before = core::mem::replace(&mut *self.functions.lock(), room);
        drop(before);
    }

    /// Waits to be the only one that changes which functions there are; `None` if others are all the time. Whoever has
    /// the turn calls no driver.
    fn turn(&self) -> Option<Turn<'_>> {
        let deadline_ns = self.host.now_ns().saturating_add(TURN_DEADLINE_NS);
        while self.changing.swap(true, Ordering::Acquire) {
            if self.host.now_ns() >= deadline_ns {
                return None;
            }
            self.host.relax();
        }
        Some(Turn(&self.changing))
    }

    /// Takes `functions` from whoever has them, and out of the list.
    fn take_out(
        &self,
        functions: &[PciAddress],
        is_quiet: &mut dyn FnMut(PciAddress) -> bool,
        _turn: &Turn<'_>,
    ) -> Result<(), HotplugError> {
        let host = &*self.host;
        let deadline_ns = host.now_ns().saturating_add(BUSY_DEADLINE_NS);
        loop {
            match self.iommu.functions_gone(functions, &mut *is_quiet) {
                // Others come or go, or the group is just being put into quarantine.
                Err(HotplugError::Busy | HotplugError::Release(ReleaseError::Busy { .. }))
                    if host.now_ns() < deadline_ns =>
                {
                    host.relax();
                }
                result => break result?,
            }
        }
        self.forget(functions);
        Ok(())
    }

    fn forget(&self, gone: &[PciAddress]) {
        self.functions.lock().retain(|function| !gone.contains(&function.address));
    }
}

/// Being the only one that changes which functions there are, until it is dropped.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Something that may have to be done more than once before it succeeds, and that is not done again after that.
struct Attempts {
    left: u8,
    has_succeeded: bool,
}

impl Attempts {
    /// Each may take a deadline.
    const MOST: u8 = 3;

    const fn new() -> Self {
        Self { left: Self::MOST, has_succeeded: false }
    }

    /// Whether it has succeeded, if not before then by doing it now.
    fn succeed(&mut self, attempt: impl FnOnce() -> bool) -> bool {
        if !self.has_succeeded && self.left > 0 {
            self.left -= 1;
            self.has_succeeded = attempt();
        }
        self.has_succeeded
    }
}

/// What the thread owns.
struct Server {
    hotplug: Arc<Hotplug>,
    ports: Vec<Port>,
    /// Functions that were ports, or not, when they appeared: those that have gone are forgotten.
    looked_at: Vec<PciAddress>,
    apertures: Apertures,
    event: Arc<dyn Event>,
    /// How many slots of what was plugged in could not be served: bridges, or what calls itself one, may come and go
    /// for ever.
    unserved: u64,
    /// What comes from now on was not there from the start.
    is_running: bool,
}

impl Server {
    fn run(mut self) {
        self.is_running = true;
        loop {
            let (mut until_ns, mut is_done) = (u64::MAX, true);
            // What is plugged in may have slots of its own: they are at the end.
            let mut index = 0;
            while let Some(port) = self.ports.get_mut(index) {
                let address = port.address();
                let has_changed = match self.hotplug.turn() {
                    Some(turn) => port.serve(&self.hotplug, &mut self.apertures, turn),
                    None => {
                        until_ns = until_ns.min(self.hotplug.host.now_ns().saturating_add(RETRY_NS));
                        false
                    }
                };
                until_ns = until_ns.min(port.due_ns());
                if has_changed {
                    self.catch_up(address);
                    is_done = false;
                }
                // Ports before this one may be gone now.
                let served = self.ports.iter().position(|port| port.address() == address);
                index = served.map_or(index, |served| served + 1);
            }
            if is_done {
                self.event.wait(until_ns);
            }
        }
    }

    /// After the port at `served`: slots that went with what they were on are given up, and those that came are served.
    /// What happens while a port gets another interrupt raises none: so all of them have to be looked at once more.
    fn catch_up(&mut self, served: PciAddress) {
        let hotplug = &self.hotplug;
        let is_there = |address| hotplug.function(address).is_some();
        self.ports.retain(|port| is_there(port.address()));
        self.looked_at.retain(|&address| is_there(address));
        for port in &mut self.ports {
            port.follow(hotplug, served);
            port.renew_interrupt(&hotplug.host, &self.event);
        }
        self.open_ports();
    }

    /// Serves the slots of ports that have not been looked at.
    fn open_ports(&mut self) {
        let hotplug = self.hotplug.clone();
        for function in hotplug.each().filter(is_port) {
            if self.looked_at.contains(&function.address) {
                continue;
            }
            if self.looked_at.try_reserve(1).is_err() || self.ports.try_reserve(1).is_err() {
                return log::warn!("pci: no memory for the slot of {}", function.address);
            }
            self.looked_at.push(function.address);
            match Port::open(&hotplug, &function, &self.event) {
                Ok(Some(port)) => self.ports.push(port),
                Ok(None) => {}
                Err(error) => {
                    self.unserved += u64::from(self.is_running);
                    if !self.is_running || self.unserved.is_power_of_two() {
                        log::warn!("pci: the slot of {} is not served: {error}", function.address);
                    }
                }
            }
        }
    }
}

/// Whether a slot may be behind `function`.
fn is_port(function: &Function) -> bool {
    matches!(function.port, Some(PortType::RootPort | PortType::DownstreamPort))
        && function.bridge().is_some()
}
