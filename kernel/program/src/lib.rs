//! Program files for ring 3: untrusted bytes in, what to put where out.
//!
//! A program is a static ELF64 file for x86-64. [`Program::read`] checks all that the loader relies on: it then needs
//! no more than to map the pages of each [`Segment`] and to copy its bytes there.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use core::fmt;

use elf::{
    ElfBytes, ParseError,
    abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS},
    endian::LittleEndian,
    file::Class,
    segment::ProgramHeader,
};
use mm::PAGE_BYTES;

/// Most segments to be loaded; a linker makes four.
pub const SEGMENTS_MAX: usize = 8;
/// Most headers of segments that are looked at.
const HEADERS_MAX: usize = 32;
/// Most pages of all segments together: 4 MiB.
pub const PAGES_MAX: u64 = 1024;

/// A program that can be loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// Where it starts: in a segment that can be executed.
    pub entry: u64,
    segments: [Option<Segment<'a>>; SEGMENTS_MAX],
}

/// Pages that have something of the file in them. No two segments have one in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Address of the first page, in [`abi::IMAGE`] as all of them.
    pub start: u64,
    /// How many there are, at least one.
    pub pages: u64,
    /// Where in the pages `bytes` begin. What is not theirs is zero.
    pub offset: u64,
    /// What the file has.
    pub bytes: &'a [u8],
    /// What the program may do with the pages besides reading; never both.
    pub access: Access,
}

/// What a program may do with pages besides reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Read,
    /// Write.
    Write,
    /// Execute.
    Execute,
}

/// Why a file is no program. Numbers of segments are those of their headers.
#[derive(Debug)]
pub enum ProgramError {
    /// It is no ELF file, or a table of it is not in it.
    Elf(ParseError),
    /// It is one for another machine, or of another kind: not static, or to be relocated.
    Kind { class: Class, kind: u16, machine: u16 },
    /// It has more segments than any program.
    Segments { headers: usize },
    /// The segment needs somebody who is not there: a dynamic linker, or who makes thread-local storage.
    Needs { segment: usize, kind: u32 },
    /// The segment's bytes are not in the file, or more than its memory.
    Bytes { segment: usize, offset: u64, file: u64, memory: u64 },
    /// The segment is not in [`abi::IMAGE`].
    Place { segment: usize, address: u64, memory: u64 },
    /// The segment shares a page with one before it.
    Overlap { segment: usize, address: u64 },
    /// The segment could be written and executed.
    WriteAndExecute { segment: usize },
    /// All segments together need more pages than a program may have.
    TooLarge { pages: u64 },
    /// It starts where nothing can be executed.
    Entry { address: u64 },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => write!(f, "{error}"),
            Self::Kind { class, kind, machine } => {
                write!(f, "{class:?} of type {kind} for machine {machine}: no static program for x86-64")
            }
            Self::Segments { headers } => write!(f, "{headers} headers of segments"),
            Self::Needs { segment, kind } => write!(f, "segment {segment} is of type {kind:#x}"),
            Self::Bytes { segment, offset, file, memory } => {
                write!(
                    f,
                    "segment {segment} is {file:#x} bytes at {offset:#x} of the file for {memory:#x} of memory"
                )
            }
            Self::Place { segment, address, memory } => {
                write!(f, "segment {segment} wants {memory:#x} bytes at {address:#x}")
            }
            Self::Overlap { segment, address } => {
                write!(f, "segment {segment}, at {address:#x}, shares a page with another")
            }
            Self::WriteAndExecute { segment } => write!(f, "segment {segment} can be written and executed"),
            Self::TooLarge { pages } => write!(f, "{pages} pages"),
            Self::Entry { address } => write!(f, "it starts at {address:#x}, where it has no code"),
        }
    }
}

impl core::error::Error for ProgramError {}

impl From<ParseError> for ProgramError {
    fn from(error: ParseError) -> Self {
        Self::Elf(error)
    }
}

impl<'a> Program<'a> {
    /// What `file` says.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub fn read(file: &'a [u8]) -> Result<Self, ProgramError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
        let header = &elf.ehdr;
        if header.class != Class::ELF64 || header.e_type != ET_EXEC || header.e_machine != EM_X86_64 {
            let (kind, machine) = (header.e_type, header.e_machine);
            return Err(ProgramError::Kind { class: header.class, kind, machine });
        }
        let headers = elf.segments().map_or(0, |table| table.len());
        if headers > HEADERS_MAX {
            return Err(ProgramError::Segments { headers });
        }
        let mut program = Self { entry: header.e_entry, segments: [None; SEGMENTS_MAX] };
        for (number, header) in elf.segments().into_iter().flatten().enumerate() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => program.add(file, number, &header)?,
                kind @ (PT_DYNAMIC | PT_INTERP | PT_TLS) => {
                    return Err(ProgramError::Needs { segment: number, kind });
                }
                _ => {}
            }
        }
        let is_code = |segment: &Segment<'_>| {
            segment.access == Access::Execute && segment.addresses().contains(&program.entry)
        };
        if !program.segments().any(|segment| is_code(&segment)) {
            return Err(ProgramError::Entry { address: program.entry });
        }
        Ok(program)
    }

    /// What is to be loaded.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> {
        self.segments.iter().copied().flatten()
    }

    fn add(&mut self, file: &'a [u8], number: usize, header: &ProgramHeader) -> Result<(), ProgramError> {
        let segment = Segment::read(file, number, header)?;
        let overlaps = |other: Segment<'_>| {
            other.addresses().start < segment.addresses().end && segment.start < other.addresses().end
        };
        if self.segments().any(overlaps) {
            return Err(ProgramError::Overlap { segment: number, address: segment.start });
        }
        let pages = self.segments().map(|segment| segment.pages).sum::<u64>() + segment.pages;
        if pages > PAGES_MAX {
            return Err(ProgramError::TooLarge { pages });
        }
        let free = self.segments.iter_mut().find(|segment| segment.is_none());
        *free.ok_or(ProgramError::Segments { headers: number + 1 })? = Some(segment);
        Ok(())
    }
}

impl<'a> Segment<'a> {
    fn read(file: &'a [u8], number: usize, header: &ProgramHeader) -> Result<Self, ProgramError> {
        let &ProgramHeader { p_offset, p_vaddr, p_filesz, p_memsz, p_flags, .. } = header;
        let place = ProgramError::Place { segment: number, address: p_vaddr, memory: p_memsz };
        let end = p_vaddr.checked_add(p_memsz);
        let Some(end) = end.filter(|&end| p_vaddr >= abi::IMAGE.start && end <= abi::IMAGE.end) else {
            return Err(place);
        };
        let in_file = p_offset.checked_add(p_filesz).filter(|_| p_filesz <= p_memsz);
        let bytes =
            in_file.and_then(|end| file.get(usize::try_from(p_offset).ok()?..usize::try_from(end).ok()?));
        let bytes = bytes.ok_or(ProgramError::Bytes {
            segment: number,
            offset: p_offset,
            file: p_filesz,
            memory: p_memsz,
        })?;
        let access = match (p_flags & PF_W != 0, p_flags & PF_X != 0) {
            (true, true) => return Err(ProgramError::WriteAndExecute { segment: number }),
            (true, false) => Access::Write,
            (false, true) => Access::Execute,
            (false, false) => Access::Read,
        };
        let offset = p_vaddr % PAGE_BYTES;
        let start = p_vaddr - offset;
        Ok(Self { start, pages: (end - start).div_ceil(PAGE_BYTES), offset, bytes, access })
    }

    /// The addresses of its pages.
    #[must_use]
    pub fn addresses(&self) -> core::ops::Range<u64> {
        self.start..self.start + self.pages * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests;
