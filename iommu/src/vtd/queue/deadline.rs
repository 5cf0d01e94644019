//! How long somebody waits for the queue before the unit, or a device, is given up.

use super::{DEVICE_TIMEOUT_NS, WAIT_TIMEOUT_NS};

/// Time counts only while somebody looks for errors at least this often: an error stops the queue until then.
const LONGEST_GAP_NS: u64 = WAIT_TIMEOUT_NS / 2;

/// How long is waited for something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without an excuse.
    unexcused_ns: u64,
    /// In all, whatever the excuses.
    in_all_ns: u64,
}

impl Limits {
    /// For the unit's own caches. The unit completes in order: what is behind a device waits for that first, and then
    /// has its own time. That is for one device: a unit that stands still at a second one is given up.
    pub const UNIT: Self =
        Self { unexcused_ns: WAIT_TIMEOUT_NS, in_all_ns: DEVICE_TIMEOUT_NS + WAIT_TIMEOUT_NS };

    /// For room in the queue: the head may move slowly, and stand still at one device after the other.
    pub const ROOM: Self = Self { unexcused_ns: WAIT_TIMEOUT_NS, in_all_ns: 2 * DEVICE_TIMEOUT_NS };

    /// For device TLBs, which nothing excuses.
    pub const DEVICES: Self = Self { unexcused_ns: DEVICE_TIMEOUT_NS, in_all_ns: DEVICE_TIMEOUT_NS };
}

/// A deadline. Who waits looks now and then whether something is wrong, and says each time whether something excuses
/// the unit; the short limit counts from the last excuse.
#[derive(Debug)]
pub(super) struct Deadline {
    limits: Limits,
    /// When somebody last looked.
    looked_ns: u64,
    /// How long has been waited. Of a long time in which nobody looked only a part counts.
    waited_ns: u64,
    /// How much of that was past at the last excuse.
    excused_ns: u64,
}

impl Deadline {
    pub fn new(limits: Limits, now_ns: u64) -> Self {
        Self { limits, looked_ns: now_ns, waited_ns: 0, excused_ns: 0 }
    }

    /// How long ago somebody last looked.
    pub fn unseen_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.looked_ns)
    }

    /// Notes that somebody looked at `now_ns`, and whether there was an excuse. Returns whether the deadline is over.
    ///
    /// What is waited for was asked for before the excuse, which may have ended in between. So its end alone never ends
    /// the wait: from where it was last seen on there is a whole limit.
    pub fn is_over(&mut self, now_ns: u64, excused: bool) -> bool {
        let gap_ns = self.unseen_ns(now_ns);
        self.looked_ns = now_ns;
        self.waited_ns += gap_ns.min(LONGEST_GAP_NS);
        // While nobody looked, an excuse may have come and gone.
        if excused || gap_ns > LONGEST_GAP_NS {
            self.excused_ns = self.waited_ns;
        }
        self.waited_ns - self.excused_ns > self.limits.unexcused_ns || self.waited_ns > self.limits.in_all_ns
    }
}
