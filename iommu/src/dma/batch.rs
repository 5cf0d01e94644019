//! Many buffers that come back together.

use alloc::vec::Vec;
use core::{fmt, mem};

use super::{Direction, DmaBuffer, DmaError, Mapping, segment::Segment, space::Batch};
use crate::arc::TryArc;

/// The buffers of mappings that were unmapped [together](super::DmaDevice::unmap_batch), in their order. Those that are
/// not taken out are freed with it.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{DmaDevice, DmaError, FromDevice, Mapping, PageBuffer, Unmapped};
///
/// /// Gives the first page on and lets the others go.
/// fn first(
///     device: &DmaDevice,
///     mappings: Vec<Mapping<PageBuffer, FromDevice>>,
/// ) -> Result<Option<PageBuffer>, DmaError> {
///     let mut buffers: Unmapped<_, _> = device.unmap_batch(mappings)?;
///     Ok(buffers.next())
/// }
/// ```
pub struct Unmapped<B: DmaBuffer, D: Direction> {
    /// Those that were not taken out, the next one last. They are no mappings any more, and never dropped as such.
    mappings: Vec<Mapping<B, D>>,
}

impl<B: DmaBuffer, D: Direction> Unmapped<B, D> {
    /// Unmaps `mappings`, each run of those in one space with one flush.
    pub(super) fn new(mut mappings: Vec<Mapping<B, D>>) -> Result<Self, DmaError> {
        let mut done = 0;
        while let Some(run) = next_run(&mappings[done..]) {
            let batch = &mappings[done..][..run];
            let space = &batch[0].live().space;
            if let Err(error) = space.unmap_all(&Run(batch), D::ACCESS) {
                Self::give_up(mappings, done, run, error);
                return Err(error);
            }
            done += run;
        }
        mappings.reverse();
        Ok(Self { mappings })
    }

    /// After an error of the `run` mappings that come after `done` ones: those before are unmapped, and freed; those
    /// after, and these if a device was taken away, are left to the reaper; these stay pinned for any other reason.
    fn give_up(mut mappings: Vec<Mapping<B, D>>, done: usize, run: usize, error: DmaError) {
        let rest = Rest(&mut mappings);
        while let Some(mapping) = rest.0.pop() {
            let index = rest.0.len();
            if index < done {
                drop(free(mapping));
            } else if index < done + run && !error.passes() {
                mem::forget(mapping);
            } else {
                drop(mapping);
            }
        }
    }

    /// The list, empty, for the next batch: its memory need not be allocated again. Buffers that were not taken out are
    /// freed.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::dma::{DmaDevice, DmaError, FromDevice, Mapping, PageBuffer};
    ///
    /// /// Completes what is in `list`, and leaves it empty.
    /// fn complete(
    ///     device: &DmaDevice,
    ///     list: &mut Vec<Mapping<PageBuffer, FromDevice>>,
    ///     deliver: impl FnMut(PageBuffer),
    /// ) -> Result<(), DmaError> {
    ///     let mut buffers = device.unmap_batch(std::mem::take(list))?;
    ///     buffers.by_ref().for_each(deliver);
    ///     *list = buffers.into_list();
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn into_list(mut self) -> Vec<Mapping<B, D>> {
        self.by_ref().for_each(drop);
        mem::take(&mut self.mappings)
    }
}

/// How many of the first `mappings` are in one space; `None` if there are none.
fn next_run<B: DmaBuffer, D: Direction>(mappings: &[Mapping<B, D>]) -> Option<usize> {
    let first = &mappings.first()?.live().space;
    Some(mappings.iter().take_while(|mapping| TryArc::ptr_eq(&mapping.live().space, first)).count())
}

/// The buffer of a mapping that was unmapped as a part of a batch.
fn free<B: DmaBuffer, D: Direction>(mapping: Mapping<B, D>) -> B {
    // SAFETY: the buffer was taken apart by the mapping, and the space flushed every translation to it.
    unsafe { B::from_raw(mapping.into_live().segment.buffer) }
}

/// Mappings of one space.
struct Run<'a, B: DmaBuffer, D: Direction>(&'a [Mapping<B, D>]);

impl<B: DmaBuffer, D: Direction> Batch for Run<'_, B, D> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn segment(&self, index: usize) -> &Segment {
        &self.0[index].live().segment
    }
}

impl<B: DmaBuffer, D: Direction> Iterator for Unmapped<B, D> {
    type Item = B;

    fn next(&mut self) -> Option<B> {
        self.mappings.pop().map(free)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.mappings.len(), Some(self.mappings.len()))
    }
}

impl<B: DmaBuffer, D: Direction> ExactSizeIterator for Unmapped<B, D> {}

impl<B: DmaBuffer, D: Direction> Drop for Unmapped<B, D> {
    fn drop(&mut self) {
        let rest = Rest(&mut self.mappings);
        while let Some(mapping) = rest.0.pop() {
            drop(free(mapping));
        }
    }
}

/// Former mappings that are lost if the drop of a buffer panics: dropped as mappings they would give back what is
/// another's by now.
struct Rest<'a, B: DmaBuffer, D: Direction>(&'a mut Vec<Mapping<B, D>>);

impl<B: DmaBuffer, D: Direction> Drop for Rest<'_, B, D> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(mem::forget);
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Unmapped<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unmapped").field("left", &self.len()).finish()
    }
}
