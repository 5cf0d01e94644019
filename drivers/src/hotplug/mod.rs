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
mod virtual_functions;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{HotplugError, Iommu, PciAddress, ReleaseError};

use self::port::Port;
pub use self::virtual_functions::VirtualError;
use crate::{
    host::{Event, Host},
    lock::Lock,
    pci::{Apertures, Function, PortType},
};

/// How long somebody else may be changing what is behind a port.
const BUSY_DEADLINE_NS: u64 = 5_000_000_000;

/// The drivers of what is plugged in.
pub trait Drivers: Send + Sync {
    /// A function that nobody has claimed has appeared. Its registers have addresses.
    fn bind(&self, function: &Function);

    /// Ends the driver of `function`, if there is one. Unless `is_gone`, the device still works, and can be shut down.
    fn unbind(&self, function: PciAddress, is_gone: bool);
}

/// The PCI functions of a machine, whether they were there from the start or were plugged in.
pub struct Hotplug {
    host: Arc<dyn Host>,
    iommu: Iommu,
    drivers: Arc<dyn Drivers>,
    functions: Lock<Vec<Function>>,
    /// Whether somebody is changing which functions there are.
    changing: AtomicBool,
}

impl Hotplug {
    /// Serves the slots of the ports among `functions` from now on. `apertures` is where addresses come from that the
    /// ports' own windows do not offer. A slot that cannot be served is reported and left alone.
    #[must_use]
    pub fn start(
        host: &Arc<dyn Host>,
        iommu: &Iommu,
        functions: Vec<Function>,
        apertures: Apertures,
        drivers: Arc<dyn Drivers>,
    ) -> Arc<Self> {
        let event = host.event();
        let mut ports = Vec::new();
        for function in functions.iter().filter(|function| is_port(function)) {
            match Port::open(host, function, &functions, &event) {
                Ok(Some(port)) if ports.try_reserve(1).is_ok() => ports.push(port),
                Ok(None) => {}
                Ok(Some(_)) => log::warn!("pci: no memory for the slot of {}", function.address),
                Err(error) => log::warn!("pci: the slot of {} is not served: {error}", function.address),
            }
        }
        let functions = Lock::new(host.clone(), functions);
        let hotplug = Arc::new(Self {
            host: host.clone(),
            iommu: iommu.clone(),
            drivers,
            functions,
            changing: AtomicBool::new(false),
        });
        if !ports.is_empty() {
            let server = Server { hotplug: hotplug.clone(), ports, apertures, event };
            if let Err(error) = host.spawn("hotplug", Box::new(move || server.run())) {
                log::warn!("pci: no slot is served: {error}");
            }
        }
        hotplug
    }

    /// Every function as things are now, sorted by address.
    #[must_use]
    pub fn functions(&self) -> Vec<Function> {
        // The copy is made outside of the lock, which is held with interrupts off: what has changed meanwhile shows.
        loop {
            let count = self.functions.lock().len();
            let mut copy = Vec::with_capacity(count);
            let functions = self.functions.lock();
            if functions.len() <= copy.capacity() {
                copy.extend(functions.iter().cloned());
                return copy;
            }
        }
    }

    /// Adds what has appeared. False if there is no memory for that.
    fn enter(&self, new: &[Function]) -> bool {
        let mut room = Vec::new();
        let count = self.functions.lock().len() + new.len();
        if room.try_reserve_exact(count).is_err() {
            return false;
        }
        // Only whoever has the turn changes the list.
        let mut functions = self.functions.lock();
        room.extend(functions.iter().cloned());
        room.extend_from_slice(new);
        room.sort_unstable_by_key(|function| function.address);
        let before = core::mem::replace(&mut *functions, room);
        drop(functions);
        drop(before);
        true
    }

    /// Waits to be the only one that changes which functions there are. Each wait of whoever has the turn has a deadline.
    fn turn(&self) -> Turn<'_> {
        while self.changing.swap(true, Ordering::Acquire) {
            self.host.relax();
        }
        Turn(&self.changing)
    }

    /// Takes `functions` from whoever has them, and out of the list.
    fn take_out(
        &self,
        functions: &[PciAddress],
        is_quiet: &mut dyn FnMut(PciAddress) -> bool,
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

/// What the thread owns.
struct Server {
    hotplug: Arc<Hotplug>,
    ports: Vec<Port>,
    apertures: Apertures,
    event: Arc<dyn Event>,
}

impl Server {
    fn run(mut self) {
        loop {
            for port in &mut self.ports {
                let _turn = self.hotplug.turn();
                port.serve(&self.hotplug, &mut self.apertures);
            }
            self.event.wait(u64::MAX);
        }
    }
}

/// Whether a slot may be behind `function`.
fn is_port(function: &Function) -> bool {
    matches!(function.port, Some(PortType::RootPort | PortType::DownstreamPort))
        && function.bridge().is_some()
}
