//! An interface against a network that answers with recorded packets.

pub mod host;
pub mod packets;

use alloc::{boxed::Box, sync::Arc};
use std::string::ToString;

use drivers::host::Host;
use smoltcp::wire::Ipv4Address;

use self::{
    host::TestHost,
    packets::{Cable, CableEnd},
};
use crate::{
    Address, Pending, ResolveError,
    job::{Inbox, NoResult, promise},
    resolve::Resolve,
    stack::Stack,
};

const SECOND_NS: u64 = 1_000_000_000;

/// An interface, the other end of its cable, and its time.
struct Bench {
    host: Arc<dyn Host>,
    stack: Stack,
    inbox: Inbox,
    other: CableEnd,
    now_ns: u64,
}

impl Bench {
    /// An interface that has no address yet.
    fn new() -> Self {
        let host: Arc<dyn Host> = Arc::new(TestHost);
        let (cable, other) = Cable::new();
        let stack = Stack::new(Box::new(cable), 42, 0).unwrap();
        let inbox = Inbox::new(&host).unwrap();
        Self { host, stack, inbox, other, now_ns: 0 }
    }

    /// An interface that has its address.
    fn configured() -> Self {
        let mut bench = Self::new();
        bench.run(2 * SECOND_NS);
        let address = Address {
            own: "10.0.2.15/24".parse().unwrap(),
            router: Some(packets::ROUTER),
            name_server: Some(packets::NAME_SERVER),
        };
        assert_eq!(bench.stack.status().address, Some(address));
        bench
    }

    /// Lets time pass, and the other end answer.
    fn run(&mut self, ns: u64) {
        let end_ns = self.now_ns + ns;
        while self.now_ns < end_ns {
            let due_ns = self.stack.turn(self.now_ns, &self.inbox);
            if !self.other.answer() {
                self.now_ns = due_ns.max(self.now_ns + 1000).min(end_ns);
            }
        }
    }

    fn resolve(&mut self, name: &str) -> Pending<Result<Ipv4Address, ResolveError>> {
        let (promise, pending) = promise(&self.host);
        let job = Resolve { name: name.to_string(), query: None, promise };
        self.inbox.put(Box::new(job)).unwrap();
        pending
    }

    fn result(&mut self, name: &str, within_ns: u64) -> Option<Result<Ipv4Address, ResolveError>> {
        let pending = self.resolve(name);
        self.run(within_ns);
        pending.wait(0).ok()
    }
}

#[test]
fn an_address_comes_by_dhcp_and_a_name_by_dns() {
    let mut bench = Bench::configured();
    bench.other.name_server = Some(packets::answer_with_alias);
    let address = bench.result("www.example.org", SECOND_NS);
    assert_eq!(address, Some(Ok(Ipv4Address::new(192, 0, 2, 80))));
}

/// The interface keeps its address, and has another router and name server from the next renewal on.
#[test]
fn all_of_a_renewed_lease_is_applied() {
    const HALF_A_LEASE_NS: u64 = 86_400 / 2 * SECOND_NS;
    let mut bench = Bench::configured();
    bench.other.name_server = Some(packets::answer_with_alias);
    // On another network: the way there is by the router.
    let [router, name_server] = [Ipv4Address::new(10, 0, 2, 9), Ipv4Address::new(192, 0, 2, 53)];
    bench.other.leased = [router, name_server];
    bench.run(HALF_A_LEASE_NS + SECOND_NS);
    let address = bench.stack.status().address.unwrap();
    assert_eq!((address.router, address.name_server), (Some(router), Some(name_server)));
    assert!(bench.result("www.example.org", SECOND_NS).unwrap().is_ok());
    assert_eq!((bench.other.asked, bench.other.looked_for), (name_server, router));
}

#[test]
fn a_name_that_nobody_knows_is_an_error() {
    let mut bench = Bench::configured();
    bench.other.name_server = Some(packets::unknown);
    assert_eq!(bench.result("example.org", SECOND_NS), Some(Err(ResolveError::Unknown)));
    bench.other.name_server = Some(packets::answer_with_alias);
    assert!(bench.result("www.example.org", SECOND_NS).unwrap().is_ok(), "the next question is as good");
}

#[test]
fn what_is_no_name_is_not_asked_for() {
    let mut bench = Bench::configured();
    let asked = bench.other.questions;
    for name in ["", "a..b", &"x".repeat(64), &"x.".repeat(128)] {
        assert_eq!(bench.result(name, SECOND_NS), Some(Err(ResolveError::BadName)), "{name:?}");
    }
    assert_eq!(bench.other.questions, asked);
}

#[test]
fn a_name_server_that_says_nothing_or_nonsense_is_not_waited_for_for_ever() {
    let mut bench = Bench::configured();
    for server in [packets::silence, packets::cut_off, packets::loops, packets::of_another_question] {
        bench.other.name_server = Some(server);
        let result = bench.result("www.example.org", 20 * SECOND_NS);
        assert!(matches!(result, Some(Err(ResolveError::TimedOut | ResolveError::Unknown))), "{result:?}");
    }
}

#[test]
fn every_stump_of_a_recorded_packet_is_dropped() {
    let mut bench = Bench::configured();
    for packet in bench.other.delivered.clone() {
        for bytes in 0..packet.len() {
            bench.other.deliver(&packet[..bytes]);
            bench.run(1000);
        }
    }
    bench.other.name_server = Some(packets::answer_with_alias);
    assert!(bench.result("www.example.org", 10 * SECOND_NS).unwrap().is_ok());
}

#[test]
fn nonsense_from_anywhere_in_a_packet_on_is_survived() {
    let mut bench = Bench::configured();
    bench.other.name_server = Some(packets::answer_with_alias);
    assert!(bench.result("www.example.org", SECOND_NS).unwrap().is_ok());
    for packet in bench.other.delivered.clone() {
        for at in 0..packet.len() {
            let mut torn = packet.clone();
            torn[at..].fill(0xff);
            bench.other.deliver(&torn);
            // Somebody asks meanwhile. What a lease says can be anything, so that there may be nobody to answer.
            let pending = bench.resolve("www.example.org");
            bench.run(1000);
            drop(pending);
        }
    }
    bench.run(60 * SECOND_NS);
}

#[test]
fn nobody_who_waits_is_no_reason_to_go_on() {
    let mut bench = Bench::configured();
    bench.other.name_server = Some(packets::silence);
    drop(bench.resolve("www.example.org"));
    bench.run(1000);
    bench.other.name_server = Some(packets::answer_with_alias);
    assert!(bench.result("www.example.org", SECOND_NS).unwrap().is_ok(), "the query is free again");
}

/// Its thread would not sleep otherwise: what cannot be sent stays due.
#[test]
fn without_room_nothing_is_due_but_jobs_and_the_device() {
    let mut bench = Bench::new();
    bench.other.fill(true);
    assert_eq!(bench.stack.turn(0, &bench.inbox), u64::MAX);
    bench.other.fill(false);
    bench.run(SECOND_NS);
    assert!(bench.stack.status().address.is_some(), "room is made use of at once");

    bench.other.name_server = Some(packets::answer_with_alias);
    bench.other.fill(true);
    let pending = bench.resolve("www.example.org");
    let due_ns = bench.stack.turn(bench.now_ns, &bench.inbox);
    assert_eq!(due_ns, bench.now_ns + 15 * SECOND_NS, "the job's own deadline");
    bench.other.fill(false);
    bench.run(SECOND_NS);
    assert!(pending.wait(0).unwrap().is_ok());
}

#[test]
fn who_waits_for_a_result_hears_that_it_never_comes() {
    let host: Arc<dyn Host> = Arc::new(TestHost);
    let (kept, pending) = promise(&host);
    assert_eq!(pending.wait(0), Err(NoResult::TimedOut));
    kept.keep(1);
    drop(kept);
    assert_eq!((pending.wait(0), pending.wait(0)), (Ok(1), Err(NoResult::Gone)));
    let (dropped, pending) = promise::<u8>(&host);
    drop(dropped);
    assert_eq!((pending.wait(0), pending.wait(0)), (Err(NoResult::Gone), Err(NoResult::Gone)));
}
