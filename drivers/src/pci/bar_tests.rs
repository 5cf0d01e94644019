use super::{
    super::{
        config::{Config, ConfigSpace, offset},
        fake::{FakeFunction, FakeSpace, at},
        function::Layout,
    },
    Bar, BarError, BarKind,
};

const MEMORY_ON: u32 = 0x0000_0007;

/// Reads BAR 0 of a function whose first two BAR dwords hold `values` and accept `masks`.
fn read(values: [u32; 2], masks: [u32; 2]) -> Result<Bar, BarError> {
    let space = FakeSpace::default();
    let function = FakeFunction::new(0x11e8_1234, 0, 0)
        .with(offset::COMMAND_STATUS, MEMORY_ON)
        .writable(offset::COMMAND_STATUS, 0x7)
        .with(0x10, values[0])
        .writable(0x10, masks[0])
        .with(0x14, values[1])
        .writable(0x14, masks[1]);
    space.add(at(0, 1, 0), function);
    let bar = Bar::read(Config::new(&space, at(0, 1, 0)), Layout::Endpoint, 0);
    assert_eq!(space.read32(at(0, 1, 0), offset::COMMAND_STATUS), MEMORY_ON, "command as before");
    assert_eq!([space.read32(at(0, 1, 0), 0x10), space.read32(at(0, 1, 0), 0x14)], values, "BAR as before");
    bar
}

fn memory(wide: bool, prefetchable: bool, base: u64, bytes: u64) -> Result<Bar, BarError> {
    Ok(Bar { index: 0, kind: BarKind::Memory { wide, prefetchable }, base, bytes })
}

#[test]
fn sizes_by_brute_force() {
    for shift in 4..32 {
        let bytes = 1_u64 << shift;
        let mask = !(bytes as u32 - 1);
        assert_eq!(read([0, 0], [mask, 0]), memory(false, false, 0, bytes));
    }
    for shift in 4..64 {
        let mask = !((1_u64 << shift) - 1);
        let masks = [mask as u32 & !0xf, (mask >> 32) as u32];
        let expected =
            if masks == [0, 0] { Err(BarError::Absent(0)) } else { memory(true, true, 0, 1 << shift) };
        // A wide register above 2 GiB has no writable bit in its low half, but the type bits read back.
        assert_eq!(read([0xc, 0], masks), expected, "shift {shift}");
    }
}

#[test]
fn addresses_above_4_gib() {
    let bar = read([0x4000_000c, 0x38], [0xffff_c000, u32::MAX]);
    assert_eq!(bar, memory(true, true, 0x38_4000_0000, 0x4000));
    assert_eq!(bar.unwrap().memory().unwrap().0.as_u64(), 0x38_4000_0000);
}

#[test]
fn ports_are_not_memory() {
    let bar = read([0xc001, 0], [0xffe0, 0]).unwrap();
    assert_eq!((bar.kind, bar.base, bar.bytes), (BarKind::Port, 0xc000, 0x20));
    assert_eq!(bar.memory(), Err(BarError::NotMemory(0)));
}

#[test]
fn nonsense_is_refused() {
    assert_eq!(read([0, 0], [0, 0]), Err(BarError::Absent(0)));
    // Holes in the mask, and a memory type that does not exist.
    assert!(matches!(read([0, 0], [0xfff0_f000, 0]), Err(BarError::Malformed { .. })));
    assert!(matches!(read([0x6, 0], [0xffff_f000, 0]), Err(BarError::Malformed { .. })));
    assert!(matches!(read([0x4, 0], [0xffff_f000, 0x0fff_ffff]), Err(BarError::Malformed { .. })));
    // Nothing answers.
    let space = FakeSpace::default();
    let bar = Bar::read(Config::new(&space, at(0, 1, 0)), Layout::Endpoint, 0);
    assert!(matches!(bar, Err(BarError::Malformed { .. })));
    let past = Bar::read(Config::new(&space, at(0, 1, 0)), Layout::Endpoint, 6);
    assert_eq!(past, Err(BarError::NoSuchBar(6)));
}

#[test]
fn a_wide_last_register_has_no_upper_half() {
    let space = FakeSpace::default();
    space.add(at(0, 1, 0), FakeFunction::new(0x11e8_1234, 0, 0).with(0x24, 0x4).writable(0x24, 0xffff_f000));
    let bar = Bar::read(Config::new(&space, at(0, 1, 0)), Layout::Endpoint, 5);
    assert!(matches!(bar, Err(BarError::Malformed { index: 5, .. })));
}

#[test]
fn decoding_is_off_while_a_register_holds_ones() {
    let space = FakeSpace::default();
    let function = FakeFunction::new(0x11e8_1234, 0, 0)
        .with(offset::COMMAND_STATUS, MEMORY_ON)
        .writable(offset::COMMAND_STATUS, 0x7)
        .writable(0x10, 0xffff_f000);
    space.add(at(0, 1, 0), function);
    Bar::read(Config::new(&space, at(0, 1, 0)), Layout::Endpoint, 0).unwrap();
    let writes: std::vec::Vec<_> =
        space.writes.lock().unwrap().iter().map(|&(_, at, value)| (at, value)).collect();
    assert_eq!(writes, [(0x04, 0x4), (0x10, u32::MAX), (0x10, 0), (0x04, 0x7)]);
}

#[test]
fn a_bar_without_an_address_cannot_be_mapped() {
    let unset = read([0, 0], [0xffff_f000, 0]).unwrap();
    assert!(matches!(unset.memory(), Err(BarError::NoAddress { .. })));
    let beyond = read([0x4, 0x8000_0000], [0xffff_f000, u32::MAX]).unwrap();
    assert!(matches!(beyond.memory(), Err(BarError::NoAddress { .. })));
}
