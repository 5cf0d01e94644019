//! Mappings that are given up without waiting, and those that are given up together.

use iommu::DmaError;
use vtd_model::ModelBuffer;

use super::{
    Life,
    held::{Held, HeldLate, Returned},
    memory::{Live, Standing, Touched},
};
use crate::{oracle::State, step::Step};

/// What `deferred` puts up with, in nanoseconds.
const MAX_DELAY_NS: u64 = 5_000_000;

/// A buffer that is waited for.
pub(super) struct LiveRetired {
    pub function: usize,
    pub iova: u64,
    pub bytes: u64,
    pub physical: u64,
    pub standing: Standing,
    held: HeldLate,
    written: Option<(u64, Vec<u8>)>,
    since_ns: u64,
    /// It was due when the reaper ran.
    is_over: bool,
}

impl Life {
    pub(super) fn retire(&mut self, index: usize) -> Touched {
        let Live { function, iova, bytes, memory, pieces, held, standing, written } =
            self.live.swap_remove(index);
        let group = self.functions[function].group;
        let since_ns = self.driven.machine.clock().now_ns();
        let held = match held.retire() {
            Ok(held) => held,
            Err(held) => {
                self.live.push(Live { function, iova, bytes, memory, pieces, held, standing, written });
                return None;
            }
        };
        let physical = memory[0];
        let is_over = false;
        self.retired.push(LiveRetired {
            function,
            iova,
            bytes,
            physical,
            standing,
            held,
            written,
            since_ns,
            is_over,
        });
        if standing != Standing::InUse {
            return None;
        }
        self.groups[group].oracle.set_state(iova, State::Retired);
        Some((group, iova, bytes))
    }

    /// What was due at `now_ns`, when the reaper ran, is flushed: no device reaches it any more.
    pub(super) fn settle_retired(&mut self, now_ns: u64) {
        let is_deferred = self.options.flush == iommu::options::Flush::Deferred;
        let delay_ns = if is_deferred { MAX_DELAY_NS } else { 0 };
        for retired in &mut self.retired {
            let is_due = retired.since_ns + delay_ns <= now_ns;
            if is_due && retired.standing == Standing::InUse && !retired.is_over {
                retired.is_over = true;
                let group = self.functions[retired.function].group;
                self.groups[group].oracle.set_state(retired.iova, State::Withheld);
            }
        }
    }

    /// A driver wants a retired buffer: it waits for it, looks whether it is there, or does not care.
    pub(super) fn redeem(&mut self, step: &Step) -> Result<Touched, String> {
        if self.retired.is_empty() {
            return Ok(None);
        }
        let retired = self.retired.swap_remove(step.a as usize % self.retired.len());
        match step.b % 3 {
            0 => self.wait_for(retired),
            1 => self.poll(retired),
            _ => Ok(self.drop_retired(retired)),
        }
    }

    /// Waits for those that `which` says.
    pub(super) fn redeem_where(&mut self, which: impl Fn(&Self, &LiveRetired) -> bool) -> Result<(), String> {
        while let Some(at) = self.retired.iter().position(|retired| which(self, retired)) {
            let retired = self.retired.swap_remove(at);
            self.wait_for(retired)?;
        }
        Ok(())
    }

    fn wait_for(&mut self, retired: LiveRetired) -> Result<Touched, String> {
        let LiveRetired { function, iova, bytes, physical, standing, held, written, .. } = retired;
        self.functions[function].hardware.keep_trying(&[iova, iova + self.random.below(bytes)]);
        let result = held.wait();
        self.functions[function].hardware.keep_trying(&[]);
        self.redeemed(function, (iova, bytes, physical), standing, written, result)
    }

    fn poll(&mut self, retired: LiveRetired) -> Result<Touched, String> {
        let LiveRetired { function, iova, bytes, physical, standing, held, written, .. } = retired;
        let held = match held.poll() {
            Ok(Ok(buffer)) => {
                return self.redeemed(function, (iova, bytes, physical), standing, written, Ok(buffer));
            }
            Err(error) => {
                return self.redeemed(function, (iova, bytes, physical), standing, written, Err(error));
            }
            Ok(Err(held)) => held,
        };
        if retired.is_over || standing != Standing::InUse {
            return Err(format!("{iova:#x} is not back, {standing:?}, and its flush was due"));
        }
        if !self.driven.machine.is_lent(physical) {
            return Err(format!("{physical:#x} is back, and its driver waits for it"));
        }
        self.retired.push(LiveRetired { held, written, ..retired });
        Ok(None)
    }

    fn redeemed(
        &mut self,
        function: usize,
        (iova, bytes, physical): (u64, u64, u64),
        standing: Standing,
        written: Option<(u64, Vec<u8>)>,
        result: Result<ModelBuffer, DmaError>,
    ) -> Result<Touched, String> {
        let group = self.functions[function].group;
        match (result, standing) {
            (Err(DmaError::Revoked), Standing::Revoked) => {
                self.groups[group].waiting.push(physical);
                Ok(None)
            }
            (Ok(buffer), Standing::InUse | Standing::Quiet) => {
                if buffer.physical() != physical {
                    return Err(format!("another buffer came back from {iova:#x}"));
                }
                self.expect_written(iova, written.as_ref(), Returned::One(buffer))?;
                if standing == Standing::Quiet {
                    return Ok(None);
                }
                self.groups[group].oracle.remove(iova);
                Ok(Some((group, iova, bytes)))
            }
            (other, standing) => Err(format!("retired {iova:#x}, {standing:?}: {other:?}")),
        }
    }

    fn drop_retired(&mut self, retired: LiveRetired) -> Touched {
        let LiveRetired { function, iova, bytes, physical, standing, held, is_over, .. } = retired;
        let group = self.functions[function].group;
        drop(held);
        match standing {
            Standing::InUse => {
                // Nobody reaches it from now on either, if nobody did before.
                let state = if is_over { State::Withheld } else { State::Retired };
                self.groups[group].oracle.set_state(iova, state);
                self.forgotten.push((group, iova, physical));
                return Some((group, iova, bytes));
            }
            Standing::Revoked => self.groups[group].waiting.push(physical),
            Standing::Quiet => {}
        }
        None
    }

    /// Many mappings come back together.
    pub(super) fn unmap_batch(&mut self, step: &Step) -> Result<Touched, String> {
        const MOST: usize = 40;
        let Some(first) = self.pick_live(step.a) else { return Ok(None) };
        let Some(handle) = self.functions[self.live[first].function].handle.clone() else { return Ok(None) };
        let (mut mappings, mut lives, mut at) = (Vec::new(), Vec::new(), 0);
        while at < self.live.len() && mappings.len() < 1 + step.b as usize % MOST {
            let live = &self.live[at];
            // Every third stays, and lies between.
            let stays = (step.c >> (at % 61)).is_multiple_of(3);
            if stays || live.standing != Standing::InUse || !matches!(live.held, Held::Both(_)) {
                at += 1;
                continue;
            }
            let Live { function, iova, bytes, memory, held, written, .. } = self.live.swap_remove(at);
            if let Held::Both(mapping) = held {
                mappings.push(mapping);
                lives.push((function, iova, bytes, memory[0], written));
            }
        }
        for &(function, iova, bytes, ..) in &lives {
            self.functions[function].hardware.keep_trying(&[iova, iova + (bytes - 1)]);
        }
        let unmapped = handle.unmap_batch(mappings);
        self.calm();
        let unmapped = unmapped.map_err(|error| format!("a batch of {}: {error}", lives.len()))?;
        let ranges: Vec<_> =
            lives.iter().map(|live| (self.functions[live.0].group, live.1, live.2)).collect();
        ranges.iter().for_each(|&(group, iova, _)| self.groups[group].oracle.remove(iova));
        for (buffer, (_, iova, _, physical, written)) in unmapped.zip(lives) {
            if buffer.physical() != physical {
                return Err(format!("another buffer came back from {iova:#x} in a batch"));
            }
            self.expect_written(iova, written.as_ref(), Returned::One(buffer))?;
        }
        ranges.iter().try_for_each(|&touched| self.check_around(touched))?;
        Ok(None)
    }
}
