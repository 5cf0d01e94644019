//! Which frames there are, and where their records stand.

use super::error::SetupError;
use super::record::FrameRecord;
use super::{HIGH, LOW};
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysRange};

/// Most regions of memory that the allocator holds; those that reach over 4 GiB count twice.
pub(super) const MAX_REGIONS: usize = 32;

/// Number of the first frame at 4 GiB.
const FRAME_AT_4G: u32 = 1 << (32 - PAGE_SHIFT);

/// A run of frames in one zone.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Region {
    /// Number of the first frame.
    pub(super) first: u32,
    pub(super) frames: u32,
    /// Index of the first frame's record.
    record: usize,
}

impl Region {
    pub(super) const fn zone(&self) -> usize {
        if self.first < FRAME_AT_4G { LOW } else { HIGH }
    }

    const fn contains(&self, frame: u32) -> bool {
        frame.wrapping_sub(self.first) < self.frames
    }
}

/// The frames of the allocator.
pub(super) struct MemoryMap<'m> {
    regions: [Region; MAX_REGIONS],
    count: usize,
    records: &'m [FrameRecord],
}

/// The whole frames in `region`: number of the first, and how many. `None` if they are too high.
fn frames_in(region: &PhysRange) -> Option<(u32, u32)> {
    let start = region.start.as_u64();
    let end = start.checked_add(region.bytes)? >> PAGE_SHIFT;
    let first = start.div_ceil(PAGE_BYTES);
    let count = u32::try_from(end.saturating_sub(first)).ok()?;
    // The highest number of all is none.
    let first = u32::try_from(first).ok()?;
    first.checked_add(count).map(|_| (first, count))
}

/// Number of records that an allocator over `regions` needs: one for each frame.
#[must_use]
pub fn record_count(regions: &[PhysRange]) -> usize {
    regions.iter().filter_map(frames_in).map(|(_, count)| count as usize).sum()
}

impl<'m> MemoryMap<'m> {
    pub(super) fn new(regions: &[PhysRange], records: &'m [FrameRecord]) -> Result<Self, SetupError> {
        let mut map = Self { regions: [Region::default(); MAX_REGIONS], count: 0, records };
        let mut needed = 0;
        for region in regions {
            let (first, frames) = frames_in(region).ok_or(SetupError::TooHigh { region: *region })?;
            let below = FRAME_AT_4G.saturating_sub(first).min(frames);
            for (first, frames) in [(first, below), (first + below, frames - below)] {
                if frames == 0 {
                    continue;
                }
                if map
                    .regions()
                    .any(|other| first < other.first + other.frames && other.first < first + frames)
                {
                    return Err(SetupError::Overlap { region: *region });
                }
                let slot = map
                    .regions
                    .get_mut(map.count)
                    .ok_or(SetupError::TooManyRegions { limit: MAX_REGIONS })?;
                *slot = Region { first, frames, record: needed };
                map.count += 1;
                needed += frames as usize;
            }
        }
        if needed > records.len() {
            return Err(SetupError::TooFewRecords { needed, given: records.len() });
        }
        Ok(map)
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions[..self.count].iter()
    }

    /// Number of frames in all.
    pub(super) fn frames(&self) -> usize {
        self.regions().map(|region| region.frames as usize).sum()
    }

    /// The region that `frame` is in.
    pub(super) fn region_of(&self, frame: u32) -> Option<&Region> {
        self.regions().find(|region| region.contains(frame))
    }

    /// The record of `frame`.
    pub(super) fn record_of(&self, frame: u32) -> Option<&'m FrameRecord> {
        let region = self.region_of(frame)?;
        self.records.get(region.record + (frame - region.first) as usize)
    }
}
