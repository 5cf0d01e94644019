//! Positions, and what registers and memory say of them, for entries of both widths.

use super::*;
use crate::{reach::HostWidth, vtd::spec::RawDescriptor};

#[test]
fn positions_and_registers_agree() {
    let platform = FakePlatform::new(CAP, ECAP);
    for (wide, order) in [(false, 0), (false, 2), (true, 0), (true, 2)] {
        let ring = Ring::new(&platform, HostWidth(46), order, wide, true).unwrap();
        let (entries, stride) = (256 << order >> u8::from(wide), 1 << u8::from(wide));
        assert_eq!(ring.entries(), entries);
        let entries = entries as u64;
        for position in [0, 1, 2, entries - 1, entries, entries + 5, 7 * entries - 1] {
            let units = ring.units(position);
            assert_eq!(u64::from(units), position % entries * stride, "wide: {wide}, {position}");
            // At the tail itself, below it by some, and by as many as there can be.
            for behind in [0, 1, entries - 1] {
                assert_eq!(ring.position_below(units, position + behind), Some(position));
            }
        }
        assert_eq!(ring.position_below((entries * stride) as u16, 3 * entries), None, "beyond the ring");
        assert_eq!(ring.position_below(ring.units(2), 1), None, "nothing was there yet");
        assert_eq!(ring.position_below(1, 9).is_none(), wide, "between two entries");
    }
}

#[test]
fn an_entry_lies_where_its_position_says() {
    let platform = FakePlatform::new(CAP, ECAP);
    let raw = |value: u64| RawDescriptor::from_halves(value << 8 | 5, value);
    for (wide, order) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let ring = Ring::new(&platform, HostWidth(46), order, wide, true).unwrap();
        let entries = ring.entries() as u64;
        (0..entries).for_each(|position| ring.write(&platform, position, raw(position)));
        for position in 0..entries {
            assert_eq!(ring.read(&platform, position), raw(position), "wide: {wide}, {position}");
            assert_eq!(ring.read(&platform, position + entries), raw(position));
        }
    }
}

#[test]
fn a_pair_lies_where_its_positions_say_and_is_written_back_as_the_lines_that_it_is() {
    let raw = |value: u64| RawDescriptor::from_halves(value << 8 | 5, !value);
    for (wide, order) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let platform = FakePlatform::new(CAP, ECAP);
        let ring = Ring::new(&platform, HostWidth(46), order, wide, false).unwrap();
        let entries = ring.entries() as u64;
        for position in [0, 1, 6, 9, entries - 2, entries - 1, entries, 3 * entries - 1] {
            let before = platform.tables().write_backs();
            ring.write_pair(&platform, position, [raw(position), raw(position + 1)]);
            let lines = platform.tables().write_backs() - before;
            assert_eq!(lines, 1 + (position % 2) as usize, "wide: {wide}, {position}");
            assert_eq!(ring.read(&platform, position), raw(position), "wide: {wide}, {position}");
            assert_eq!(ring.read(&platform, position + 1), raw(position + 1), "wide: {wide}, {position}");
        }
    }
}
