//! Power cuts: QEMU is killed while the guest writes, and every write that a flush had confirmed must be durable.
//!
//! What is durable is not what the image holds: the host's page cache outlives QEMU. It is what QEMU's log of the
//! disk's requests ([`write_log`]) says up to its last flush. The image is built anew from that.
//!
//! The guest says what it writes before it writes it, and which rounds a flush has confirmed (`suites::power_cut`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};

use crate::boot::{Cut, Ending, Overrun};
use crate::control::{Record, Verdict};
use crate::disk::{self, SECTOR_BYTES, SECTORS};
use crate::scenario::Scenario;
use crate::session::{BrokenOff, Outcome};
use crate::stage::{self, Stage};
use crate::write_log::{self, Entry};

/// How often the power goes in one scenario.
const CUTS: usize = 3;
/// What the guest says before it writes: first sector, number of sectors, round.
const WRITE: &str = "power-cut-write";
/// What it says when a round was flushed.
const FLUSHED: &str = "power-cut-flushed";
/// How the loss of a sector is told.
const LOST: &str = "is lost";

/// Cuts the power several times, each time on a fresh disk, and looks what is left.
pub fn play(stage: &Stage, scenario: &Scenario, folder: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for boot in 1..=CUTS {
        let (folder, cut) = (folder.join(format!("boot-{boot}")), random_moment());
        let report = stage.run(scenario, None, &folder, Some(cut))?.0;
        let verdict = match report.ending {
            Ending::Overrun(Overrun::Cut) => {
                look(&report.record, &folder).map_err(|problem| format!("{problem:#}"))
            }
            _ => Err(format!("it did not come to the cut: {}", report.ending)),
        };
        outcome.complain_of(&report.record.complaints);
        if report.ending != Ending::Overrun(Overrun::Cut) {
            let (ending, last_lines) = (report.ending, report.last_lines);
            outcome.broken_off.push(BrokenOff { boot, ending, last_lines });
        }
        let name = format!("cut {boot}, {} ms after flush {}", cut.then.as_millis(), cut.reports);
        outcome.tests.extend(report.record.open.map(|test| (test, Ok(()))));
        outcome.checks.push((name, verdict));
        outcome.boots = boot;
    }
    Ok(outcome)
}

/// What counts: each cut, or, of a guest that does not flush, whether some cut showed it.
pub fn judge(keeps: bool, outcome: &Outcome) -> Vec<(String, Verdict)> {
    if keeps {
        return outcome.checks.clone();
    }
    let losses = outcome.checks.iter().filter_map(|(_, verdict)| verdict.as_ref().err());
    let strange: Vec<&String> = losses.clone().filter(|loss| !loss.contains(LOST)).collect();
    let verdict = match (strange.is_empty(), losses.count()) {
        (true, 1..) => Ok(()),
        (true, 0) => Err("nothing was lost without a flush".to_string()),
        (false, _) => Err(format!("{strange:?}")),
    };
    vec![("writes without a flush are lost".to_string(), verdict)]
}

/// Some time after the first flushes. It is in the name of what failed.
fn random_moment() -> Cut {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let (reports, ms) = (8 + nanoseconds / 7 % 64, nanoseconds / 1009 % 200);
    Cut { key: FLUSHED, reports: reports as usize, then: Duration::from_millis(ms.into()) }
}

/// Looks at what is durable of what the guest wrote.
fn look(record: &Record, folder: &Path) -> Result<()> {
    let history = History::of(record)?;
    let entries = write_log::durable_entries(&stage::write_log_within(folder))?;
    let image = folder.join("durable.img");
    rebuild(&image, &entries)?;
    history.compare(&image)?;
    for file in [image, stage::disk_within(folder), stage::write_log_within(folder)] {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}

/// Makes the disk as it was before the boot, and does `entries` to it.
fn rebuild(image: &Path, entries: &[Entry]) -> Result<()> {
    disk::create(image)?;
    let mut file = File::options().write(true).open(image)?;
    let mut write = |first: u64, data: &[u8]| -> Result<()> {
        let end = first.checked_add((data.len() / SECTOR_BYTES) as u64);
        ensure!(end.is_some_and(|end| end <= SECTORS), "a write at sector {first}, off the disk");
        file.seek(SeekFrom::Start(first * SECTOR_BYTES as u64))?;
        Ok(file.write_all(data)?)
    };
    for entry in entries {
        match entry {
            Entry::Write { first, data } => write(*first, data)?,
            Entry::Discard { first, sectors } => {
                ensure!(*sectors <= SECTORS, "a discard of {sectors} sectors");
                write(*first, &vec![0; *sectors as usize * SECTOR_BYTES])?;
            }
            Entry::Flush => {}
        }
    }
    Ok(())
}

/// What the guest said that it did.
#[derive(Debug, Default)]
struct History {
    /// The rounds in which a sector was written.
    rounds: BTreeMap<u64, BTreeSet<u64>>,
    /// The last round that a flush has confirmed.
    flushed: u64,
}

impl History {
    fn of(record: &Record) -> Result<Self> {
        let mut history = Self::default();
        for (key, words) in &record.values {
            let numbers = words.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>();
            match (key.as_str(), numbers.as_deref()) {
                (WRITE, Ok(&[first, sectors, round]))
                    if first.checked_add(sectors).is_some_and(|end| end <= SECTORS) =>
                {
                    for sector in first..first + sectors {
                        history.rounds.entry(sector).or_default().insert(round);
                    }
                }
                (FLUSHED, Ok(&[round])) => history.flushed = history.flushed.max(round),
                _ => return Err(anyhow!("the guest reports {key} {words:?}")),
            }
        }
        Ok(history)
    }

    /// Each sector that a confirmed round wrote must hold what that round wrote, or a later one.
    fn compare(&self, image: &Path) -> Result<()> {
        let mut file = File::open(image)?;
        let mut confirmed = 0;
        for (&sector, rounds) in &self.rounds {
            let Some(&last) = rounds.range(..=self.flushed).next_back() else { continue };
            let mut found = [0; SECTOR_BYTES];
            file.seek(SeekFrom::Start(sector * SECTOR_BYTES as u64))?;
            file.read_exact(&mut found)?;
            let mut allowed = rounds.range(last..);
            ensure!(
                allowed.any(|&round| found == content(sector, round)),
                "sector {sector} of round {last} {LOST}: round {} was flushed, and it holds {:?}",
                self.flushed,
                String::from_utf8_lossy(&found[..40])
            );
            confirmed += 1;
        }
        ensure!(confirmed > 0, "nothing was confirmed");
        Ok(())
    }
}

/// What the guest writes to a sector in a round.
fn content(sector: u64, round: u64) -> [u8; SECTOR_BYTES] {
    let label = format!("sector {sector} in round {round}\n");
    let mut letters = label.bytes().cycle();
    std::array::from_fn(|_| letters.next().unwrap_or_default())
}

#[cfg(test)]
#[path = "power_cut_tests.rs"]
mod tests;
