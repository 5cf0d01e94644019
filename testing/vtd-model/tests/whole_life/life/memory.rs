//! What drivers map in a life, and what becomes of it.

use iommu::{
    Bidirectional, Coherent, DmaDevice, DmaError, FromDevice, Iova, Mapping, Rejected, ToDevice,
    dma::{Direction, ScatterList},
};
use vtd_model::ModelBuffer;

use super::{
    Function, Life, PAGE,
    held::{Held, Ragged, Returned},
};
use crate::{
    oracle::{Mapped, State},
    step::Step,
};

/// Where the device stands for which something was mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Its driver has it: it reaches what is mapped.
    InUse,
    /// Its group went into quarantine since: it reaches nothing, and nothing comes back.
    Revoked,
    /// Its group was released since: it reaches nothing, and everything comes back.
    Quiet,
}

pub(super) struct Live {
    pub function: usize,
    pub iova: u64,
    pub bytes: u64,
    /// The buffers that are lent with it.
    pub memory: Vec<u64>,
    /// The oracle's ranges of it.
    pub pieces: Vec<Piece>,
    pub held: Held,
    pub standing: Standing,
    /// Bytes that the device wrote, and where.
    pub written: Option<(u64, Vec<u8>)>,
}

pub(super) struct LiveCoherent {
    pub function: usize,
    pub standing: Standing,
    pub memory: Coherent<u64>,
}

/// A group, and a range that it reaches or reached.
pub(super) type Touched = Option<(usize, u64, u64)>;

/// First address, length in bytes, and the memory if it is known.
pub(super) type Piece = (u64, u64, Option<u64>);

impl Life {
    pub(super) fn map(&mut self, step: &Step, at: Option<()>, mask: u32) -> Result<Touched, String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(None) };
        let (pages, align) = size(step.b);
        let Some(mut buffer) = self.driven.machine.allocate_buffer(pages, align) else { return Ok(None) };
        mark(&mut buffer, step.c);
        let function = &self.functions[index];
        let handle = function.handle.clone().expect("claimed");
        handle.set_address_bits(mask.min(64));
        let at = at.map(|()| {
            let bits = u64::from(function.address_bits).min(40 + (step.c & 7));
            Iova::new(((step.c >> 3) % (1 << bits)) & !(PAGE - 1))
        });
        let physical = buffer.physical();
        let held = match step.c % 3 {
            0 => map_in(&handle, buffer, ToDevice, at).map(Held::To),
            1 => map_in(&handle, buffer, FromDevice, at).map(Held::From),
            _ => map_in(&handle, buffer, Bidirectional, at).map(Held::Both),
        };
        match held {
            Ok(held) => {
                let (iova, bytes) = held.range();
                self.mapped(index, held, vec![physical], vec![(iova, bytes, Some(physical))], at, mask)
                    .map(Some)
            }
            Err(Rejected { error, buffer }) => {
                let same =
                    |buffer: ModelBuffer| buffer.physical() == physical && read_mark(&buffer) == step.c;
                if !buffer.is_some_and(same) {
                    return Err(format!("the buffer did not come back from a refused map: {error}"));
                }
                match at {
                    Some(at) => self.excuse_at(index, error, (at.as_u64(), u64::from(pages) * PAGE))?,
                    None => self.excuse(error, pages, mask)?,
                }
                let near = at.map_or(0x1000, Iova::as_u64);
                Ok(Some((self.functions[index].group, near, PAGE)))
            }
        }
    }

    /// A list of buffers.
    pub(super) fn map_list(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(None) };
        let count = 1 + step.b % 8;
        let (mut list, mut lent) = (ScatterList::with_capacity(0).map_err(|e| e.to_string())?, Vec::new());
        for number in 0..count {
            let pages = 1 + (step.c >> (4 * number)) as u32 % 4;
            let Some(buffer) = self.driven.machine.allocate_buffer(pages, 1) else { break };
            lent.push((buffer.physical(), buffer.bytes() as u64));
            list.push(buffer).map_err(|rejected| rejected.error.to_string())?;
        }
        if list.is_empty() {
            return Ok(None);
        }
        let handle = self.functions[index].handle.clone().expect("claimed");
        handle.set_address_bits(64);
        match handle.dma_map_sg(list, Bidirectional) {
            Ok(mapping) => {
                let held = Held::List(mapping);
                let mut at = held.range().0;
                let pieces = lent.iter().map(|&(physical, bytes)| {
                    at += bytes;
                    (at - bytes, bytes, Some(physical))
                });
                let pieces = pieces.collect();
                let memory = lent.iter().map(|&(physical, _)| physical).collect();
                self.mapped(index, held, memory, pieces, None, 64).map(Some)
            }
            Err(Rejected { error, buffer: Some(list) }) if list.len() == lent.len() => {
                self.excuse(error, 0, 64).map(|()| None)
            }
            Err(rejected) => Err(format!("the list did not come back: {}", rejected.error)),
        }
    }

    /// A buffer that is not whole pages.
    pub(super) fn map_ragged(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(None) };
        let pages = 1 + step.b as u32 % 4;
        let all = u64::from(pages) * PAGE;
        let offset = step.c % all.min(PAGE);
        let bytes = 1 + (step.c >> 20) % (all - offset);
        let Some(buffer) = self.driven.machine.allocate_buffer(pages, 1) else { return Ok(None) };
        let ragged = Ragged::new(buffer, offset as usize, bytes as usize);
        let (physical, place) = (ragged.physical(), ragged.pages(offset));
        let handle = self.functions[index].handle.clone().expect("claimed");
        handle.set_address_bits(64);
        match handle.dma_map(ragged, Bidirectional) {
            Ok(mapping) => {
                let held = Held::Ragged(mapping);
                let to_page = held.range().0 - offset;
                let pieces = place.into_iter().map(|(at, bytes, memory)| (to_page + at, bytes, memory));
                let pieces = pieces.collect();
                self.mapped(index, held, vec![physical], pieces, None, 64).map(Some)
            }
            Err(Rejected { error, buffer: Some(_) }) => self.excuse(error, pages, 64).map(|()| None),
            Err(rejected) => Err(format!("a ragged buffer did not come back: {}", rejected.error)),
        }
    }

    /// Whether a map may fail like this.
    fn excuse(&self, error: DmaError, pages: u32, mask: u32) -> Result<(), String> {
        let fine = match error {
            DmaError::OutOfMemory => self.short_of_memory,
            // What is mapped, and what alignment costs, may fill a small window.
            DmaError::NoIova { .. } => mask <= 30 || pages > 1 << 12,
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("map of {pages} pages below 2^{mask}: {error}")) }
    }

    /// Whether a map into a given range, whose first address and length these are, may fail like this.
    fn excuse_at(&self, index: usize, error: DmaError, (first, bytes): (u64, u64)) -> Result<(), String> {
        let (group, last) = (self.functions[index].group, first + (bytes - 1));
        let meets = |(start, mapped): (u64, Mapped)| start <= last && first <= start + (mapped.bytes - 1);
        let is_taken = self.groups[group].oracle.ranges().any(meets);
        let raises_interrupts = first < 0xfef0_0000 && last >= 0xfee0_0000;
        let fine = match error {
            DmaError::OutOfMemory => self.short_of_memory,
            // A domain is as wide as the narrowest of its group's units.
            DmaError::IovaBeyond { last: limit, .. } => last > limit && limit >= (1 << 30) - 1,
            DmaError::IovaReserved { .. } => raises_interrupts || is_taken,
            DmaError::IovaTaken { .. } => !raises_interrupts && is_taken,
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("map of {bytes:#x} bytes at {first:#x}: {error}")) }
    }

    fn mapped(
        &mut self,
        index: usize,
        held: Held,
        memory: Vec<u64>,
        pieces: Vec<Piece>,
        at: Option<Iova>,
        mask: u32,
    ) -> Result<(usize, u64, u64), String> {
        let (iova, bytes) = held.range();
        let (group, bits) = (self.functions[index].group, self.functions[index].address_bits.min(mask));
        let last = iova + (bytes - 1);
        if last >> bits != 0 || iova < PAGE && at.is_none() || iova < 0xfef0_0000 && last >= 0xfee0_0000 {
            return Err(format!("IOVA {iova:#x} to {last:#x} with {bits} bits"));
        }
        if at.is_some_and(|at| at.as_u64() != iova) {
            return Err(format!("IOVA {iova:#x} instead of {at:?}"));
        }
        let (read, write) = held.rights();
        let read = read || self.functions[index].reads_what_it_writes;
        for &(iova, bytes, physical) in &pieces {
            let mapped = Mapped { bytes, physical, read, write, state: State::InUse };
            let inserted = self.groups[group].oracle.insert(iova, mapped);
            inserted.map_err(|other| format!("IOVA {iova:#x} given out while {other:#x} is taken"))?;
        }
        self.note_address(group, iova);
        let standing = Standing::InUse;
        self.live.push(Live { function: index, iova, bytes, memory, pieces, held, standing, written: None });
        Ok((group, iova, bytes))
    }

    /// The driver wants its buffer back; it gets it unless its device is in quarantine.
    pub(super) fn unmap(&mut self, index: usize) -> Result<Touched, String> {
        let live = self.live.swap_remove(index);
        let Function { group, hardware, .. } = &self.functions[live.function];
        let group = *group;
        // Its device does not stop at once.
        hardware.keep_trying(&[live.iova, live.iova + self.random.below(live.bytes)]);
        let unmapped = live.held.unmap();
        hardware.keep_trying(&[]);
        let returned = match (unmapped, live.standing) {
            (Err(DmaError::Revoked), Standing::Revoked) => {
                self.groups[group].waiting.extend(&live.memory);
                return Ok(None);
            }
            (Ok(returned), Standing::InUse | Standing::Quiet) => returned,
            (other, standing) => return Err(format!("unmap of {:#x}, {standing:?}: {other:?}", live.iova)),
        };
        self.expect_written(live.iova, live.written.as_ref(), returned)?;
        if live.standing == Standing::Quiet {
            return Ok(None);
        }
        live.pieces.iter().for_each(|&(iova, ..)| self.groups[group].oracle.remove(iova));
        Ok(Some((group, live.iova, live.bytes)))
    }

    /// What a device wrote is in the buffer that came back from `iova`.
    pub(super) fn expect_written(
        &self,
        iova: u64,
        written: Option<&(u64, Vec<u8>)>,
        returned: Returned,
    ) -> Result<(), String> {
        let (offset, data) = written.map_or((0, &[][..]), |(offset, data)| (*offset, data.as_slice()));
        if returned.holds(offset as usize, data) {
            return Ok(());
        }
        Err(format!("what the device wrote to {:#x} is not there, or more is", iova + offset))
    }

    pub(super) fn unmap_all(&mut self) -> Result<(), String> {
        while !self.live.is_empty() {
            self.unmap(self.live.len() - 1)?;
        }
        Ok(())
    }

    pub(super) fn drop_mapping(&mut self, index: usize) -> Touched {
        let live = self.live.swap_remove(index);
        let group = self.functions[live.function].group;
        drop(live.held);
        match live.standing {
            Standing::InUse => {
                for &(iova, ..) in &live.pieces {
                    self.groups[group].oracle.set_state(iova, State::Dropped);
                }
                return Some((group, live.iova, live.bytes));
            }
            Standing::Revoked => self.groups[group].waiting.extend(&live.memory),
            Standing::Quiet => {}
        }
        None
    }

    pub(super) fn allocate_coherent(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(function) = self.pick_claimed(step.a) else { return Ok(None) };
        let count = 1 + step.b as usize % 2000;
        let handle = self.functions[function].handle.clone().expect("claimed");
        handle.set_address_bits(64);
        match handle.alloc_coherent::<u64>(count) {
            Ok(memory) => {
                let (iova, bytes) = (memory.iova().as_u64(), (count as u64 * 8).next_multiple_of(PAGE));
                let mapped = Mapped { bytes, physical: None, read: true, write: true, state: State::InUse };
                let group = self.functions[function].group;
                let inserted = self.groups[group].oracle.insert(iova, mapped);
                inserted.map_err(|other| format!("coherent {iova:#x} overlaps {other:#x}"))?;
                self.coherent.push(LiveCoherent { function, standing: Standing::InUse, memory });
                Ok(Some((group, iova, bytes)))
            }
            Err(DmaError::OutOfMemory) if self.short_of_memory => Ok(None),
            Err(error) => Err(format!("coherent memory: {error}")),
        }
    }

    pub(super) fn drop_coherent(&mut self, coherent: LiveCoherent) -> Touched {
        let group = self.functions[coherent.function].group;
        let (iova, bytes) = (coherent.memory.iova().as_u64(), coherent.memory.len() as u64 * 8);
        drop(coherent.memory);
        if coherent.standing != Standing::InUse {
            return None;
        }
        self.groups[group].oracle.set_state(iova, State::Dropped);
        Some((group, iova, bytes))
    }

    /// CPU and device see each other's stores, as long as the device is the driver's.
    pub(super) fn touch_coherent(&mut self, step: &Step) -> Result<Touched, String> {
        if self.coherent.is_empty() {
            return Ok(None);
        }
        let at = step.a as usize % self.coherent.len();
        let LiveCoherent { function, standing, memory } = &mut self.coherent[at];
        let index = step.b as usize % memory.len();
        let hardware = &self.functions[*function].hardware;
        memory.write(index, step.c);
        if *standing != Standing::InUse {
            let still = memory.read(index) == step.c;
            return if still { Ok(None) } else { Err("memory of a device that is gone changed".to_owned()) };
        }
        let mut seen = [0; 8];
        hardware.read(memory.iova_of(index).as_u64(), &mut seen).map_err(|error| format!("{error:?}"))?;
        hardware
            .write(memory.iova_of(index).as_u64(), &(!step.c).to_le_bytes())
            .map_err(|e| format!("{e:?}"))?;
        if u64::from_le_bytes(seen) != step.c || memory.read(index) != !step.c {
            return Err(format!("coherent memory at {} is not shared", memory.iova_of(index)));
        }
        Ok(None)
    }
}

pub(super) fn map_in<D: Direction>(
    handle: &DmaDevice,
    buffer: ModelBuffer,
    direction: D,
    at: Option<Iova>,
) -> Result<Mapping<ModelBuffer, D>, Rejected<ModelBuffer>> {
    match at {
        Some(iova) => handle.dma_map_at(buffer, direction, iova),
        None => handle.dma_map(buffer, direction),
    }
}

/// Pages and alignment of a buffer: mostly small, now and then a superpage or more.
fn size(bits: u64) -> (u32, u32) {
    let small = 1 + (bits >> 8) as u32 % 32;
    match bits % 64 {
        0 => (1 << 18, 1 << 18),
        1 => ((1 << 18) + small, 1 << 18),
        2..=5 => (512 * (1 + (bits >> 8) as u32 % 3), 512),
        6..=9 => (512 + small, 512),
        10..=13 => (512 + small, 1),
        14..=30 => (small, 1),
        _ => (1, 1),
    }
}

/// Makes a buffer recognisable: first byte 0xa5, then a number.
pub(super) fn mark(buffer: &mut ModelBuffer, number: u64) {
    buffer.as_mut_slice()[0] = 0xa5;
    buffer.as_mut_slice()[8..16].copy_from_slice(&number.to_le_bytes());
}

pub(super) fn read_mark(buffer: &ModelBuffer) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&buffer.as_slice()[8..16]);
    u64::from_le_bytes(number)
}
