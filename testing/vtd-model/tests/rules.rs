//! Each rule of the model is enforced: breaking it is noticed.

mod by_hand;

use by_hand::*;
use iommu::{Platform, platform::Registers};
use mm::{PhysAddr, table::TableMemory};
use vtd_model::{MachineConfig, ReservedMemory, Rule};

const IOVA: u64 = 0x12_3456_7000;

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

/// What was read does not matter.
fn look<T>(_value: T) {}

/// Runs `wrong` on a unit that works and expects exactly these complaints.
fn expect(rules: &[Rule], wrong: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::new(plain());
    bench.one_page(IOVA);
    bench.invalidate_all();
    bench.assert_content();
    wrong(&mut bench);
    let complaints = bench.machine.take_complaints();
    assert_eq!(complaints.iter().map(|c| c.rule).collect::<Vec<_>>(), rules, "{complaints:#?}");
}

#[test]
fn widths_and_alignment() {
    expect(&[Rule::AccessWidth], |b| look(b.registers.read64(GSTS - 4)));
    expect(&[Rule::AccessWidth], |b| b.registers.write64(FECTL, 1 << 31));
    expect(&[Rule::AccessWidth], |b| look(b.registers.read32(0x22)));
    expect(&[Rule::AccessWidth], |b| look(b.registers.read32(GCMD)));
    expect(&[Rule::AccessWidth], |b| b.registers.write32(RTADDR + 4, 0));
    expect(&[], |b| {
        b.registers.write32(RTADDR, b.root as u32);
        b.registers.write32(RTADDR + 4, (b.root >> 32) as u32);
        assert_eq!(b.registers.read64(RTADDR), b.root);
    });
}

#[test]
fn registers_that_are_not_there() {
    expect(&[Rule::NoSuchRegister], |b| look(b.registers.read32(0xe00)));
    expect(&[Rule::NoSuchRegister; 2], |b| look(b.registers.read32(0x1000)));
    expect(&[Rule::NoSuchRegister], |b| {
        // Only a part of the registers is mapped.
        let base = PhysAddr::new(b.machine.config().units[0].base);
        look(b.platform.map_registers(base, 0x100).unwrap().read32(0x220));
    });
}

#[test]
fn one_command_at_a_time() {
    expect(&[Rule::OneCommandAtATime], |b| b.registers.write32(GCMD, TE | QIE | SRTP | WBF));
    // The status as it reads, root pointer bit included: the one-shot would be repeated.
    expect(&[Rule::OneCommandAtATime], |b| {
        let status = b.registers.read32(GSTS);
        b.registers.write32(GCMD, status & !QIE);
    });
    expect(&[Rule::CommandWhileBusy], |b| {
        b.registers.write32(GCMD, TE | QIE | SRTP);
        b.registers.write32(GCMD, TE | QIE | WBF);
    });
    expect(&[Rule::ReservedBits], |b| b.registers.write32(GCMD, TE | QIE | 1));
}

#[test]
fn commands_in_their_order() {
    expect(&[Rule::CommandOrder], |b| b.registers.write32(GCMD, TE | QIE | IRE));
    let bench = Bench::off(plain());
    bench.registers.write32(GCMD, TE);
    assert_eq!(bench.rules(), [Rule::CommandOrder]);
    let mut config = plain();
    config.units[0].queued = false;
    config.units[0].interrupt_remapping = false;
    let bench = Bench::off(config);
    bench.registers.write32(GCMD, QIE);
    assert_eq!(bench.rules(), [Rule::CommandOrder]);
}

#[test]
fn no_registers_while_the_queue_is_on() {
    expect(&[Rule::RegisterInvalidationForbidden], |b| b.registers.write64(CCMD, 1 << 63 | 1 << 61));
    expect(&[Rule::RegisterInvalidationForbidden], |b| b.registers.write64(0x508, 1 << 63 | 1 << 60));
}

#[test]
fn tails() {
    // The size of the queue instead of 0.
    expect(&[Rule::QueueTail], |b| b.registers.write64(IQT, 4096));
    expect(&[Rule::ReservedBits, Rule::QueueTail], |b| {
        let tail = b.registers.read64(IQT);
        b.registers.write64(IQT, tail | 1 << 20 | 8);
    });
    expect(&[Rule::QueueTail], |b| {
        b.machine.misbehave(0, |unit| unit.queue_stalled = true);
        b.post(&[iotlb_global(), iotlb_global()]);
        let tail = b.registers.read64(IQT);
        b.registers.write64(IQT, tail - 16);
    });
    expect(&[Rule::QueueTail], |b| {
        b.machine.misbehave(0, |unit| unit.queue_stalled = true);
        let head = b.registers.read64(IQH);
        b.registers.write64(IQT, head - 16);
        b.registers.write64(IQT, head + 16);
    });
}

#[test]
fn turning_the_queue_off() {
    expect(&[Rule::QueueOff], |b| {
        b.post(&[iotlb_global()]);
        (0..100).for_each(|_| b.platform.relax());
        b.command(QIE, false);
    });
    expect(&[], |b| {
        b.submit(&[iotlb_global()]);
        b.command(QIE, false);
    });
}

#[test]
fn invalidations_that_cannot_be() {
    expect(&[Rule::InvalidationOrder], |b| b.submit(&[context_global(), iotlb_global()]));
    for descriptor in [
        iotlb_pages(3, IOVA, 19, false),
        (2, 0),
        (1 | 1 << 4 | 1 << 6, 0),
        (6, 0),
        (3 | 1 << 5, 0),
        (4 | 1 << 4 | 16 << 27, 0),
        (5 | 1 << 7, 0),
    ] {
        expect_first(Rule::BadInvalidation, |b| b.post(&[descriptor]));
    }
    // Not aligned to its own size: hardware would round, the driver did not mean that.
    expect_first(Rule::BadInvalidation, |b| b.post(&[iotlb_pages(3, 0x1000, 1, false)]));
}

fn expect_first(rule: Rule, wrong: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::new(plain());
    wrong(&mut bench);
    (0..100).for_each(|_| bench.platform.relax());
    assert_eq!(bench.rules()[0], rule);
}

#[test]
fn domain_ids() {
    let mut config = plain();
    config.units[0].nd = 0;
    let mut bench = Bench::new(config);
    bench.submit(&[iotlb_domain(16)]);
    assert_eq!(bench.rules(), [Rule::DomainId]);
    bench.put_context(SOURCE, 16, bench.page());
    bench.invalidate_all();
    assert!(bench.rules().contains(&Rule::DomainId));
    let mut config = plain();
    config.units[0].caching_mode = true;
    let mut bench = Bench::new(config);
    bench.put_context(SOURCE, 0, bench.page());
    bench.invalidate_all();
    assert!(bench.rules().contains(&Rule::DomainId));
}

#[test]
fn one_domain_is_one_table() {
    expect(&[Rule::DomainId], |b| {
        b.put_context(SOURCE + 8, 3, b.page());
        b.machine.audit();
    });
}

#[test]
fn entries_change_by_the_handshake_only() {
    expect(&[Rule::ChangedWhilePresent], |b| {
        let slot = b.context_slot(SOURCE);
        b.put(slot, b.page() | 1);
        b.machine.audit();
    });
    expect(&[Rule::ChangedWhilePresent], |b| {
        let slot = b.context_slot(SOURCE);
        b.put(slot, b.load(slot) & !1);
        b.submit(&[context_device(3, SOURCE)]);
        // No IOTLB flush.
        b.put(slot, b.page() | 1);
        b.machine.audit();
    });
    expect(&[], |b| {
        let slot = b.context_slot(SOURCE);
        b.put(slot, b.load(slot) & !1);
        b.submit(&[context_device(3, SOURCE)]);
        b.submit(&[iotlb_domain(3)]);
        b.put(slot, b.page() | 1);
        b.machine.audit();
    });
    expect(&[Rule::ChangedWhilePresent], |b| {
        let other = b.page();
        for index in 0..512 {
            b.put(other + index * 8, b.load((b.load(b.root) & !0xfff) + index * 8));
        }
        b.put(b.root, other | 1);
        b.machine.audit();
    });
}

#[test]
fn interrupt_entries_change_hands_by_a_flush_only() {
    let change = |flush: bool| {
        let mut bench = Bench::new(plain());
        let table = bench.page();
        bench.registers.write64(IRTA, table | 7);
        bench.command(SIRTP, true);
        bench.submit(&[(4, 0)]);
        bench.command(IRE, true);
        bench.put(table + 8, 1 << 18 | 0x10);
        bench.put(table, 1 | 0x40 << 16);
        bench.machine.audit();
        // Another vector for the same source is fine.
        bench.put(table, 1 | 0x41 << 16);
        bench.machine.audit();
        bench.assert_content();
        bench.put(table, 0);
        if flush {
            bench.submit(&[(4 | 1 << 4, 0)]);
        }
        bench.put(table + 8, 1 << 18 | 0x18);
        bench.put(table, 1 | 0x41 << 16);
        bench.machine.audit();
        bench.rules()
    };
    assert_eq!(change(false), [Rule::ChangedWhilePresent]);
    assert_eq!(change(true), []);
}

#[test]
fn tables_and_buffers() {
    expect(&[Rule::BadFree], |b| {
        let page = PhysAddr::new(b.page());
        // SAFETY: not linked anywhere; the second time is the point.
        unsafe { b.platform.tables().free(page) };
        // SAFETY: as above.
        unsafe { b.platform.tables().free(page) };
    });
    expect_first(Rule::FreedWhileReachable, |b| {
        let page = b.one_page(IOVA);
        // SAFETY: wrong on purpose: the model's own memory, still linked.
        unsafe { b.platform.tables().free(PhysAddr::new(page.path[2])) };
        b.machine.audit();
    });
    expect_first(Rule::ReservedBits, |b| {
        let page = b.one_page(IOVA);
        b.put(page.top + 8, 1 << 62 | 3);
        b.machine.audit();
    });
    // A leaf to memory that nobody lent, and one to a table.
    expect_first(Rule::StrayDma, |b| {
        let page = b.one_page(IOVA);
        b.put(leaf_slot(page.path[2], IOVA), page.top | RW);
        assert!(b.device().write(IOVA, b"x").is_err());
    });
    expect_first(Rule::StrayDma, |b| {
        b.one_page(IOVA);
        drop(b.take_back());
        assert!(b.device().write(IOVA, b"x").is_err());
    });
}

#[test]
fn fault_status() {
    expect(&[Rule::FaultStatus], |b| b.registers.write64(0x228, 0));
    expect(&[Rule::FaultStatus], |b| b.registers.write32(FSTS, 2));
    expect(&[], |b| b.registers.write32(0x22c, 1 << 31));
}

#[test]
fn event_messages() {
    expect(&[Rule::EventMessage], |b| b.registers.write32(0x40, 0));
    expect(&[Rule::EventMessage], |b| b.registers.write32(0x3c, 1 << 16));
    expect(&[Rule::EventMessage], |b| b.registers.write32(0x44, 1));
    expect(&[Rule::ReservedBits], |b| b.registers.write32(FECTL, 1));
}

#[test]
fn reserved_memory_is_reachable_at_all_times() {
    const RESERVED: u64 = 0x7001_0000;
    for mapped in [false, true] {
        let mut config = plain();
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base: RESERVED, limit: RESERVED + 0xfff });
        let mut bench = Bench::off(config);
        bench.set_root(bench.root);
        bench.start_queue();
        bench.invalidate_all();
        if mapped {
            let top = bench.page();
            bench.map(top, RESERVED, RESERVED | RW);
            bench.put_context(SOURCE, 3, top);
        }
        bench.command(TE, true);
        (0..100).for_each(|_| bench.platform.relax());
        let rules = bench.rules();
        assert_eq!(rules.contains(&Rule::ReservedMemoryBlocked), !mapped, "{rules:?}");
    }
}
