//! Each fault reason of legacy mode and of interrupt remapping can be reached, and its record says so.

mod by_hand;

use by_hand::*;
use iommu::{
    Platform,
    platform::{MsiMessage, Registers},
};
use vtd_model::{Access, Denied, InterruptOutcome, MachineConfig, Reason};

const IOVA: u64 = 0x12_3456_7000;

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

/// Blocks one read and compares the answer and the record.
fn expect_read(bench: &Bench, iova: u64, reason: Reason) {
    let mut data = [0; 4];
    assert_eq!(bench.device().read(iova, &mut data), Err(Denied::Fault(reason)));
    let (low, high) = bench.fault().expect("a record");
    assert_eq!(low, iova & !0xfff);
    assert_eq!(high, 1 << 63 | 1 << 62 | (reason as u64) << 32 | u64::from(SOURCE), "{reason:?}");
    assert_eq!(bench.fault(), None);
}

#[test]
fn root_entries() {
    let bench = Bench::new(plain());
    expect_read(&bench, IOVA, Reason::RootNotPresent);
    bench.put(bench.root, 1 << 40 | 1);
    expect_read(&bench, IOVA, Reason::ContextNotAccessible);
    bench.put(bench.root, bench.page() | 3);
    expect_read(&bench, IOVA, Reason::RootReserved);
    let nowhere = Bench::off(plain());
    nowhere.set_root(1 << 40);
    nowhere.registers.write64(CCMD, 1 << 63 | 1 << 61);
    assert!(nowhere.wait_for(|bench| bench.registers.read64(CCMD) >> 63 == 0));
    nowhere.command(TE, true);
    expect_read(&nowhere, IOVA, Reason::RootNotAccessible);
}

#[test]
fn context_entries() {
    let mut bench = Bench::new(plain());
    bench.context_slot(SOURCE);
    expect_read(&bench, IOVA, Reason::ContextNotPresent);
    let table = bench.page();
    for (low, high, reason) in [
        (table | 1, 0, Reason::ContextInvalid),
        (table | 1, 3, Reason::ContextInvalid),
        (table | 1 | 3 << 2, 2, Reason::ContextInvalid),
        (table | 1 | 2 << 2, 1, Reason::ContextInvalid),
        (1 << 45 | 1, 2, Reason::ContextInvalid),
        (table | 1 | 1 << 4, 2, Reason::ContextReserved),
        (table | 1, 2 | 1 << 7, Reason::ContextReserved),
        (table | 1, 2 | 1 << 24, Reason::ContextReserved),
        (1 << 38 | 1, 2, Reason::PageEntryNotAccessible),
    ] {
        bench.put_context_words(SOURCE, low, high);
        expect_read(&bench, IOVA, reason);
        bench.put(bench.context_slot(SOURCE), 0);
        bench.submit(&[context_global()]);
        bench.submit(&[iotlb_global()]);
    }
}

#[test]
fn page_entries() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    expect_read(&bench, 1 << 48, Reason::AddressTooLarge);
    expect_read(&bench, IOVA + 0x1000, Reason::NoRead);
    let leaf = |bench: &Bench, value| bench.put(leaf_slot(page.path[2], IOVA), value);
    for (value, reason) in [
        (page.memory | 2, Reason::NoRead),
        (page.memory | 3 | 1 << 62, Reason::PageEntryReserved),
        (page.memory | 3 | 1 << 39, Reason::PageEntryReserved),
        (0xfee0_0003, Reason::OutputIsInterrupt),
    ] {
        leaf(&bench, value);
        expect_read(&bench, IOVA, reason);
    }
    leaf(&bench, page.memory | 1);
    assert_eq!(bench.device().write(IOVA, b"x"), Err(Denied::Fault(Reason::NoWrite)));
    let (_, high) = bench.fault().unwrap();
    assert_eq!(high >> 62, 2, "a write");
    // Upper levels: rights are and-ed, and the size bit is checked.
    let upper = page.path[0] + (IOVA >> 30 & 511) * 8;
    bench.submit(&[iotlb_global()]);
    bench.put(upper, page.path[1] | 2);
    expect_read(&bench, IOVA, Reason::NoRead);
    bench.submit(&[iotlb_global()]);
    bench.put(page.top + (IOVA >> 39 & 511) * 8, page.path[0] | 3 | 1 << 7);
    expect_read(&bench, IOVA, Reason::PageEntryReserved);
}

#[test]
fn rights_come_before_reserved_bits() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    bench.put(leaf_slot(page.path[2], IOVA), 1 << 62 | 2);
    expect_read(&bench, IOVA, Reason::NoRead);
}

#[test]
fn a_narrow_width_ends_at_39_bits() {
    let mut config = plain();
    config.units[0].sagaw = 0b0010;
    config.units[0].mgaw = 39;
    let bench = Bench::new(config);
    let table = bench.page();
    bench.put_context_words(SOURCE, table | 1, 3 << 8 | 1);
    expect_read(&bench, (1 << 39) - 4096, Reason::NoRead);
    expect_read(&bench, 1 << 39, Reason::AddressTooLarge);
}

#[test]
fn pass_through_and_blocked_types() {
    let mut bench = Bench::new(plain());
    let memory = bench.lend(1);
    bench.put_context_words(SOURCE, 1 | 2 << 2, 3 << 8 | 2);
    bench.device().write(memory, b"direct").unwrap();
    assert_eq!(bench.device().probe(memory + 1, Access::Read), Ok(memory + 1));
    bench.assert_content();
}

#[test]
fn zero_length_reads() {
    for allowed in [false, true] {
        let mut config = plain();
        config.units[0].zero_length_reads = allowed;
        let mut bench = Bench::new(config);
        let page = bench.one_page(IOVA);
        bench.put(leaf_slot(page.path[2], IOVA), page.memory | 2);
        assert_eq!(bench.device().probe(IOVA, Access::ZeroLengthRead).is_ok(), allowed);
        assert!(bench.device().probe(IOVA, Access::Read).is_err());
    }
}

#[test]
fn muted_faults_leave_no_record() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    bench.put(bench.context_slot(SOURCE), page.top | 3);
    assert!(bench.device().write(IOVA + 0x1000, b"x").is_err());
    assert_eq!(bench.fault(), None);
}

#[test]
fn devices_that_do_not_master_the_bus_do_nothing() {
    let mut bench = Bench::new(plain());
    bench.one_page(IOVA);
    bench.platform.write_config(bench.function(0), 4, 0);
    assert_eq!(bench.device().write(IOVA, b"x"), Err(Denied::NotBusMaster));
    assert_eq!(bench.fault(), None);
}

#[test]
fn faults_raise_one_event_until_they_are_cleared() {
    let bench = Bench::new(plain());
    let message = bench.platform.allocate_vector(iommu::platform::Event::Fault { unit: 0 }).unwrap();
    bench.registers.write32(0x3c, message.data);
    bench.registers.write32(0x40, message.address as u32);
    assert!(bench.device().write(IOVA, b"x").is_err());
    assert_eq!(bench.machine.deliver_events(|_| panic!("masked")), 0);
    bench.registers.write32(FECTL, 0);
    let mut events = Vec::new();
    bench.machine.deliver_events(|event| events.push(event));
    assert!(bench.device().write(IOVA + 0x5000, b"x").is_err());
    bench.machine.deliver_events(|event| events.push(event));
    assert_eq!(events.len(), 1, "pending faults hold further events back");
    assert!(bench.fault().is_some());
    let again = bench.registers.read32(FSTS);
    assert_eq!((again & 2, again >> 8), (2, 0), "the index is still that of the record that began it");
    bench.registers.write64(0x220 + 16 + 8, 1 << 63);
    assert_eq!(bench.registers.read32(FSTS) & 3, 0);
    assert!(bench.device().write(IOVA, b"x").is_err());
    assert_eq!(bench.machine.deliver_events(|event| events.push(event)), 1);
    bench.assert_content();
}

#[test]
fn interrupt_requests() {
    let mut bench = Bench::new(plain());
    let table = bench.page();
    bench.registers.write64(IRTA, table | 7);
    bench.command(SIRTP, true);
    bench.submit(&[(4, 0)]);
    bench.command(IRE, true);
    let device = bench.device();
    let expect = |index: u64, address: u64, data: u32, reason: Reason| {
        let outcome = device.interrupt(MsiMessage { address, data });
        assert_eq!(outcome, InterruptOutcome::Blocked(reason));
        let (low, high) = bench.fault().expect("a record");
        assert_eq!(high >> 32 & 0xff, reason as u64);
        assert_eq!(low >> 48, index);
    };
    expect(0, 0xfee0_0000, 0x30, Reason::CompatibilityBlocked);
    expect(7, 0xfee0_0010 | 7 << 5 | 1 << 3, 1 << 16, Reason::InterruptRequestReserved);
    expect(256, 0xfee0_0010 | 256 << 5, 0, Reason::InterruptIndexTooLarge);
    expect(9, 0xfee0_0010 | 7 << 5 | 1 << 3, 2, Reason::InterruptNotPresent);
    bench.put(table + 16, 1 | 1 << 12);
    expect(1, 0xfee0_0010 | 1 << 5, 0, Reason::InterruptReserved);
    bench.put(table + 32 + 8, 1 << 18 | 0x999);
    bench.put(table + 32, 1 | 0x44 << 16);
    expect(2, 0xfee0_0010 | 2 << 5, 0, Reason::InterruptSourceRefused);
    // A write of four bytes there is the same thing.
    bench.put(table + 48, 1 | 0x45 << 16);
    assert_eq!(device.write(0xfee0_0010 | 3 << 5, &[0; 4]), Ok(()));
    bench.machine.audit();
    assert!(!bench.rules().is_empty(), "the reserved bit in entry 1");
}

#[test]
fn compatibility_format_passes_when_it_is_allowed() {
    let mut bench = Bench::new(plain());
    let table = bench.page();
    bench.registers.write64(IRTA, table | 7);
    bench.command(SIRTP, true);
    bench.submit(&[(4, 0)]);
    bench.command(IRE, true);
    bench.command(CFI, true);
    let message = MsiMessage { address: 0xfee0_3000, data: 0x51 };
    let InterruptOutcome::Delivered(delivered) = bench.device().interrupt(message) else { panic!("blocked") };
    assert_eq!((delivered.vector, delivered.destination, delivered.index), (0x51, 3, None));
}

#[test]
fn an_interrupt_table_that_is_not_memory() {
    let mut bench = Bench::new(plain());
    bench.registers.write64(IRTA, 1 << 45 | 7);
    bench.command(SIRTP, true);
    bench.submit(&[(4, 0)]);
    bench.command(IRE, true);
    let outcome = bench.device().interrupt(MsiMessage { address: 0xfee0_0010, data: 0 });
    assert_eq!(outcome, InterruptOutcome::Blocked(Reason::InterruptNotAccessible));
}
