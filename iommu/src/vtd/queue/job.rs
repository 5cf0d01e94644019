//! A batch as descriptors, in the order that makes it right.

use super::invalidation::{Invalidation, Stage};
use crate::vtd::{capability::Capability, mode::TableStage, spec::Descriptor, unit::Hardware};

/// Most invalidations in one job. Its descriptors always fit into an empty ring.
pub(super) const MAX_ITEMS: usize = 64;

/// Those invalidations of a batch that are to be carried out now.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    batch: &'a [Invalidation],
    /// For each stage one bit an item of the batch.
    stages: [u64; Stage::ALL.len()],
    /// How many bits that are.
    items: usize,
    /// Ask for everything instead of a part.
    coarse: bool,
    capability: &'a Capability,
    /// What of the unit's translations are invalidated.
    stage: TableStage,
}

/// What goes into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// An invalidation.
    Invalidate(Descriptor),
    /// What follows must not start before what precedes is done.
    Fence,
    /// The wait for everything but device TLBs; with `fence` it holds back what follows.
    MainDone { fence: bool },
    /// The wait for device TLBs.
    DevicesDone,
}

impl<'a> Job<'a> {
    /// All of `batch`, of at most [`MAX_ITEMS`].
    #[inline]
    pub fn new<R>(batch: &'a [Invalidation], hardware: &'a Hardware<R>) -> Self {
        debug_assert!(batch.len() <= MAX_ITEMS);
        let mut stages = [0; Stage::ALL.len()];
        for (index, invalidation) in batch.iter().enumerate() {
            stages[invalidation.stage() as usize] |= 1 << index;
        }
        Self {
            batch,
            stages,
            items: batch.len(),
            coarse: false,
            capability: &hardware.capability,
            stage: hardware.stage,
        }
    }

    /// What is left of the job once its main wait is done.
    pub fn devices_only(self) -> Self {
        self.only(|invalidation| invalidation.stage() == Stage::Devices)
    }

    /// The job without the TLB of the device with requester id `source`.
    pub fn without_device(self, source: u16) -> Self {
        self.only(|invalidation| device(invalidation) != Some(source))
    }

    /// The job in its coarse form.
    pub fn coarse(self) -> Self {
        Self { coarse: true, ..self }
    }

    pub fn is_coarse(&self) -> bool {
        self.coarse
    }

    fn only(self, keep: impl Fn(&Invalidation) -> bool) -> Self {
        let items = self.batch.iter().enumerate().fold(0, |items, (index, invalidation)| {
            if keep(invalidation) { items | 1 << index } else { items }
        });
        let stages = self.stages.map(|stage| stage & items);
        let items = stages.iter().map(|stage| stage.count_ones() as usize).sum();
        Self { stages, items, ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    pub fn has_main(&self) -> bool {
        self.stages_of_unit().next().is_some()
    }

    pub fn has_devices(&self) -> bool {
        self.has(Stage::Devices)
    }

    fn has(&self, stage: Stage) -> bool {
        self.stages[stage as usize] != 0
    }

    /// The devices whose TLBs are invalidated.
    pub fn devices(&self) -> impl Iterator<Item = u16> {
        self.items(Stage::Devices).filter_map(|item| device(&item))
    }

    /// Whether the TLB of the device `source` is invalidated.
    pub fn has_device(&self, source: u16) -> bool {
        self.devices().any(|device| device == source)
    }

    #[inline]
    fn items(&self, stage: Stage) -> impl Iterator<Item = Invalidation> {
        let mut left = self.stages[stage as usize];
        core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let item = self.batch.get(left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(if self.coarse { item.coarse() } else { *item })
        })
    }

    /// The stages of the unit's own caches that the job has something for.
    #[inline]
    fn stages_of_unit(&self) -> impl Iterator<Item = Stage> {
        Stage::ALL.into_iter().filter(|&stage| stage != Stage::Devices && self.has(stage))
    }

    /// How many descriptors it takes: one an item, a fence between one of the unit's stages and the next, and the two
    /// waits.
    #[inline]
    pub fn descriptors(&self) -> usize {
        // The wait for the unit's own caches stands where a fence after the last of them would.
        let fences_and_wait = self.stages_of_unit().count();
        self.items + fences_and_wait + usize::from(self.has_devices())
    }

    /// Visits the steps in order.
    #[inline]
    pub fn for_each(&self, mut visit: impl FnMut(Step)) {
        let invalidate = |item: Invalidation| Step::Invalidate(item.descriptor(self.capability, self.stage));
        for (index, stage) in self.stages_of_unit().enumerate() {
            if index > 0 {
                visit(Step::Fence);
            }
            self.items(stage).for_each(|item| visit(invalidate(item)));
        }
        if self.has_main() {
            visit(Step::MainDone { fence: self.has_devices() });
        }
        if self.has_devices() {
            self.items(Stage::Devices).for_each(|item| visit(invalidate(item)));
            visit(Step::DevicesDone);
        }
    }
}

fn device(invalidation: &Invalidation) -> Option<u16> {
    match invalidation {
        Invalidation::DeviceTlb { source, .. } => Some(source.requester),
        _ => None,
    }
}
