//! A batch as descriptors, in the order that makes it right.

use super::invalidation::{Invalidation, Stage};
use crate::vtd::{capability::Capability, spec::Descriptor};

/// Most invalidations in one job. Its descriptors always fit into an empty ring.
pub(super) const MAX_ITEMS: usize = 64;

/// Those invalidations of a batch that are to be carried out now.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    batch: &'a [Invalidation],
    /// One bit an item of the batch.
    items: u64,
    /// Ask for everything instead of a part.
    coarse: bool,
    capability: &'a Capability,
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
    pub fn new(batch: &'a [Invalidation], capability: &'a Capability) -> Self {
        debug_assert!(batch.len() <= MAX_ITEMS);
        let items = (0..batch.len()).fold(0, |items, index| items | 1 << index);
        Self { batch, items, coarse: false, capability }
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
        Self { items: self.items & items, ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    pub fn has_main(&self) -> bool {
        self.items().any(|item| item.stage() != Stage::Devices)
    }

    pub fn has_devices(&self) -> bool {
        self.devices().next().is_some()
    }

    /// The devices whose TLBs are invalidated.
    pub fn devices(&self) -> impl Iterator<Item = u16> {
        self.items().filter_map(|item| device(&item))
    }

    /// Whether the TLB of the device `source` is invalidated.
    pub fn has_device(&self, source: u16) -> bool {
        self.devices().any(|device| device == source)
    }

    fn items(&self) -> impl Iterator<Item = Invalidation> {
        let chosen = self.batch.iter().enumerate().filter(|&(index, _)| self.items & 1 << index != 0);
        chosen.map(|(_, &item)| if self.coarse { item.coarse() } else { item })
    }

    /// How many descriptors it takes.
    pub fn descriptors(&self) -> usize {
        let mut count = 0;
        self.for_each(|_| count += 1);
        count
    }

    /// Visits the steps in order.
    pub fn for_each(&self, mut visit: impl FnMut(Step)) {
        let (mut last, devices) = (None, self.has_devices());
        for stage in [Stage::Contexts, Stage::Translations] {
            for item in self.items().filter(|item| item.stage() == stage) {
                if last == Some(Stage::Contexts) && stage == Stage::Translations {
                    visit(Step::Fence);
                }
                visit(Step::Invalidate(item.descriptor(self.capability)));
                last = Some(stage);
            }
        }
        if last.is_some() {
            visit(Step::MainDone { fence: devices });
        }
        for item in self.items().filter(|item| item.stage() == Stage::Devices) {
            visit(Step::Invalidate(item.descriptor(self.capability)));
        }
        if devices {
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
