//! How a command says where its data are.

/// Bytes of a page, as the configuration that turns a controller on says.
const PAGE_BYTES: u64 = 4096;

/// Entries of the list of pages that each command has room for: 1 KiB, so that no list that begins at a multiple of
/// that lies in two pages.
pub const LIST_ENTRIES: usize = 128;
/// What a list covers at least, wherever in a page the data begin: its first page is named in the command.
const LIST_BYTES_COVERED: u64 = LIST_ENTRIES as u64 * PAGE_BYTES;

/// The pages that data are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    first: u64,
    end: u64,
}

impl Pages {
    /// Those of the `bytes` bytes at `first`. No request is longer than [`blocks_per_request`] says.
    #[must_use]
    pub fn of(first: u64, bytes: u64) -> Self {
        Self { first, end: first.saturating_add(bytes) }
    }

    /// The two pointers of a command: to two pages at most, or to the first page and to the list at `list`, into which
    /// the others go by `write`, each with its index.
    pub fn pointers(self, list: u64, mut write: impl FnMut(usize, u64)) -> [u64; 2] {
        let Self { first, end } = self;
        let second = first - first % PAGE_BYTES + PAGE_BYTES;
        if end <= second {
            return [first, 0];
        }
        if end <= second + PAGE_BYTES {
            return [first, second];
        }
        // As many as a request may have, which was checked, have room.
        for (entry, page) in (second..end).step_by(PAGE_BYTES as usize).enumerate().take(LIST_ENTRIES) {
            write(entry, page);
        }
        [first, list]
    }
}

/// Blocks that a request may have: as the controller says (in pages, as a power of two; 0 for no limit), and as there
/// is room for in the list of its pages.
#[must_use]
pub fn blocks_per_request(limit_lg2: u8, block_lg2: u8) -> u32 {
    let device = if limit_lg2 == 0 { None } else { PAGE_BYTES.checked_shl(limit_lg2.into()) };
    let bytes = device.filter(|&bytes| bytes >> limit_lg2 == PAGE_BYTES).unwrap_or(u64::MAX);
    (bytes.min(LIST_BYTES_COVERED) >> block_lg2) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn pointers(first: u64, bytes: u64) -> ([u64; 2], Vec<u64>) {
        let mut list = Vec::new();
        let pointers = Pages::of(first, bytes).pointers(0x9000, |entry, page| {
            assert_eq!(entry, list.len());
            list.push(page);
        });
        (pointers, list)
    }

    #[test]
    fn two_pages_need_no_list() {
        assert_eq!(pointers(0x1000, 0x1000), ([0x1000, 0], Vec::new()));
        assert_eq!(pointers(0x1e00, 0x200), ([0x1e00, 0], Vec::new()));
        assert_eq!(pointers(0x1e00, 0x400), ([0x1e00, 0x2000], Vec::new()));
        assert_eq!(pointers(0x1000, 0x2000), ([0x1000, 0x2000], Vec::new()));
    }

    #[test]
    fn a_list_has_all_pages_but_the_first() {
        assert_eq!(pointers(0x1000, 0x2200), ([0x1000, 0x9000], [0x2000, 0x3000].into()));
        assert_eq!(pointers(0x1e00, 0x1400), ([0x1e00, 0x9000], [0x2000, 0x3000].into()));
        let (_, list) = pointers(0x1e00, LIST_BYTES_COVERED);
        assert_eq!(list.len(), LIST_ENTRIES);
    }

    #[test]
    fn a_request_has_room_in_its_list() {
        for (limit_lg2, block_lg2, blocks) in
            [(0, 9, 1024), (1, 9, 16), (7, 9, 1024), (7, 12, 128), (64, 9, 1024), (255, 12, 128)]
        {
            assert_eq!(blocks_per_request(limit_lg2, block_lg2), blocks, "2^{limit_lg2} pages");
        }
    }
}
