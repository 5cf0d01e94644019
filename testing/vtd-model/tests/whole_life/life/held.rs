//! What drivers hold of what they lent to their devices.

use iommu::{
    Bidirectional, DmaBuffer, DmaError, FromDevice, Mapping, ToDevice,
    dma::{Late, RawBuffer, Retired, ScatterList, ScatterMapping},
};
use vtd_model::ModelBuffer;

use super::PAGE;

/// Something that is mapped.
pub enum Held {
    To(Mapping<ModelBuffer, ToDevice>),
    From(Mapping<ModelBuffer, FromDevice>),
    Both(Mapping<ModelBuffer, Bidirectional>),
    List(ScatterMapping<ModelBuffer, Bidirectional>),
    Ragged(Mapping<Ragged, Bidirectional>),
}

/// What comes back.
#[derive(Debug)]
pub enum Returned {
    One(ModelBuffer),
    List(ScatterList<ModelBuffer>),
    Ragged(Ragged),
}

/// A mapping that was retired.
pub enum HeldLate {
    To(Retired<ModelBuffer, ToDevice>),
    From(Retired<ModelBuffer, FromDevice>),
    Both(Retired<ModelBuffer, Bidirectional>),
}

/// What lies beside the bytes of a [`Ragged`].
const BESIDE: u8 = 0xee;

/// Some bytes of a buffer.
#[derive(Debug)]
pub struct Ragged {
    buffer: ModelBuffer,
    offset: usize,
    bytes: usize,
}

impl Held {
    /// First address and length in bytes.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::To(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::From(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::Both(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::Ragged(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::List(mapping) => {
                // Whole pages: one range.
                let segment = mapping.segments().next().expect("a list is not empty");
                (segment.iova.as_u64(), segment.bytes)
            }
        }
    }

    pub fn rights(&self) -> (bool, bool) {
        match self {
            Self::To(_) => (true, false),
            Self::From(_) => (false, true),
            Self::Both(_) | Self::List(_) | Self::Ragged(_) => (true, true),
        }
    }

    pub fn unmap(self) -> Result<Returned, DmaError> {
        match self {
            Self::To(mapping) => mapping.unmap().map(Returned::One),
            Self::From(mapping) => mapping.unmap().map(Returned::One),
            Self::Both(mapping) => mapping.unmap().map(Returned::One),
            Self::List(mapping) => mapping.unmap().map(Returned::List),
            Self::Ragged(mapping) => mapping.unmap().map(Returned::Ragged),
        }
    }

    /// Gives it up without waiting, if it is of a kind that can be.
    pub fn retire(self) -> Result<HeldLate, Self> {
        match self {
            Self::To(mapping) => Ok(HeldLate::To(mapping.retire())),
            Self::From(mapping) => Ok(HeldLate::From(mapping.retire())),
            Self::Both(mapping) => Ok(HeldLate::Both(mapping.retire())),
            other => Err(other),
        }
    }
}

impl HeldLate {
    pub fn wait(self) -> Result<ModelBuffer, DmaError> {
        match self {
            Self::To(retired) => retired.wait(),
            Self::From(retired) => retired.wait(),
            Self::Both(retired) => retired.wait(),
        }
    }

    pub fn poll(self) -> Result<Result<ModelBuffer, Self>, DmaError> {
        Ok(match self {
            Self::To(retired) => ready(retired.poll()?).map_err(Self::To),
            Self::From(retired) => ready(retired.poll()?).map_err(Self::From),
            Self::Both(retired) => ready(retired.poll()?).map_err(Self::Both),
        })
    }
}

fn ready<D: iommu::dma::Direction>(
    late: Late<ModelBuffer, D>,
) -> Result<ModelBuffer, Retired<ModelBuffer, D>> {
    match late {
        Late::Ready(buffer) => Ok(buffer),
        Late::Pending(retired) => Err(retired),
    }
}

impl Returned {
    /// Whether `data` is there, from byte `offset` on, and nothing beside what was lent changed.
    pub fn holds(self, offset: usize, data: &[u8]) -> bool {
        match self {
            Self::One(buffer) => &buffer.as_slice()[offset..][..data.len()] == data,
            Self::Ragged(ragged) => {
                let Ragged { buffer, offset: first, bytes } = &ragged;
                let (before, rest) = buffer.as_slice().split_at(*first);
                let (own, after) = rest.split_at(*bytes);
                before.iter().chain(after).all(|&byte| byte == BESIDE) && &own[offset..][..data.len()] == data
            }
            Self::List(mut list) => {
                let buffers: Vec<_> = std::iter::from_fn(|| list.pop()).collect();
                let all: Vec<u8> = buffers.iter().rev().flat_map(|b| b.as_slice().to_vec()).collect();
                &all[offset..][..data.len()] == data
            }
        }
    }
}

impl Ragged {
    /// `bytes` bytes from byte `offset` of `buffer` on.
    pub fn new(mut buffer: ModelBuffer, offset: usize, bytes: usize) -> Self {
        buffer.as_mut_slice().fill(BESIDE);
        Self { buffer, offset, bytes }
    }

    /// The pages that a device reaches for it if it is mapped at `iova`, and their memory: a page that does not belong
    /// to it as a whole is stood in for.
    pub fn pages(&self, iova: u64) -> Vec<(u64, u64, Option<u64>)> {
        let (first, end) = (self.offset as u64, (self.offset + self.bytes) as u64);
        let pages = first / PAGE..end.div_ceil(PAGE);
        let place = |page: u64| {
            let is_whole = page * PAGE >= first && (page + 1) * PAGE <= end;
            (iova + page * PAGE - first, PAGE, is_whole.then_some(self.buffer.physical() + page * PAGE))
        };
        pages.map(place).map(|(at, bytes, memory)| (at & !(PAGE - 1), bytes, memory)).collect()
    }

    pub fn physical(&self) -> u64 {
        self.buffer.physical()
    }
}

// SAFETY: the bytes lie in a buffer that belongs to it, stays in place, and is plain bytes.
unsafe impl DmaBuffer for Ragged {
    fn into_raw(self) -> RawBuffer {
        let (offset, bytes) = (self.offset, self.bytes);
        let whole = self.buffer.into_raw();
        // SAFETY: the offset lies in the buffer.
        let first = unsafe { whole.first.add(offset) };
        let cookie = Box::into_raw(Box::new((whole, offset))).expose_provenance();
        RawBuffer { first, bytes, cookie }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        let kept = std::ptr::with_exposed_provenance_mut::<(RawBuffer, usize)>(raw.cookie);
        // SAFETY: the cookie is the box that `into_raw` made, used once.
        let (whole, offset) = *unsafe { Box::from_raw(kept) };
        // SAFETY: so is what is in it, and what the caller says of a part holds for the whole: no more was lent.
        Self { buffer: unsafe { ModelBuffer::from_raw(whole) }, offset, bytes: raw.bytes }
    }
}
