//! Which of its two sets of tables a unit walks, and what that changes.
//!
//! In *legacy mode* the context entry of a source leads to its page table. In *scalable mode* it leads to the source's
//! PASID directory, this to a PASID table, and the entry of a PASID there to the page table. Requests without a PASID,
//! the only ones that are served, are those of PASID 0. With the mode there comes one cache more, of PASID entries. The
//! page tables are the same second-stage tables as in legacy mode or, where a unit has no second stage, tables of the
//! first stage. What is cached of those has the PASID as a part of its tag, and other invalidations. What the entries
//! look like is in [`tables`](super::tables), and everything else that depends on the mode is here.

use core::fmt;

use super::{
    capability::Capability,
    queue::{ContextScope, Invalidation, IotlbScope, PasidScope},
    spec::{AddressWidth, DomainId, FunctionMask, TranslationTable},
};
use crate::{Options, SourceId};

/// The stage of translation that the page tables of a unit are of. Requests without a PASID pass through one of them
/// only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableStage {
    /// The first: the format of the CPU's own page tables.
    First,
    /// The second: a format of its own, the only one that legacy mode has.
    Second,
}

/// The mode of one unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationMode {
    /// Context entries lead to page tables.
    Legacy,
    /// Context entries lead to PASID tables, and these to page tables.
    Scalable {
        /// What these are.
        stage: TableStage,
        /// AW of PASID entries that lead to a first stage.
        width_of_first_stage: Option<AddressWidth>,
        /// PWSNP: the unit's walks of page tables snoop the CPU's caches. Needs ECAP.SMPWCS.
        walks_snoop: bool,
        /// PGSNP: so does every access through them. Needs ECAP.SC.
        accesses_snoop: bool,
    },
}

/// Why a unit is in legacy mode although the other was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotScalable {
    /// ECAP.SMTS is 0.
    NotSupported,
    /// ECAP.SSTS, or ECAP.FSTS, is 0: in scalable mode it has no tables of the stage that all units use.
    NoStage(TableStage),
    /// The PASID cache is emptied by the queue alone, and there is none, or it is not to be used.
    NoQueue,
}

impl fmt::Display for NotScalable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSupported => "it has no scalable mode",
            Self::NoStage(TableStage::First) => "its scalable mode has no first stage",
            Self::NoStage(TableStage::Second) => {
                "its scalable mode has no second stage, and not all units can use a first"
            }
            Self::NoQueue => "scalable mode takes the invalidation queue",
        })
    }
}

impl TableStage {
    /// The stage for all of `units`, so that any of them can share a domain: the first, if it is asked for, or one has
    /// no other in scalable mode, and each of them has it; else the second, which those that do not have it in scalable
    /// mode have in legacy mode.
    pub(super) fn of_all<'a>(units: impl Iterator<Item = &'a Capability> + Clone, options: Options) -> Self {
        let is_able = |unit: &Capability| TranslationMode::why_legacy(unit, options, Self::First).is_none();
        let is_needed = || units.clone().any(|unit| !unit.has_scalable_second_stage());
        if options.scalable && (options.first_stage || is_needed()) && units.clone().all(is_able) {
            Self::First
        } else {
            Self::Second
        }
    }

    fn is_of(self, capability: &Capability) -> bool {
        match self {
            Self::First => capability.has_first_stage(),
            Self::Second => capability.has_scalable_second_stage(),
        }
    }
}

impl TranslationMode {
    /// The mode that `options` ask for, if the unit has it with tables of `stage`; else legacy mode. A unit
    /// without a second stage has neither: turning translation on fails there.
    pub(super) fn choose(capability: &Capability, options: Options, stage: TableStage) -> Self {
        if !options.scalable || Self::why_legacy(capability, options, stage).is_some() {
            return Self::Legacy;
        }
        Self::Scalable {
            stage,
            width_of_first_stage: capability.width_of_first_stage(),
            walks_snoop: capability.walks_coherently_in_scalable_mode(),
            accesses_snoop: options.snoop && capability.controls_snooping(),
        }
    }

    /// Why the unit is in legacy mode, if scalable mode was asked for, with tables of `stage`.
    pub(super) fn why_legacy(
        capability: &Capability,
        options: Options,
        stage: TableStage,
    ) -> Option<NotScalable> {
        if !capability.has_scalable_mode() {
            Some(NotScalable::NotSupported)
        } else if !stage.is_of(capability) {
            Some(NotScalable::NoStage(stage))
        } else if !(options.queued_invalidation && capability.has_queue()) {
            Some(NotScalable::NoQueue)
        } else {
            None
        }
        .filter(|_| options.scalable)
    }

    /// What the page tables are.
    #[must_use]
    pub const fn stage(self) -> TableStage {
        match self {
            Self::Legacy => TableStage::Second,
            Self::Scalable { stage, .. } => stage,
        }
    }

    /// What a PASID entry that leads to a first stage says of widths: see [`PasidEntry::first_stage`].
    ///
    /// [`PasidEntry::first_stage`]: super::spec::PasidEntry::first_stage
    pub(super) const fn width_of_first_stage(self) -> Option<AddressWidth> {
        match self {
            Self::Legacy => None,
            Self::Scalable { width_of_first_stage, .. } => width_of_first_stage,
        }
    }

    /// Whether this is scalable mode, whose queue has descriptors of 256 bits.
    #[must_use]
    pub const fn is_scalable(self) -> bool {
        matches!(self, Self::Scalable { .. })
    }

    /// What RTADDR says of the root table.
    pub(super) const fn table(self) -> TranslationTable {
        match self {
            Self::Legacy => TranslationTable::Legacy,
            Self::Scalable { .. } => TranslationTable::Scalable,
        }
    }

    /// Whether walks of page tables snoop the CPU's caches. Those of all other tables do with ECAP.C in either mode.
    pub(super) fn walks_coherently(self, capability: &Capability) -> bool {
        match self {
            Self::Legacy => capability.walks_coherently(),
            Self::Scalable { walks_snoop, .. } => walks_snoop,
        }
    }

    /// Every cache of DMA remapping in the unit itself.
    pub(super) const fn everything(self) -> &'static [Invalidation] {
        const CONTEXTS: Invalidation = Invalidation::Context(ContextScope::Global);
        const PASIDS: Invalidation = Invalidation::Pasid(PasidScope::Global);
        const TRANSLATIONS: Invalidation = Invalidation::Iotlb(IotlbScope::Global);
        match self {
            Self::Legacy => &[CONTEXTS, TRANSLATIONS],
            Self::Scalable { .. } => &[CONTEXTS, PASIDS, TRANSLATIONS],
        }
    }

    /// What makes a unit forget the entry of `source`, which is not present any more, and all that it led to under
    /// `domain`. `invalidate` is given the batch.
    pub(super) fn forget_source<T>(
        self,
        source: SourceId,
        domain: DomainId,
        invalidate: impl FnOnce(&[Invalidation]) -> T,
    ) -> T {
        let context = context_of(source, domain);
        let translations = Invalidation::Iotlb(IotlbScope::Domain(domain));
        match self {
            Self::Legacy => invalidate(&[context, translations]),
            Self::Scalable { .. } => {
                invalidate(&[context, Invalidation::Pasid(PasidScope::Domain(domain)), translations])
            }
        }
    }

    /// What a unit with caching mode needs before it sees the entry of `source`, which was not present: one that leads
    /// to `domain`, or one that still leads nowhere. `invalidate` is given the batch.
    pub(super) fn publish_source<T>(
        self,
        source: SourceId,
        domain: Option<DomainId>,
        invalidate: impl FnOnce(&[Invalidation]) -> T,
    ) -> T {
        // What is not present is cached under domain 0.
        let context = context_of(source, DomainId::new(0));
        let Some(domain) = domain else { return invalidate(&[context]) };
        let translations = Invalidation::Iotlb(IotlbScope::Domain(domain));
        match self {
            Self::Legacy => invalidate(&[context, translations]),
            Self::Scalable { .. } => {
                invalidate(&[context, Invalidation::Pasid(PasidScope::Domain(domain)), translations])
            }
        }
    }
}

const fn context_of(source: SourceId, domain: DomainId) -> Invalidation {
    Invalidation::Context(ContextScope::Device { domain, source, mask: FunctionMask::Exact })
}
