//! The log that QEMU's `blklogwrites` keeps of a disk: each request that changes it, in order, flushes among them.
//!
//! The format is that of Linux's dm-log-writes. Sector 0 holds how many entries there are; each entry is a sector that
//! says what was done, and the data behind it. All numbers are little-endian.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::SECTOR_BYTES;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// More than a cut that comes in time leaves: what says more is no log.
const MOST_ENTRIES: u64 = 1 << 20;

const FLUSH: u64 = 1 << 0;
const DISCARD: u64 = 1 << 2;

/// Something that was done to the disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    Write {
        first: u64,
        data: Vec<u8>,
    },
    /// Nothing is known of what these sectors hold now.
    Discard {
        first: u64,
        sectors: u64,
    },
    /// Everything before is durable.
    Flush,
}

/// Reads what is in the log up to its last flush, as far as the log knows: what came later is lost with the power.
pub fn durable_entries(path: &Path) -> Result<Vec<Entry>> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut entries = read(&mut file).with_context(|| format!("{} is no log of writes", path.display()))?;
    let durable = entries.iter().rposition(|entry| *entry == Entry::Flush).map_or(0, |last| last + 1);
    entries.truncate(durable);
    Ok(entries)
}

fn read(log: &mut (impl Read + Seek)) -> Result<Vec<Entry>> {
    let head = words(log)?;
    if head == [0; 4] {
        // QEMU writes the head with the first flush.
        return Ok(Vec::new());
    }
    ensure!(head[0] == MAGIC && head[1] == VERSION, "magic {:#x}, version {}", head[0], head[1]);
    let (count, sector_bytes) = (head[2], head[3] as u32);
    ensure!(sector_bytes as usize == SECTOR_BYTES, "sectors of {sector_bytes} bytes");
    ensure!(count <= MOST_ENTRIES, "{count} entries");
    (0..count).map(|number| entry(log).with_context(|| format!("entry {number} of {count}"))).collect()
}

fn entry(log: &mut (impl Read + Seek)) -> Result<Entry> {
    let [first, sectors, flags, _] = words(log)?;
    if flags & DISCARD != 0 {
        // A discard has no data behind it.
        return Ok(Entry::Discard { first, sectors });
    }
    if sectors == 0 {
        ensure!(flags & FLUSH != 0, "neither data nor a flush, flags {flags:#x}");
        return Ok(Entry::Flush);
    }
    if sectors > crate::disk::SECTORS {
        bail!("{sectors} sectors from {first}");
    }
    let mut data = vec![0; sectors as usize * SECTOR_BYTES];
    log.read_exact(&mut data)?;
    Ok(Entry::Write { first, data })
}

/// The first words of the next sector.
fn words(log: &mut (impl Read + Seek)) -> Result<[u64; 4]> {
    let mut words = [0; 4];
    for word in &mut words {
        let mut bytes = [0; 8];
        log.read_exact(&mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    log.seek(SeekFrom::Current((SECTOR_BYTES - size_of_val(&words)) as i64))?;
    Ok(words)
}

#[cfg(test)]
pub mod builder {
    use super::*;

    /// A log of `entries`, as QEMU would write it.
    pub fn log(entries: &[Entry]) -> Vec<u8> {
        let mut log = sector(&[MAGIC, VERSION, entries.len() as u64, SECTOR_BYTES as u64]);
        for entry in entries {
            match entry {
                Entry::Write { first, data } => {
                    let sectors = (data.len() / SECTOR_BYTES) as u64;
                    log.extend(sector(&[*first, sectors, 0, data.len() as u64]));
                    log.extend(data);
                }
                Entry::Discard { first, sectors } => log.extend(sector(&[*first, *sectors, DISCARD, 0])),
                Entry::Flush => log.extend(sector(&[0, 0, FLUSH, 0])),
            }
        }
        log
    }

    fn sector(words: &[u64]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(SECTOR_BYTES, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn entries() -> Vec<Entry> {
        let write = |first, byte, sectors| Entry::Write { first, data: vec![byte; sectors * SECTOR_BYTES] };
        vec![write(5, 1, 2), Entry::Flush, Entry::Discard { first: 9, sectors: 4 }, write(7, 2, 1)]
    }

    #[test]
    fn a_log_says_what_was_done_in_order() {
        assert_eq!(read(&mut Cursor::new(builder::log(&entries()))).unwrap(), entries());
    }

    #[test]
    fn what_came_after_the_last_flush_is_not_durable() {
        let folder = crate::workspace::Workspace::locate().unwrap().scratch("unit-tests").unwrap();
        let path = folder.join("durable.log");
        std::fs::write(&path, builder::log(&entries())).unwrap();
        assert_eq!(durable_entries(&path).unwrap(), entries()[..2]);
        std::fs::write(&path, builder::log(&entries()[2..])).unwrap();
        assert_eq!(durable_entries(&path).unwrap(), []);
        // There was no flush yet: QEMU has not written the head.
        let headless = [vec![0; SECTOR_BYTES], builder::log(&entries())[SECTOR_BYTES..].to_vec()].concat();
        std::fs::write(&path, headless).unwrap();
        assert_eq!(durable_entries(&path).unwrap(), []);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_damaged_log_is_an_error() {
        let whole = builder::log(&entries());
        for length in [0, 31, 511, whole.len() - 1] {
            assert!(read(&mut Cursor::new(&whole[..length])).is_err(), "{length}");
        }
        for (offset, value) in [(0, 0), (8, 2), (23, 1), (24, 1), (512 + 15, 1)] {
            let mut damaged = whole.clone();
            damaged[offset] = value;
            assert!(read(&mut Cursor::new(damaged)).is_err(), "{offset}");
        }
    }
}
