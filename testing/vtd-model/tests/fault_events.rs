//! No source of faults keeps a CPU in the fault interrupt, and none is unheard for it.

use driven::Driven;
use iommu::{DmaDevice, policy::Limits};
use vtd_model::{Device, MachineConfig};

const MS: u64 = 1_000_000;

/// At once, and a second from then on.
const BURST: u64 = 256;
const EACH_SECOND: u64 = 1_000;

/// A machine with a function that nobody has enumerated, the stranger, and a claimed one.
fn machine(records: u16) -> (Driven, Device, (DmaDevice, Device)) {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = MS;
    config.units[0].fault_records = records;
    let driven = Driven::start_with_a_stranger(config).expect("units that work");
    let stranger = driven.device(driven.function(0));
    let handle = driven.iommu.claim(driven.function(1)).expect("a free function");
    [0, 1].into_iter().for_each(|index| driven.enable(driven.function(index)));
    let device = driven.device(handle.function());
    (driven, stranger, (handle, device))
}

/// Takes events, and runs the thread when it is asked for or the time has come. Returns how many events there were.
fn turn(driven: &Driven) -> u64 {
    let events = driven.machine.deliver_events(|event| driven.iommu.handle_event(event));
    let is_due = driven.machine.clock().now_ns() >= driven.iommu.next_faults_ns();
    if !driven.machine.take_work().is_empty() || is_due {
        driven.iommu.process_faults();
    }
    events as u64
}

/// `device` faults for `ms` milliseconds, each `gap_ns`. Returns how many events there were.
fn storm(driven: &Driven, device: &Device, ms: u64, gap_ns: u64) -> u64 {
    let end_ns = driven.machine.clock().now_ns() + ms * MS;
    let (mut events, mut page) = (0, 0x10_0000);
    while driven.machine.clock().now_ns() < end_ns {
        page += 1;
        let _ = device.write(page << 12, b"x");
        driven.machine.clock().advance(gap_ns);
        events += turn(driven);
    }
    events
}

fn storms(driven: &Driven) -> u64 {
    driven.units()[0].fault_storms
}

/// The storm is over: after a while a fault is an event again, and is heard.
fn assert_heard_again(driven: &Driven, handle: &DmaDevice, device: &Device) {
    for _ in 0..3 {
        driven.machine.clock().advance(20 * MS);
        turn(driven);
    }
    assert_eq!(driven.iommu.next_faults_ns(), u64::MAX, "nobody has to look any more");
    let before = driven.standing(handle.function()).1;
    assert!(device.write(0x1234_5000, b"x").is_err());
    assert_eq!(turn(driven), 1);
    assert_eq!(driven.standing(handle.function()).1, before + 1);
    driven.assert_content("after a storm");
}

#[test]
fn a_storm_of_nobodys_takes_a_bounded_number_of_interrupts() {
    const STORM_MS: u64 = 500;
    for records in [1, 8, 32] {
        let (driven, stranger, (handle, device)) = machine(records);
        let events = storm(&driven, &stranger, STORM_MS, 5_000);
        assert!(events >= BURST, "{records} records: only {events} events");
        assert!(events <= BURST + EACH_SECOND * STORM_MS / 1_000 + 1, "{records} records: {events} events");
        assert_eq!(storms(&driven), 1, "it was one storm");
        // Whoever has to know of a fault does meanwhile.
        let before = handle.fault_counts();
        assert!(device.write(0x1234_5000, b"x").is_err());
        assert_ne!(handle.fault_counts(), before);
        assert_heard_again(&driven, &handle, &device);
    }
}

/// The limit is on what the unit sends, not on who is known: limits that condemn nobody, or a thread that does not come
/// to put the condemned in quarantine, change nothing.
#[test]
fn a_storm_of_a_known_device_is_bounded_too() {
    let (driven, _, (handle, device)) = machine(1);
    driven.iommu.set_fault_limits(Limits::none());
    let events = storm(&driven, &device, 500, 5_000);
    assert!((BURST..=BURST + EACH_SECOND / 2 + 1).contains(&events), "{events} events");
    assert_heard_again(&driven, &handle, &device);
    let start_ns = driven.machine.clock().now_ns();
    driven.iommu.set_fault_limits(Limits::default());
    let mut events = 0;
    for page in 0..5_000 {
        let _ = device.write(page << 12, b"x");
        events += driven.machine.deliver_events(|event| driven.iommu.handle_event(event)) as u64;
    }
    let ms = (driven.machine.clock().now_ns() - start_ns) / MS;
    assert!(events <= BURST + ms + 1, "{events} events in {ms} ms without the thread");
}

/// One fault between two looks is enough for it: a storm that has become slower is not over.
#[test]
fn events_stay_masked_while_looks_find_something() {
    let (driven, stranger, (handle, device)) = machine(32);
    storm(&driven, &stranger, 50, 5_000);
    assert_eq!(storms(&driven), 1);
    assert_eq!(storm(&driven, &stranger, 200, 6 * MS), 0, "events");
    assert_ne!(driven.iommu.next_faults_ns(), u64::MAX, "somebody looks");
    assert_heard_again(&driven, &handle, &device);
}

#[test]
fn what_comes_seldom_is_an_event_each_time() {
    let (driven, stranger, (handle, device)) = machine(1);
    assert!(storm(&driven, &stranger, 2_000, 2 * MS) >= 900);
    assert_eq!((storms(&driven), driven.iommu.next_faults_ns()), (0, u64::MAX));
    assert_heard_again(&driven, &handle, &device);
}

/// Records that cannot be cleared, as of a broken unit: they are looked at for ever, and no more often than each 10 ms.
#[test]
fn records_that_stay_are_looked_at_now_and_then() {
    let (driven, stranger, (handle, _)) = machine(1);
    storm(&driven, &stranger, 50, 5_000);
    driven.machine.stick_fault_records(0, true);
    let writes = driven.machine.register_writes(0);
    // That a driver finds some does not make the thread go on with them.
    let _ = handle.fault_count();
    storm(&driven, &stranger, 1_000, 100_000);
    let looks = driven.machine.register_writes(0) - writes;
    assert!(looks <= 2 * 101, "{looks} writes to registers in a second");
    driven.assert_content("with a record that stays");
}
