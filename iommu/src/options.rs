//! The words of `iommu=` on the kernel's command line, after Xen's option of that name.
//!
//! A word stands in `WORDS` only when it does something; every other one is reported.

/// Whether devices must be isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// `off`: the units stay as they are, and a device reaches all of memory.
    Off,
    /// `on`: use the units; without one no device is handed out.
    #[default]
    On,
    /// `force`: refuse to boot without a working unit.
    Force,
}

/// What a group in quarantine reaches besides its reserved memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Quarantine {
    /// `basic`: nothing.
    #[default]
    Basic,
    /// `scratch-page`: every address leads to one page of the group's own, for devices that take blocked requests
    /// badly.
    ScratchPage,
}

/// What becomes of groups that firmware reserves memory for (RMRR) when they are to be assigned to an owner who is to
/// be isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReservedPolicy {
    /// `rmrr=strict`: they are refused. Firmware may use the device, and the memory, at any time.
    #[default]
    Strict,
    /// `rmrr=relaxed`: they are assigned, each to a domain that it has for itself, with its memory mapped there too.
    Relaxed,
}

/// When the flush comes that retired mappings wait for. It changes nothing for [`unmap`](crate::Mapping::unmap), which
/// waits for its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flush {
    /// `strict`: at once.
    #[default]
    Strict,
    /// `deferred`: together with that of others, after 256 of them or 5 ms.
    Deferred,
}

/// How the units are to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whether devices must be isolated.
    pub mode: Mode,
    /// Use the invalidation queue where a unit has it.
    pub queued_invalidation: bool,
    /// log2 of the number of pages of an invalidation queue, 0 to 7. One page, 256 descriptors (128 in scalable mode),
    /// is what there is no word to change: a batch takes a handful, and hardware seldom lags.
    pub queue_order: u8,
    /// Use scalable mode where a unit has it, and the queue: with second-stage tables or, if some unit has none of
    /// these in scalable mode and each has them, with first-stage tables on all, in which what a device may write it
    /// may also read. Off unless asked for: on the units that have both modes it does for a domain of the kernel what
    /// legacy mode does, at the cost of two more pages a source.
    pub scalable: bool,
    /// In scalable mode use tables of the first stage, in the CPU's format, where all units have it: so that address
    /// spaces can be [shared](crate::Iommu::share_table). Where one has nothing else it is used without being asked
    /// for.
    pub first_stage: bool,
    /// Remap interrupts where a unit can, so that a device raises only the vectors given to it.
    pub interrupt_remapping: bool,
    /// Use leaves larger than 4 KiB where a unit has them.
    pub superpages: bool,
    /// Use snoop control where a unit has it.
    pub snoop: bool,
    /// When the flush comes that retired mappings wait for.
    pub flush: Flush,
    /// What a group in quarantine reaches.
    pub quarantine: Quarantine,
    /// Every function is trusted with all of RAM: see [`Iommu::claim_identity`](crate::Iommu::claim_identity).
    pub passthrough: bool,
    /// Whether groups with reserved memory are assigned.
    pub rmrr: ReservedPolicy,
    /// Log every group at bring-up: its functions, requester ids and reserved memory.
    pub verbose: bool,
    /// Check what drivers map: see [`checks`](crate::checks).
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            queued_invalidation: true,
            queue_order: 0,
            scalable: false,
            first_stage: false,
            interrupt_remapping: true,
            superpages: true,
            snoop: true,
            flush: Flush::Strict,
            quarantine: Quarantine::Basic,
            passthrough: false,
            rmrr: ReservedPolicy::Strict,
            verbose: false,
            debug: false,
        }
    }
}

/// A word, and what it sets.
type Word = (&'static str, fn(&mut Options));

/// All words. The last one about a thing wins.
const WORDS: &[Word] = &[
    ("on", |options| options.mode = Mode::On),
    ("off", |options| options.mode = Mode::Off),
    ("force", |options| options.mode = Mode::Force),
    ("qinval", |options| options.queued_invalidation = true),
    ("no-qinval", |options| options.queued_invalidation = false),
    ("scalable", |options| options.scalable = true),
    ("no-scalable", |options| options.scalable = false),
    ("first-stage", |options| options.first_stage = true),
    ("no-first-stage", |options| options.first_stage = false),
    ("intremap", |options| options.interrupt_remapping = true),
    ("no-intremap", |options| options.interrupt_remapping = false),
    ("strict", |options| options.flush = Flush::Strict),
    ("deferred", |options| options.flush = Flush::Deferred),
    ("superpages", |options| options.superpages = true),
    ("no-superpages", |options| options.superpages = false),
    ("snoop", |options| options.snoop = true),
    ("no-snoop", |options| options.snoop = false),
    ("quarantine=basic", |options| options.quarantine = Quarantine::Basic),
    ("quarantine=scratch-page", |options| options.quarantine = Quarantine::ScratchPage),
    ("passthrough", |options| options.passthrough = true),
    ("no-passthrough", |options| options.passthrough = false),
    ("rmrr=strict", |options| options.rmrr = ReservedPolicy::Strict),
    ("rmrr=relaxed", |options| options.rmrr = ReservedPolicy::Relaxed),
    ("verbose", |options| options.verbose = true),
    ("debug", |options| options.debug = true),
];

impl Options {
    /// Applies the comma-separated `words`; each unknown one is passed to `unknown` and changes nothing.
    pub fn apply<'a>(&mut self, words: &'a str, mut unknown: impl FnMut(&'a str)) {
        for word in words.split(',').filter(|word| !word.is_empty()) {
            match WORDS.iter().find(|(name, _)| *name == word) {
                Some((_, set)) => set(self),
                None => unknown(word),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn parse(words: &str) -> (Options, Vec<&str>) {
        let (mut options, mut unknown) = (Options::default(), Vec::new());
        options.apply(words, |word| unknown.push(word));
        (options, unknown)
    }

    #[test]
    fn the_default_isolates_with_everything_the_units_have() {
        assert_eq!(parse(""), (Options::default(), Vec::new()));
        assert_eq!(Options::default().mode, Mode::On);
    }

    #[test]
    fn each_word_changes_exactly_what_it_names() {
        let base = Options::default();
        let expected = [
            ("off", Options { mode: Mode::Off, ..base }),
            ("force", Options { mode: Mode::Force, ..base }),
            ("no-qinval", Options { queued_invalidation: false, ..base }),
            ("scalable", Options { scalable: true, ..base }),
            ("scalable,no-scalable", base),
            ("no-intremap", Options { interrupt_remapping: false, ..base }),
            ("no-intremap,intremap", base),
            ("deferred", Options { flush: Flush::Deferred, ..base }),
            ("deferred,strict", base),
            ("no-superpages", Options { superpages: false, ..base }),
            ("no-snoop", Options { snoop: false, ..base }),
            ("quarantine=scratch-page", Options { quarantine: Quarantine::ScratchPage, ..base }),
            ("quarantine=scratch-page,quarantine=basic", base),
            ("passthrough", Options { passthrough: true, ..base }),
            ("passthrough,no-passthrough", base),
            ("rmrr=relaxed", Options { rmrr: ReservedPolicy::Relaxed, ..base }),
            ("rmrr=relaxed,rmrr=strict", base),
            ("verbose", Options { verbose: true, ..base }),
            ("debug", Options { debug: true, ..base }),
            ("no-qinval,qinval", base),
            ("off,on", base),
        ];
        for (words, options) in expected {
            assert_eq!(parse(words), (options, Vec::new()), "{words}");
        }
    }

    #[test]
    fn unknown_words_are_reported_and_the_rest_still_counts() {
        let (options, unknown) = parse("frobnicate,force,,Off,no-,quarantine=,quarantine=page");
        assert_eq!(unknown, ["frobnicate", "Off", "no-", "quarantine=", "quarantine=page"]);
        assert_eq!(options.mode, Mode::Force);
    }
}
