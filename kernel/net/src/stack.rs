//! An interface without its thread: `smoltcp`, the sockets, jobs and server, stepped by whoever owns it.

use alloc::{boxed::Box, vec, vec::Vec};

use drivers::net::{Counters, Link, MacAddress, NetDevice, NetInfo};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::{dhcpv4, dns},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address, Ipv4Cidr},
};

use crate::{
    adapter::Adapter,
    job::{Inbox, Job, MOST_JOBS, Step},
    server::Server,
};

/// What an interface was given by DHCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Its own address and network.
    pub own: Ipv4Cidr,
    /// Where packets for other networks go.
    pub router: Option<Ipv4Address>,
    /// Who knows names.
    pub name_server: Option<Ipv4Address>,
}

/// An interface, as it is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its device.
    pub info: NetInfo,
    /// Its device's address.
    pub mac: MacAddress,
    /// Whether there is a network.
    pub link: Link,
    /// What it was given, if it has been.
    pub address: Option<Address>,
    /// What its device has done.
    pub counters: Counters,
    /// Connections that the server has answered.
    pub served: u64,
}

/// What jobs see of their interface.
pub struct Net<'a> {
    pub interface: &'a mut Interface,
    pub sockets: &'a mut SocketSet<'static>,
    pub dns: SocketHandle,
    pub address: Option<Address>,
    pub now_ns: u64,
    /// For a port of one's own.
    pub next_port: &'a mut u16,
}

impl Net<'_> {
    /// A port for a connection to somebody else, of the dynamic range.
    pub fn port(&mut self) -> u16 {
        const FIRST: u16 = 49152;
        *self.next_port = self.next_port.wrapping_add(1).max(FIRST);
        *self.next_port
    }
}

/// An interface without its thread.
pub struct Stack {
    pub adapter: Adapter,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    dns: SocketHandle,
    address: Option<Address>,
    next_port: u16,
    /// Never more than [`MOST_JOBS`].
    jobs: Vec<Box<dyn Job>>,
    server: Option<Server>,
}

/// `smoltcp`'s time of a time in nanoseconds.
pub fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

/// The time in nanoseconds of a time of `smoltcp`'s, rounded up.
fn nanoseconds(at: Instant) -> u64 {
    (at.total_micros().max(0) as u64).saturating_add(1).saturating_mul(1000)
}

impl Stack {
    /// An interface on `device` that asks for an address. `seed` makes its ports and sequence numbers differ from boot
    /// to boot. `None` without memory.
    pub fn new(device: Box<dyn NetDevice>, seed: u64, now_ns: u64) -> Option<Self> {
        let mut adapter = Adapter::new(device)?;
        // Drivers hand out no address that `smoltcp` would not take.
        let hardware = HardwareAddress::Ethernet(EthernetAddress(adapter.device.info().mac.0));
        let mut config = Config::new(hardware);
        config.random_seed = seed;
        let interface = Interface::new(config, &mut adapter, instant(now_ns));
        let mut jobs = Vec::new();
        jobs.try_reserve_exact(MOST_JOBS).ok()?;
        let mut sockets = SocketSet::new(vec![]);
        let dhcp = sockets.add(dhcpv4::Socket::new());
        let dns = sockets.add(dns::Socket::new(&[], vec![]));
        let next_port = (seed >> 32) as u16;
        Some(Self { adapter, interface, sockets, dhcp, dns, address: None, next_port, jobs, server: None })
    }

    /// Has a server made that answers from now on. `None` if it is not made.
    pub fn serve(&mut self, make: impl FnOnce(&mut SocketSet<'static>) -> Option<Server>) -> Option<()> {
        self.server = Some(make(&mut self.sockets)?);
        Some(())
    }

    /// Does everything that can be done at `now_ns`. Returns when there is something to do again at the latest, unless
    /// a packet or a job comes.
    pub fn turn(&mut self, now_ns: u64, inbox: &Inbox) -> u64 {
        self.adapter.device.service();
        self.interface.poll(instant(now_ns), &mut self.adapter, &mut self.sockets);
        self.follow_dhcp();
        while self.jobs.len() < MOST_JOBS
            && let Some(job) = inbox.take()
        {
            self.jobs.push(job);
        }
        let mut due_ns = self.step_jobs(now_ns).min(self.adapter.device.service_by_ns());
        if let Some(server) = &mut self.server {
            due_ns = due_ns.min(server.step(&mut self.sockets, now_ns));
        }
        // What the steps have written is sent at once.
        self.interface.poll(instant(now_ns), &mut self.adapter, &mut self.sockets);
        self.adapter.device.flush();
        due_ns.min(self.poll_at_ns(now_ns))
    }

    /// When `smoltcp` has something to do. Without room it can send nothing, and all that it wants to send stays due:
    /// what is waited for then is the device, which says when there is room again.
    fn poll_at_ns(&mut self, now_ns: u64) -> u64 {
        if self.adapter.device.room() == 0 {
            return u64::MAX;
        }
        self.interface.poll_at(instant(now_ns), &self.sockets).map_or(u64::MAX, nanoseconds)
    }

    /// As it is now.
    pub fn status(&self) -> Status {
        let device = &self.adapter.device;
        Status {
            info: device.info(),
            mac: device.info().mac,
            link: device.link(),
            address: self.address,
            counters: device.counters(),
            served: self.server.as_ref().map_or(0, Server::served),
        }
    }

    fn step_jobs(&mut self, now_ns: u64) -> u64 {
        let mut due_ns = u64::MAX;
        let mut index = 0;
        let mut net = Net {
            interface: &mut self.interface,
            sockets: &mut self.sockets,
            dns: self.dns,
            address: self.address,
            now_ns,
            next_port: &mut self.next_port,
        };
        while let Some(job) = self.jobs.get_mut(index) {
            match job.step(&mut net) {
                Step::Wait { until_ns } => {
                    due_ns = due_ns.min(until_ns);
                    index += 1;
                }
                Step::Done => self.jobs.swap_remove(index).end(&mut net),
            }
        }
        due_ns
    }

    fn follow_dhcp(&mut self) {
        let address = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp).poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => {
                let name_server = config.dns_servers.first().copied();
                Some(Address { own: config.address, router: config.router, name_server })
            }
        };
        if self.address != address {
            self.address = address;
            self.apply_address();
        }
    }

    /// Makes `smoltcp` use what DHCP has said.
    fn apply_address(&mut self) {
        let own = self.address.map(|address| IpCidr::Ipv4(address.own));
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room for one.
            let _ = own.map(|own| addresses.push(own));
        });
        self.interface.routes_mut().remove_default_ipv4_route();
        if let Some(router) = self.address.and_then(|address| address.router) {
            // There is room for one.
            let _ = self.interface.routes_mut().add_default_ipv4_route(router);
        }
        let server = self.address.and_then(|address| address.name_server).map(IpAddress::Ipv4);
        self.sockets.get_mut::<dns::Socket<'_>>(self.dns).update_servers(server.as_slice());
    }
}
