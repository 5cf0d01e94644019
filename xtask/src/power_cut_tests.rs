//! Histories and logs made by hand.

use super::*;
use crate::workspace::Workspace;

/// A guest that reported these lines.
fn record(lines: &str) -> Record {
    Record::read(format!("begin power_cut::flushes\n{lines}").as_bytes())
}

fn write(sector: u64, rounds: u64) -> Entry {
    Entry::Write { first: sector, data: content(sector, rounds).to_vec() }
}

/// What comes of a guest that reported `lines` when the log has `entries`.
fn verdict(name: &str, lines: &str, entries: &[Entry]) -> Result<()> {
    let folder = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(stage::write_log_within(&folder), write_log::builder::log(entries)).unwrap();
    fs::write(stage::disk_within(&folder), "").unwrap();
    let verdict = look(&record(lines), &folder);
    fs::remove_dir_all(folder).unwrap();
    verdict
}

const LINES: &str = "value power-cut-write 9 2 1\nvalue power-cut-flushed 1\n\
     value power-cut-write 9 1 2\nvalue power-cut-flushed 2\nvalue power-cut-write 9 1 3\n";

#[test]
fn what_was_flushed_must_be_there_and_may_be_newer() {
    let before = [write(9, 1), write(10, 1), Entry::Flush, write(9, 2), Entry::Flush];
    verdict("cut-kept", LINES, &before).unwrap();
    let newer: Vec<Entry> = before.into_iter().chain([write(9, 3), Entry::Flush]).collect();
    verdict("cut-newer", LINES, &newer).unwrap();
}

#[test]
fn what_was_flushed_and_is_not_there_is_lost() {
    let told = |name, entries: &[Entry]| verdict(name, LINES, entries).unwrap_err().to_string();
    // The write came after the last flush that the log has.
    let late = told("cut-late", &[write(9, 1), write(10, 1), Entry::Flush, write(9, 2)]);
    assert!(late.starts_with("sector 9 of round 2 is lost: round 2 was flushed, and it holds \"sector 9 in"));
    let never = told("cut-never", &[write(9, 2), Entry::Flush]);
    assert!(never.starts_with("sector 10 of round 1 is lost"), "{never}");
    let elsewhere = told("cut-elsewhere", &[write(9, 2), Entry::Flush, write(10, 7), Entry::Flush]);
    assert!(elsewhere.contains(LOST));
    let discarded = [write(9, 2), write(10, 1), Entry::Discard { first: 10, sectors: 1 }, Entry::Flush];
    assert!(told("cut-discarded", &discarded).contains(LOST));
}

#[test]
fn what_makes_no_sense_is_no_success() {
    assert!(verdict("cut-nothing", "value power-cut-flushed 1\n", &[Entry::Flush]).is_err());
    assert!(verdict("cut-strange", "value power-cut-write 1\n", &[Entry::Flush]).is_err());
    assert!(verdict("cut-off-disk", "value power-cut-write 131072 1 1\n", &[Entry::Flush]).is_err());
    let off = Entry::Write { first: SECTORS, data: vec![0; SECTOR_BYTES] };
    assert!(
        verdict("cut-off-log", LINES, &[off, Entry::Flush]).unwrap_err().to_string().contains("off the disk")
    );
}

#[test]
fn a_guest_that_does_not_flush_must_lose_something() {
    let outcome = |verdicts: &[Result<(), &str>]| Outcome {
        checks: verdicts.iter().map(|v| ("cut".to_string(), v.map_err(String::from))).collect(),
        ..Outcome::default()
    };
    let holds = |keeps, verdicts: &[Result<(), &str>]| {
        judge(keeps, &outcome(verdicts)).iter().all(|(_, verdict)| verdict.is_ok())
    };
    let lost = Err("sector 9 of round 2 is lost: round 2 was flushed");
    assert!(holds(true, &[Ok(()), Ok(())]) && !holds(true, &[Ok(()), lost]));
    assert!(holds(false, &[Ok(()), lost]) && !holds(false, &[Ok(()), Ok(())]) && !holds(false, &[]));
    assert!(!holds(false, &[lost, Err("it did not come to the cut")]));
}
