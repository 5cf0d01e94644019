//! The firmware's tables, located and checked by the `acpi` crate; no AML.
//!
//! Firmware is untrusted. The crate checks signatures and checksums, but takes addresses and lengths as they are: so
//! the [`Handler`] shows it only tables that lie wholly in memory that the memory map speaks of, and an empty page
//! instead of any other, which then fails the signature check. What the crate's own readers of MADT and MCFG would
//! take on trust (entry lengths), is read from checked byte slices here.

use alloc::vec::Vec;
use core::{fmt, mem::size_of, ptr::NonNull, slice};

use ::acpi::{
    AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping,
    rsdp::Rsdp,
    sdt::{SdtHeader, Signature},
};
use mm::PhysAddr;

use crate::memory;

/// No table of interest is larger, by far.
const TABLE_BYTES_MAX: usize = 1 << 20;
/// The id by which all CPUs are addressed in x2APIC mode.
const X2APIC_BROADCAST: u32 = u32::MAX;
/// Most entries of each kind that are taken from a table.
const ENTRIES_MAX: usize = 1024;

/// What the tables say.
#[derive(Default)]
pub struct Tables {
    /// The whole DMAR table, header included, for the `iommu` crate's parser.
    pub dmar: Option<&'static [u8]>,
    /// Configuration space (MCFG).
    pub segments: Vec<EcamSegment>,
    /// APIC ids of the CPUs that may be used, each once (MADT).
    pub cpus: Vec<u32>,
    /// CPUs that are not there yet: firmware could bring them in while the machine runs (MADT).
    pub cpus_to_come: usize,
    /// I/O APICs (MADT).
    pub io_apics: Vec<IoApicEntry>,
    overrides: Vec<(u8, Wire)>,
    /// Entries that made no sense.
    pub entries_ignored: usize,
}

/// Configuration space of some buses, 1 MiB for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EcamSegment {
    /// PCI segment group.
    pub segment: u16,
    /// First bus of the entry.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
    /// Where bus 0 of the segment would be, whether or not the entry covers it.
    pub base: PhysAddr,
}

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApicEntry {
    /// Its id, by which a DMAR table names it.
    pub id: u8,
    /// Its registers.
    pub address: PhysAddr,
    /// The global number of its first input.
    pub first_input: u32,
}

/// Where a wired interrupt comes in, and how it is signalled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wire {
    /// Global number of the I/O APIC input.
    pub input: u32,
    /// Signalled by a low level or a falling edge.
    pub is_active_low: bool,
    /// Signalled as long as the level lasts.
    pub is_level: bool,
}

/// Why there are no tables.
#[derive(Debug)]
pub enum TablesError {
    /// The root pointer does not lie in the firmware's memory.
    RootUnreachable(PhysAddr),
    /// The root pointer claims a length that none has.
    RootLength(u32),
    /// The crate's verdict.
    Invalid(AcpiError),
}

impl fmt::Display for TablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootUnreachable(at) => {
                write!(f, "ACPI root pointer at {at} is not in the firmware's memory")
            }
            Self::RootLength(bytes) => write!(f, "ACPI root pointer of {bytes} bytes"),
            Self::Invalid(error) => write!(f, "ACPI tables: {error:?}"),
        }
    }
}

impl core::error::Error for TablesError {}

/// Reads the tables that `rsdp` leads to.
///
/// # Errors
/// The root pointer or the root table is none. Other tables that are malformed count as missing, with a warning.
pub fn read(rsdp: PhysAddr) -> Result<Tables, TablesError> {
    let pointer = memory::map_firmware(rsdp, size_of::<Rsdp>()).ok_or(TablesError::RootUnreachable(rsdp))?;
    // SAFETY: mapped above; any bytes are a valid `Rsdp`.
    let root: Rsdp = unsafe { pointer.cast::<Rsdp>().read_unaligned() };
    // The check sums up as many bytes as the structure claims to have.
    if root.revision() > 0 && root.length() as usize != size_of::<Rsdp>() {
        return Err(TablesError::RootLength(root.length()));
    }
    root.validate().map_err(TablesError::Invalid)?;
    let table = if root.revision() == 0 { root.rsdt_address().into() } else { root.xsdt_address() };
    // SAFETY: the handler vouches for whatever address the tables contain.
    let tables = unsafe { AcpiTables::from_rsdt(Handler, root.revision(), table as usize) }
        .map_err(TablesError::Invalid)?;

    let mut found = Tables { dmar: bytes_of::<Dmar>(&tables), ..Tables::default() };
    if let Some(mcfg) = bytes_of::<Mcfg>(&tables) {
        found.read_mcfg(mcfg);
    }
    if let Some(madt) = bytes_of::<Madt>(&tables) {
        found.read_madt(madt);
    }
    if found.entries_ignored > 0 {
        log::warn!("{} entries of MCFG and MADT make no sense and are ignored", found.entries_ignored);
    }
    Ok(found)
}

impl Tables {
    /// How an ISA interrupt reaches an I/O APIC.
    pub fn isa_wire(&self, irq: u8) -> Wire {
        let identity = Wire { input: irq.into(), is_active_low: false, is_level: false };
        self.overrides.iter().find(|(source, _)| *source == irq).map_or(identity, |(_, wire)| *wire)
    }

    /// Adds the entries of an MCFG table; those that make no sense are ignored.
    pub fn read_mcfg(&mut self, table: &[u8]) {
        const ENTRIES: usize = size_of::<SdtHeader>() + 8;
        const ENTRY_BYTES: usize = 16;
        let entries = table.get(ENTRIES..).unwrap_or_default().chunks_exact(ENTRY_BYTES);
        for entry in entries.take(ENTRIES_MAX) {
            let (first_bus, last_bus) = (entry[10], entry[11]);
            match u64_at(entry, 0).and_then(PhysAddr::checked) {
                Some(base) if first_bus <= last_bus && base.is_aligned(1 << 20) => {
                    let segment = u16::from_le_bytes([entry[8], entry[9]]);
                    self.segments.push(EcamSegment { segment, first_bus, last_bus, base });
                }
                _ => self.entries_ignored += 1,
            }
        }
    }

    /// Adds the entries of an MADT table, up to the first whose length makes no sense.
    pub fn read_madt(&mut self, table: &[u8]) {
        const ENTRIES: usize = size_of::<SdtHeader>() + 8;
        let mut rest = table.get(ENTRIES..).unwrap_or_default();
        for _ in 0..ENTRIES_MAX {
            let Some((&[kind, bytes], _)) = rest.split_first_chunk() else { return };
            let Some((entry, after)) = rest.split_at_checked(bytes.into()).filter(|_| bytes >= 2) else {
                self.entries_ignored += 1;
                return;
            };
            if self.read_madt_entry(kind, entry).is_none() {
                self.entries_ignored += 1;
            }
            rest = after;
        }
    }

    /// `None` if the entry is too short for its type. Types that are of no interest are skipped.
    fn read_madt_entry(&mut self, kind: u8, entry: &[u8]) -> Option<()> {
        const LOCAL_APIC: u8 = 0;
        const IO_APIC: u8 = 1;
        const SOURCE_OVERRIDE: u8 = 2;
        const LOCAL_X2APIC: u8 = 9;
        /// The id by which all CPUs are addressed, and so that of none.
        const XAPIC_BROADCAST: u8 = 0xff;
        match kind {
            LOCAL_APIC => {
                let (flags, id) = (u32_at(entry, 4)?, *entry.get(3)?);
                self.add_cpu(if id == XAPIC_BROADCAST { X2APIC_BROADCAST } else { id.into() }, flags);
            }
            LOCAL_X2APIC => self.add_cpu(u32_at(entry, 4)?, u32_at(entry, 8)?),
            IO_APIC => {
                let address = PhysAddr::new(u32_at(entry, 4)?.into());
                let (id, first_input) = (*entry.get(2)?, u32_at(entry, 8)?);
                self.io_apics.push(IoApicEntry { id, address, first_input });
            }
            SOURCE_OVERRIDE => {
                let flags = *entry.get(8)?;
                let wire = Wire {
                    input: u32_at(entry, 4)?,
                    is_active_low: flags & 0b11 == 0b11,
                    is_level: flags >> 2 & 0b11 == 0b11,
                };
                self.overrides.push((*entry.get(3)?, wire));
            }
            _ => {}
        }
        Some(())
    }

    /// A CPU by its id and its entry's flags. One that is neither enabled nor can become so is no CPU, and firmware may
    /// list one that is in both formats.
    fn add_cpu(&mut self, id: u32, flags: u32) {
        const ENABLED: u32 = 1 << 0;
        const ONLINE_CAPABLE: u32 = 1 << 1;
        if flags & ENABLED != 0 {
            if id != X2APIC_BROADCAST && !self.cpus.contains(&id) {
                self.cpus.push(id);
            }
        } else if flags & ONLINE_CAPABLE != 0 {
            self.cpus_to_come += 1;
        }
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// Shows the crate what the firmware's memory holds.
#[derive(Clone, Copy, Debug)]
struct Handler;

/// What the crate sees where there is no table.
#[repr(align(4096))]
struct Nothing([u8; 4096]);
static NOTHING: Nothing = Nothing([0; 4096]);

impl AcpiHandler for Handler {
    /// The whole table at `address`, whatever `bytes` asks for: the crate asks for the header first, and sees by
    /// `mapped_length` that there is more.
    unsafe fn map_physical_region<T>(&self, address: usize, bytes: usize) -> PhysicalMapping<Self, T> {
        const { assert!(size_of::<T>() <= size_of::<Nothing>()) };
        let (start, mapped) = match table_at(address) {
            Some(table) if bytes <= table.len() => (NonNull::from(table).cast(), table.len()),
            _ => (NonNull::from(&NOTHING.0).cast(), size_of::<Nothing>()),
        };
        // SAFETY: `mapped` bytes are mapped at `start` for good, and `bytes` is not more.
        unsafe { PhysicalMapping::new(address, start, bytes.min(mapped), mapped, *self) }
    }

    /// Mappings stay: there are few, and the kernel goes on using the tables.
    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// The table whose header is at `address`, if all of it is in the firmware's memory.
fn table_at(address: usize) -> Option<&'static [u8]> {
    let address = PhysAddr::checked(address as u64)?;
    let header = memory::map_firmware(address, size_of::<SdtHeader>())?;
    // SAFETY: mapped above; any bytes are a valid header.
    let bytes = unsafe { header.cast::<SdtHeader>().read_unaligned() }.length as usize;
    if !(size_of::<SdtHeader>()..=TABLE_BYTES_MAX).contains(&bytes) {
        log::warn!("ACPI table at {address} claims {bytes} bytes");
        return None;
    }
    let table = memory::map_firmware(address, bytes)?;
    // SAFETY: mapped read-only, for good; the firmware does not change its tables.
    Some(unsafe { slice::from_raw_parts(table.as_ptr(), bytes) })
}

/// The bytes of the first table of type `T`, checked as a whole.
fn bytes_of<T: AcpiTable>(tables: &AcpiTables<Handler>) -> Option<&'static [u8]> {
    let table = tables.find_table::<T>().ok()?;
    let (start, bytes) = (table.virtual_start().cast(), table.region_length());
    // SAFETY: the handler maps tables for good, and as long as the header says.
    Some(unsafe { slice::from_raw_parts(start.as_ptr(), bytes) })
}

macro_rules! raw_table {
    ($($name:ident: $signature:ident;)+) => {$(
        /// A table by its signature; only its header is looked at by type.
        #[repr(transparent)]
        struct $name(SdtHeader);

        // SAFETY: a header and nothing else, which every table has.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = Signature::$signature;

            fn header(&self) -> &SdtHeader {
                &self.0
            }
        }
    )+};
}

raw_table! {
    Dmar: DMAR;
    Mcfg: MCFG;
    Madt: MADT;
}
