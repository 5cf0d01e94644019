//! Files made by hand, whole and damaged.

use super::*;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const READ: u32 = 4;

/// A segment header: type, flags, offset, address, bytes in the file and in memory.
#[derive(Clone, Copy)]
struct Load(u32, u32, u64, u64, u64, u64);

const CODE: Load = Load(PT_LOAD, READ | PF_X, 0x200, 0x20_1200, 0x100, 0x100);
const DATA: Load = Load(PT_LOAD, READ | PF_W, 0x300, 0x20_2300, 0x80, 0x2000);

/// A program of these segments that starts at `entry`, 0x400 bytes long.
fn file(entry: u64, segments: &[Load]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(ET_EXEC.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for word in [entry, HEADER_BYTES as u64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [HEADER_BYTES, SEGMENT_BYTES, segments.len(), 0, 0, 0] {
        file.extend((half as u16).to_le_bytes());
    }
    for &Load(kind, flags, offset, address, in_file, in_memory) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [offset, address, address, in_file, in_memory, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(0x400, 0xaa);
    file
}

fn error(segments: &[Load]) -> ProgramError {
    Program::read(&file(0x20_1200, segments)).unwrap_err()
}

#[test]
fn a_whole_file_is_what_it_says() {
    let bytes = file(0x20_1210, &[CODE, DATA]);
    let program = Program::read(&bytes).unwrap();
    assert_eq!(program.entry, 0x20_1210);
    let [code, data] = program.segments().collect::<Vec<_>>()[..] else { panic!("{program:?}") };
    assert_eq!(
        code,
        Segment {
            start: 0x20_1000,
            pages: 1,
            offset: 0x200,
            bytes: &bytes[0x200..0x300],
            access: Access::Execute
        }
    );
    assert_eq!(
        data,
        Segment {
            start: 0x20_2000,
            pages: 3,
            offset: 0x300,
            bytes: &bytes[0x300..0x380],
            access: Access::Write
        }
    );
}

#[test]
fn what_is_not_to_be_loaded_is_left_alone() {
    const NOTE: u32 = 4;
    let bytes = file(0x20_1200, &[Load(NOTE, READ, u64::MAX, u64::MAX, u64::MAX, 1), CODE]);
    assert_eq!(Program::read(&bytes).unwrap().segments().count(), 1);
    let empty = Load(PT_LOAD, READ, 0, u64::MAX, 0, 0);
    assert_eq!(Program::read(&file(0x20_1200, &[empty, CODE])).unwrap().segments().count(), 1);
}

#[test]
fn segments_stay_in_their_place() {
    let end = abi::IMAGE.end;
    for (address, memory) in [
        (0, 0x1000),
        (abi::IMAGE.start - 1, 0x1000),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 2),
        (1 << 63, 0x1000),
        (0x20_2000, u64::MAX),
        (0xffff_8000_0000_0000, 0x1000),
    ] {
        let segment = Load(PT_LOAD, READ, 0, address, 0, memory);
        assert!(matches!(error(&[CODE, segment]), ProgramError::Place { segment: 1, .. }), "{address:#x}");
    }
    let last = Load(PT_LOAD, READ, 0, end - 1, 1, 1);
    assert!(Program::read(&file(0x20_1200, &[CODE, last])).is_ok());
}

#[test]
fn bytes_come_from_the_file_and_fit() {
    for (offset, in_file, in_memory) in
        [(0x400, 1, 1), (0x3ff, 2, 2), (u64::MAX, 2, 2), (0, u64::MAX, 0x1000), (0, 0x11, 0x10)]
    {
        let segment = Load(PT_LOAD, READ, offset, 0x20_5000, in_file, in_memory);
        assert!(matches!(error(&[CODE, segment]), ProgramError::Bytes { .. }), "{offset:#x} {in_file:#x}");
    }
}

#[test]
fn no_page_is_two_segments() {
    for (address, memory) in [(0x20_1800, 0x10), (0x20_1000, 1), (0x20_0800, 0x801), (0x20_0000, 0x10_0000)] {
        let segment = Load(PT_LOAD, READ | PF_W, 0, address, 0, memory);
        assert!(matches!(error(&[CODE, segment]), ProgramError::Overlap { .. }), "{address:#x}");
        assert!(matches!(error(&[segment, CODE]), ProgramError::Overlap { .. }), "{address:#x}");
    }
}

#[test]
fn no_page_can_be_written_and_executed() {
    let both = Load(PT_LOAD, READ | PF_W | PF_X, 0, 0x20_5000, 0, 0x1000);
    assert!(matches!(error(&[CODE, both]), ProgramError::WriteAndExecute { segment: 1 }));
}

#[test]
fn a_program_starts_in_its_code() {
    for entry in [0, 0x20_2300, 0x20_0fff, 0x20_2000, 1 << 47, u64::MAX] {
        let bytes = file(entry, &[CODE, DATA]);
        assert!(matches!(Program::read(&bytes), Err(ProgramError::Entry { .. })), "{entry:#x}");
    }
    assert!(matches!(Program::read(&file(0x20_1200, &[])), Err(ProgramError::Entry { .. })));
}

#[test]
fn nobody_links_or_makes_storage() {
    for kind in [PT_DYNAMIC, PT_INTERP, PT_TLS] {
        let segment = Load(kind, READ, 0, 0x20_5000, 0, 0x10);
        assert!(matches!(error(&[CODE, segment]), ProgramError::Needs { segment: 1, .. }));
    }
}

#[test]
fn there_is_a_bound_for_everything() {
    let pages = |index: u64| Load(PT_LOAD, READ, 0, 0x30_0000 + index * 0x1000, 0, 0x1000);
    let many: Vec<Load> = core::iter::once(CODE).chain((0..8).map(pages)).collect();
    assert!(matches!(error(&many), ProgramError::Segments { headers: 9 }));
    assert!(Program::read(&file(0x20_1200, &many[..8])).is_ok());
    let headers = [Load(0, 0, 0, 0, 0, 0); HEADERS_MAX + 1];
    assert!(Program::read(&file(0x20_1200, &headers)).is_err());
    let large = Load(PT_LOAD, READ, 0, 0x30_0000, 0, PAGES_MAX * PAGE_BYTES);
    assert!(matches!(error(&[CODE, large]), ProgramError::TooLarge { .. }));
}

#[test]
fn other_files_are_refused() {
    for at in [4, 5, 16, 18] {
        let mut bytes = file(0x20_1200, &[CODE]);
        bytes[at] ^= 3;
        assert!(Program::read(&bytes).is_err(), "byte {at}");
    }
    assert!(Program::read(b"").is_err());
    assert!(Program::read(b"#!/bin/sh").is_err());
}

/// Each byte of the headers with each value, and each length: an error, or a program within its bounds.
#[test]
fn damaged_files_never_break_a_promise() {
    let whole = file(0x20_1210, &[CODE, DATA]);
    let check = |bytes: &[u8]| {
        let Ok(program) = Program::read(bytes) else { return };
        for segment in program.segments() {
            assert!(segment.start.is_multiple_of(PAGE_BYTES) && segment.pages > 0);
            let addresses = segment.addresses();
            assert!(addresses.start >= abi::IMAGE.start && addresses.end <= abi::IMAGE.end);
            assert!(segment.offset + segment.bytes.len() as u64 <= segment.pages * PAGE_BYTES);
        }
        assert!(program.segments().map(|segment| segment.pages).sum::<u64>() <= PAGES_MAX);
    };
    for len in 0..whole.len() {
        check(&whole[..len]);
    }
    for at in 0..HEADER_BYTES + 2 * SEGMENT_BYTES {
        for value in 0..=u8::MAX {
            let mut bytes = whole.clone();
            bytes[at] = value;
            check(&bytes);
        }
    }
}
