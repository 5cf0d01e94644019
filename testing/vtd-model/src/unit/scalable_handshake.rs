//! Watches that what a source is translated by in scalable mode changes only by the handshake: clear P of the context
//! entry, flush the context cache, then the PASID cache, then the IOTLB, then rewrite. What is below an entry that is
//! not present, and was flushed, nobody reads.

use std::collections::BTreeMap;

use super::Unit;
use crate::{
    complaints::Rule,
    context_cache::ContextScope,
    iotlb::{IotlbScope, Tag},
    pasid_cache::PasidScope,
    scalable_entries::{DirectoryEntry, PasidEntry, RootHalf, ScalableContext},
    world::World,
};

/// Everything that says what a source is translated by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Image {
    context: ScalableContext,
    directory: DirectoryEntry,
    pasid: PasidEntry,
}

impl Image {
    fn domain(&self) -> u16 {
        self.pasid.domain()
    }

    fn tag(&self) -> Tag {
        Tag { stage: self.pasid.stage(), domain: self.domain() }
    }

    /// The same with P in the context entry.
    fn as_present(mut self) -> Self {
        self.context.0[0] |= 1;
        self
    }
}

#[derive(Clone, Copy, Debug)]
enum Watch {
    Present(Image),
    /// Its context entry is not present any more; what it was, and which invalidations are still owed.
    Cleared {
        was: Image,
        owes_context: bool,
        owes_pasid: bool,
    },
}

/// What is known of the sources that the unit may be translating.
#[derive(Debug, Default)]
pub(super) struct ScalableWatches {
    sources: BTreeMap<u16, Watch>,
}

impl ScalableWatches {
    pub fn clear(&mut self) {
        self.sources.clear();
    }

    /// In scalable mode the domain of a context invalidation is ignored.
    pub fn contexts_invalidated(&mut self, scope: ContextScope) {
        for (&source, watch) in &mut self.sources {
            if let Watch::Cleared { owes_context, .. } = watch {
                *owes_context &= !scope.covers(source, None);
            }
        }
    }

    /// Each cache counts only after the one that it is filled through.
    pub fn pasids_invalidated(&mut self, scope: PasidScope) {
        for watch in self.sources.values_mut() {
            if let Watch::Cleared { was, owes_context: false, owes_pasid } = watch {
                *owes_pasid &= !scope.covers(was.domain(), was.context.request_pasid());
            }
        }
    }

    pub fn iotlb_invalidated(&mut self, scope: IotlbScope) {
        self.sources.retain(|_, watch| {
            let Watch::Cleared { was, owes_context: false, owes_pasid: false } = watch else { return true };
            match scope {
                IotlbScope::Global => false,
                IotlbScope::Domain(tag) => was.tag() != tag,
                IotlbScope::Pages { .. } => true,
            }
        });
    }

    fn see(&mut self, source: u16, now: Image) -> Result<(), &'static str> {
        let before = self.sources.get(&source).copied();
        let (next, verdict) = match before {
            None if now.context.present() => (Watch::Present(now), Ok(())),
            None => return Ok(()),
            Some(Watch::Present(was)) if now.context.present() => {
                (Watch::Present(now), if now == was { Ok(()) } else { Err("changed while present") })
            }
            Some(Watch::Present(was)) => {
                let cleared = Watch::Cleared { was, owes_context: true, owes_pasid: true };
                let torn = now.as_present() != was;
                (cleared, if torn { Err("rewritten before it was flushed") } else { Ok(()) })
            }
            Some(Watch::Cleared { .. }) if now.context.present() => {
                (Watch::Present(now), Err("present again before the flush of what it was"))
            }
            Some(cleared @ Watch::Cleared { was, .. }) => {
                let torn = now.pasid != was.pasid || now.directory != was.directory;
                (cleared, if torn { Err("rewritten before it was flushed") } else { Ok(()) })
            }
        };
        self.sources.insert(source, next);
        verdict
    }
}

impl Unit {
    /// Compares the entries of half a bus with what they were.
    pub(super) fn check_scalable_table(&mut self, world: &World, first: u16, root: RootHalf) {
        for source in first..first + ScalableContext::COUNT as u16 {
            let slot = Self::scalable_context_slot(root, source);
            let Some(context) = world.memory.words(slot, true).map(ScalableContext) else { return };
            if context.0[0] == 0 {
                continue;
            }
            let image = Self::image(world, context);
            if let Err(what) = self.handshakes.scalable.see(source, image) {
                let text = format!("context entry {source:#06x} {what}: {image:x?}");
                self.complain(world, Rule::ChangedWhilePresent, text);
            }
            if context.present() {
                self.judge_image(world, source, &image);
            }
        }
    }

    /// What `context` leads to; entries that are not there are empty.
    fn image(world: &World, context: ScalableContext) -> Image {
        let pasid = context.request_pasid();
        let slot = context.directory() + (pasid >> 6) * 8;
        let directory = DirectoryEntry(world.memory.word(slot, true).unwrap_or(0));
        let slot = directory.table() + (pasid & 63) * PasidEntry::BYTES;
        let words = world.memory.words(slot, true).filter(|_| directory.present());
        Image { context, directory, pasid: PasidEntry(words.unwrap_or([0; 8])) }
    }

    /// What is wrong with the entries of a source that is translated, whether or not it ever asks.
    fn judge_image(&self, world: &World, source: u16, image: &Image) {
        let reserved = image.directory.reserved_set();
        let verdict =
            self.check_scalable_context(image.context).and_then(|()| self.check_pasid_entry(image.pasid));
        if verdict.is_err() || reserved {
            let text = format!("entries of {source:#06x}: {verdict:?}: {image:x?}");
            self.complain(world, Rule::ReservedBits, text);
        }
        if image.domain() == 0 && self.config.caching_mode {
            self.complain(world, Rule::DomainId, format!("PASID entry of {source:#06x} has domain 0"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(present: u64, domain: u64) -> Image {
        Image {
            context: ScalableContext([0x7000 | present, 0, 0, 0]),
            directory: DirectoryEntry(0x8001),
            pasid: PasidEntry([0x5089, domain, 0, 0, 0, 0, 0, 0]),
        }
    }

    const DEVICE: ContextScope = ContextScope::Device { domain: 0, source: 8, function_mask: 0 };

    fn cleared() -> ScalableWatches {
        let mut watch = ScalableWatches::default();
        watch.see(8, image(1, 3)).unwrap();
        watch.see(8, image(0, 3)).unwrap();
        watch
    }

    #[test]
    fn the_whole_handshake_is_fine() {
        let mut watch = cleared();
        watch.contexts_invalidated(DEVICE);
        watch.pasids_invalidated(PasidScope::Domain(3));
        watch.iotlb_invalidated(IotlbScope::Domain(Tag::second(3)));
        assert!(watch.see(8, image(0, 4)).is_ok());
        assert!(watch.see(8, image(1, 4)).is_ok());
    }

    #[test]
    fn each_step_left_out_is_noticed() {
        type Step = fn(&mut ScalableWatches);
        let steps: [Step; 3] = [
            |watch| watch.contexts_invalidated(DEVICE),
            |watch| watch.pasids_invalidated(PasidScope::Domain(3)),
            |watch| watch.iotlb_invalidated(IotlbScope::Domain(Tag::second(3))),
        ];
        for missing in 0..steps.len() {
            let mut watch = cleared();
            let others = steps.iter().enumerate().filter(|&(index, _)| index != missing);
            others.for_each(|(_, step)| step(&mut watch));
            assert!(watch.see(8, image(1, 4)).is_err(), "without step {missing}");
        }
        let mut watch = cleared();
        steps.iter().rev().for_each(|step| step(&mut watch));
        assert!(watch.see(8, image(1, 4)).is_err(), "in the wrong order");
        assert!(cleared().see(8, image(0, 4)).is_err(), "below an entry that was not flushed");
        let mut watch = ScalableWatches::default();
        watch.see(8, image(1, 3)).unwrap();
        assert!(watch.see(8, image(1, 4)).is_err(), "changed in place");
    }
}
