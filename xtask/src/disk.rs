//! The disk image: content that host and guest can both tell, and the comparison of what they saw.
//!
//! Every 512-byte sector starts with a readable label, the rest is drawn from a generator seeded with the
//! sector's number. So any range can be computed again without the image. Behind these are as many sectors of zeros,
//! which take no room on the host until a guest writes them.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

pub const SECTOR_BYTES: usize = 512;
/// All sectors.
pub const SECTORS: u64 = 2 * PATTERN_SECTORS;
/// Those that have a label, from 0 on.
const PATTERN_SECTORS: u64 = 128 * 1024;

/// A sector that QEMU fails to read, and one that it fails to write, in the machines that `xtask` starts.
pub const UNREADABLE: u64 = 50_000;
pub const UNWRITABLE: u64 = 50_008;

/// The content of sector `lba` before any guest wrote to it.
pub fn original(lba: u64) -> [u8; SECTOR_BYTES] {
    if lba < PATTERN_SECTORS { pattern(lba) } else { [0; SECTOR_BYTES] }
}

fn pattern(lba: u64) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let label = format!("Sluice test disk, sector {lba}\n");
    let (head, tail) = sector.split_at_mut(label.len());
    head.copy_from_slice(label.as_bytes());
    // SplitMix64: one seed a sector, no state shared between sectors.
    let mut state = lba;
    for chunk in tail.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
    }
    sector
}

/// Whether `path` is a disk image of the right size.
pub fn is_there(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|image| image.len() == SECTORS * SECTOR_BYTES as u64)
}

/// Writes a fresh image to `path`: under another name first, so that an interrupted run leaves no half image.
pub fn create(path: &Path) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
        for lba in 0..PATTERN_SECTORS {
            file.write_all(&pattern(lba))?;
        }
        file.into_inner()?.set_len(SECTORS * SECTOR_BYTES as u64)?;
        std::fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write the disk image {}", path.display()))
}

/// A digest that the guest reported for a range of the disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    pub kind: Kind,
    pub lba: u64,
    pub sectors: u64,
    pub digest: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the guest read is what the host had put there.
    Read,
    /// What the guest wrote is what the host finds after QEMU has ended.
    Written,
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Read => "disk-read",
            Kind::Written => "disk-written",
        };
        write!(f, "{kind} {} {}", self.lba, self.sectors)
    }
}

impl Claim {
    /// The claim in a control-channel value `disk-read|disk-written LBA COUNT SHA256`.
    pub fn parse(key: &str, words: &[String]) -> Result<Claim> {
        let kind = match key {
            "disk-read" => Kind::Read,
            "disk-written" => Kind::Written,
            _ => bail!("no value of this name is known"),
        };
        let [lba, sectors, digest] = words else { bail!("{key} wants LBA COUNT SHA256, not {words:?}") };
        let (lba, sectors): (u64, u64) = (lba.parse()?, sectors.parse()?);
        let end = lba.checked_add(sectors).filter(|&end| end <= SECTORS && sectors > 0);
        end.ok_or_else(|| anyhow!("{key} {lba} {sectors} is no range of a disk with {SECTORS} sectors"))?;
        Ok(Claim { kind, lba, sectors, digest: digest.to_ascii_lowercase() })
    }

    /// Compares the claim with the host's side: the pattern, or `image` as QEMU left it.
    pub fn verify(&self, image: &Path) -> Result<()> {
        let expected = match self.kind {
            Kind::Read => digest_of_original(self.lba, self.sectors),
            Kind::Written => digest_of_image(image, self.lba, self.sectors)?,
        };
        if expected != self.digest {
            bail!("the guest has {}, the host {expected}", self.digest);
        }
        if self.kind == Kind::Written && expected == digest_of_original(self.lba, self.sectors) {
            bail!("the range holds what it held before the run: nothing was written");
        }
        Ok(())
    }
}

pub fn digest_of_original(lba: u64, sectors: u64) -> String {
    let mut hash = Sha256::new();
    for sector in lba..lba + sectors {
        hash.update(original(sector));
    }
    hexadecimal(&hash.finalize())
}

pub fn digest_of_image(image: &Path, lba: u64, sectors: u64) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(image)?;
        file.seek(SeekFrom::Start(lba * SECTOR_BYTES as u64))?;
        let mut hash = Sha256::new();
        let mut sector = [0; SECTOR_BYTES];
        for _ in 0..sectors {
            file.read_exact(&mut sector)?;
            hash.update(sector);
        }
        Ok(hexadecimal(&hash.finalize()))
    };
    read().with_context(|| format!("cannot read {sectors} sectors from {lba} of {}", image.display()))
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    fn image(name: &str) -> std::path::PathBuf {
        let path = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join(name);
        create(&path).unwrap();
        path
    }

    fn claim(key: &str, words: &str) -> Result<Claim> {
        Claim::parse(key, &words.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn digests_are_sha_256() {
        assert_eq!(
            hexadecimal(&Sha256::digest(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn sectors_differ_and_carry_their_label() {
        assert!(pattern(77).starts_with(b"Sluice test disk, sector 77\n"));
        assert_ne!(pattern(1)[64..], pattern(2)[64..]);
        assert_eq!(pattern(5), pattern(5));
    }

    #[test]
    fn an_image_holds_the_pattern_and_a_read_is_compared_with_it() {
        let image = image("read.img");
        assert!(is_there(&image) && !is_there(Path::new("/nonexistent/disk.img")));
        for first in [100, PATTERN_SECTORS - 1, SECTORS - 64] {
            assert_eq!(digest_of_image(&image, first, 64).unwrap(), digest_of_original(first, 64));
        }
        let right = claim("disk-read", &format!("100 64 {}", digest_of_original(100, 64))).unwrap();
        assert!(right.verify(&image).is_ok());
        let shifted = claim("disk-read", &format!("101 64 {}", digest_of_original(100, 64))).unwrap();
        assert!(shifted.verify(&image).is_err());
        std::fs::remove_file(image).unwrap();
    }

    #[test]
    fn a_write_must_have_reached_the_image_and_changed_it() {
        let image = image("written.img");
        let unwritten = claim("disk-written", &format!("8 1 {}", digest_of_original(8, 1))).unwrap();
        assert!(unwritten.verify(&image).unwrap_err().to_string().contains("nothing was written"));
        let mut file = File::options().write(true).open(&image).unwrap();
        file.seek(SeekFrom::Start(8 * SECTOR_BYTES as u64)).unwrap();
        file.write_all(&[7; SECTOR_BYTES]).unwrap();
        let digest = hexadecimal(&Sha256::digest([7; SECTOR_BYTES]));
        assert!(claim("disk-written", &format!("8 1 {digest}")).unwrap().verify(&image).is_ok());
        assert!(claim("disk-written", &format!("9 1 {digest}")).unwrap().verify(&image).is_err());
        std::fs::remove_file(image).unwrap();
    }

    #[test]
    fn ranges_off_the_disk_and_unknown_values_are_errors() {
        assert!(claim("disk-read", "262144 1 00").is_err());
        assert!(claim("disk-read", "18446744073709551615 2 00").is_err());
        assert!(claim("disk-read", "0 0 00").is_err());
        assert!(claim("disk-read", "0 1").is_err());
        assert!(claim("colour", "0 1 00").is_err());
        assert!(claim("disk-read", "262143 1 00").is_ok());
    }
}
