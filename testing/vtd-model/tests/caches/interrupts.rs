//! What a unit remembers of interrupts.

use iommu::platform::MsiMessage;
use vtd_model::{InterruptOutcome, Reason};

use super::{by_hand::*, plain};

fn remapping_bench() -> (Bench, u64) {
    let mut bench = Bench::new(plain());
    let table = bench.page();
    bench.registers_irta(table);
    bench.submit(&[(4, 0)]);
    bench.command(IRE, true);
    (bench, table)
}

impl Bench {
    fn registers_irta(&self, table: u64) {
        use iommu::platform::Registers;
        self.registers.write64(IRTA, table | 7);
        self.command(SIRTP, true);
    }
}

fn message(index: u64) -> MsiMessage {
    MsiMessage { address: 0xfee0_0010 | index << 5, data: 0 }
}

/// Vector 0x55 to APIC 1 from `SOURCE` alone.
fn put_interrupt(bench: &Bench, table: u64, index: u64, vector: u64) {
    bench.put(table + index * 16 + 8, 1 << 18 | u64::from(SOURCE));
    bench.put(table + index * 16, 1 | vector << 16 | 1 << 40);
}

fn vector(outcome: InterruptOutcome) -> Result<u8, Reason> {
    match outcome {
        InterruptOutcome::Delivered(delivered) => Ok(delivered.vector),
        InterruptOutcome::Blocked(reason) => Err(reason),
        InterruptOutcome::NotBusMaster => panic!("not a bus master"),
    }
}

#[test]
fn interrupt_entries_stay_until_their_index_goes() {
    let (mut bench, table) = remapping_bench();
    let device = bench.device();
    put_interrupt(&bench, table, 5, 0x55);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55));
    bench.put(table + 5 * 16, 0);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55), "stale");
    let index = |index: u64, mask: u64| (4 | 1 << 4 | mask << 27 | index << 32, 0);
    bench.submit(&[index(4, 0)]);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55), "another index");
    bench.submit(&[index(4, 1)]);
    assert_eq!(vector(device.interrupt(message(5))), Err(Reason::InterruptNotPresent));
    bench.assert_content();
}

#[test]
fn a_new_interrupt_table_invalidates_nothing_unless_it_says_so() {
    for esirtps in [false, true] {
        let mut config = plain();
        config.units[0].esirtps = esirtps;
        let bench = Bench::new(config);
        let table = bench.page();
        bench.registers_irta(table);
        bench.command(IRE, true);
        let outcome = vector(bench.device().interrupt(message(5)));
        assert_eq!(outcome, if esirtps { Err(Reason::InterruptNotPresent) } else { Ok(0xee) });
    }
}
