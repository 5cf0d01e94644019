//! The control channel: what the guest reports to the host, one ASCII line an event.
//!
//! The guest writes to QEMU's debug console (I/O port 0xe9), QEMU writes that to a file:
//!
//! ```text
//! begin NAME                        a test starts
//! ok NAME                           it passed
//! fail NAME REASON...               it did not
//! skip NAME REASON...               it was not run: the machine lacks what it needs
//! value KEY WORDS...                a result that the host compares (see `disk`)
//! plug NAME                         the host shall plug the device of this name in (see `hands`)
//! unplug NAME                       it shall ask for the device's removal
//! look NAME PICTURE                 it shall look at the screen of the display of this name, and press a key when it
//!                                   has seen this picture there; if that is 0, nothing of any (see `screen`)
//! hold MS                           it shall keep the machine from running for so many milliseconds, a minute at most
//! bench NAME MIN MEDIAN MAX UNIT    a measurement
//! done PASSED FAILED                the run is over, with the guest's own counts
//! ```
//!
//! The guest is what is being tested, so nothing here takes its word: a line that does not fit is kept as a
//! complaint, and counts come from the single results, with `done` as the check on them.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Begin(String),
    Ok(String),
    Fail { name: String, reason: String },
    Skip { name: String, reason: String },
    Value { key: String, words: Vec<String> },
    Bench(Measurement),
    Request(Request),
    Done { passed: usize, failed: usize },
}

/// What the guest asks the host to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Plug(String),
    Unplug(String),
    Look {
        display: String,
        picture: u32,
    },
    /// For so many milliseconds.
    HoldStill(u64),
}

/// One benchmark's result, over all its repetitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    pub name: String,
    pub min: u64,
    pub median: u64,
    pub max: u64,
    pub unit: String,
}

/// A line that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAnEvent(String);

impl fmt::Display for NotAnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an event: {:?}", self.0)
    }
}

impl std::error::Error for NotAnEvent {}

impl std::str::FromStr for Event {
    type Err = NotAnEvent;

    fn from_str(line: &str) -> Result<Event, NotAnEvent> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let event = match words.as_slice() {
            ["begin", name] => Some(Event::Begin(name.to_string())),
            ["ok", name] => Some(Event::Ok(name.to_string())),
            ["fail", name, reason @ ..] => {
                Some(Event::Fail { name: name.to_string(), reason: reason.join(" ") })
            }
            ["skip", name, reason @ ..] => {
                Some(Event::Skip { name: name.to_string(), reason: reason.join(" ") })
            }
            ["value", key, rest @ ..] if !rest.is_empty() => Some(Event::Value {
                key: key.to_string(),
                words: rest.iter().map(|w| w.to_string()).collect(),
            }),
            ["plug", name] => Some(Event::Request(Request::Plug(name.to_string()))),
            ["unplug", name] => Some(Event::Request(Request::Unplug(name.to_string()))),
            ["bench", rest @ ..] => measurement(rest).map(Event::Bench),
            ["look", display, picture] => picture
                .parse()
                .ok()
                .map(|picture| Event::Request(Request::Look { display: display.to_string(), picture })),
            ["hold", ms] => ms.parse().ok().map(|ms| Event::Request(Request::HoldStill(ms))),
            ["done", passed, failed] => done(passed, failed),
            _ => None,
        };
        event.ok_or_else(|| NotAnEvent(line.to_string()))
    }
}

fn measurement(words: &[&str]) -> Option<Measurement> {
    let [name, min, median, max, unit] = words else { return None };
    let (min, median, max) = (min.parse().ok()?, median.parse().ok()?, max.parse().ok()?);
    Some(Measurement { name: name.to_string(), min, median, max, unit: unit.to_string() })
}

fn done(passed: &str, failed: &str) -> Option<Event> {
    Some(Event::Done { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
}

/// How one test ended: passed, or failed for a reason.
pub type Verdict = Result<(), String>;

/// What one boot reported, in order.
#[derive(Debug, Default)]
pub struct Record {
    /// Finished tests in the order in which they ran.
    pub results: Vec<(String, Verdict)>,
    /// Tests that were not run, and what the machine lacks for them.
    pub skipped: Vec<(String, String)>,
    /// The test that began and has not ended.
    pub open: Option<String>,
    pub values: Vec<(String, Vec<String>)>,
    pub measurements: Vec<Measurement>,
    /// What the host was asked for.
    pub requests: Vec<Request>,
    /// The guest's own counts, said at the end of its run.
    pub done: Option<(usize, usize)>,
    /// Where the guest broke the protocol.
    pub complaints: Vec<String>,
}

impl Record {
    /// The record in `bytes`, the channel's content. A last line without its end is a guest that was cut off
    /// while it wrote: that is no complaint, and no event either.
    pub fn read(bytes: &[u8]) -> Record {
        let mut record = Record::default();
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            match line.parse() {
                Ok(event) => record.enter(event),
                Err(problem) => record.complaints.push(NotAnEvent::to_string(&problem)),
            }
        }
        record
    }

    /// The test that began last, finished or not.
    pub fn last_begun(&self) -> Option<&str> {
        self.open.as_deref().or_else(|| self.results.last().map(|(name, _)| name.as_str()))
    }

    pub fn first_begun(&self) -> Option<&str> {
        self.results.first().map(|(name, _)| name.as_str()).or(self.open.as_deref())
    }

    fn enter(&mut self, event: Event) {
        if self.done.is_some() && matches!(event, Event::Begin(_) | Event::Done { .. }) {
            self.complaints.push(format!("after `done` came {event:?}"));
            return;
        }
        match event {
            Event::Begin(name) => {
                if let Some(open) = self.open.replace(name) {
                    self.results.push((open, Err("the next test began, and this one had not ended".into())));
                }
            }
            Event::Ok(name) => self.close(name, Ok(())),
            Event::Fail { name, reason } => self.close(name, Err(reason)),
            Event::Skip { name, reason } => self.skipped.push((name, reason)),
            Event::Value { key, words } => self.values.push((key, words)),
            Event::Request(request) => self.requests.push(request),
            Event::Bench(measurement) => self.measurements.push(measurement),
            Event::Done { passed, failed } => {
                self.done = Some((passed, failed));
                self.check_counts(passed, failed);
            }
        }
    }

    fn close(&mut self, name: String, verdict: Verdict) {
        if self.open.as_deref() == Some(name.as_str()) {
            self.open = None;
            self.results.push((name, verdict));
        } else {
            let running = self.open.as_deref().unwrap_or("no test");
            self.complaints.push(format!("a result for {name} while {running} ran"));
        }
    }

    fn check_counts(&mut self, passed: usize, failed: usize) {
        let seen = self.results.iter().filter(|(_, verdict)| verdict.is_ok()).count();
        let counted = (seen, self.results.len() - seen);
        if let Some(open) = &self.open {
            self.complaints.push(format!("`done` while {open} ran"));
        }
        if counted != (passed, failed) {
            self.complaints.push(format!(
                "`done` says {passed} passed, {failed} failed; the single results are {} and {}",
                counted.0, counted.1
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        Record::read(text.as_bytes())
    }

    #[test]
    fn a_whole_run() {
        let record = record(
            "begin a::x\nok a::x\nskip a::xx no such device\nbegin a::y\nvalue disk-read 0 8 ab12\nfail a::y 3 is not 4\n\
             bench map-4k 90 91 300 instructions\ndone 1 1\n",
        );
        assert_eq!(record.results, [("a::x".into(), Ok(())), ("a::y".into(), Err("3 is not 4".into()))]);
        assert_eq!(record.skipped, [("a::xx".to_string(), "no such device".to_string())]);
        assert_eq!(record.values, [("disk-read".into(), vec!["0".into(), "8".into(), "ab12".into()])]);
        assert_eq!(
            (record.measurements[0].median, record.measurements[0].unit.as_str()),
            (91, "instructions")
        );
        assert_eq!((record.done, record.open.as_deref()), (Some((1, 1)), None));
        assert_eq!(record.complaints, Vec::<String>::new());
    }

    #[test]
    fn a_run_that_stops_in_the_middle_leaves_its_test_open() {
        let record = record("begin a\nok a\nbegin b\nok ");
        assert_eq!(record.open.as_deref(), Some("b"));
        assert_eq!((record.first_begun(), record.last_begun()), (Some("a"), Some("b")));
        assert_eq!(record.done, None);
        assert!(record.complaints.is_empty(), "a cut-off line is no complaint: {:?}", record.complaints);
    }

    #[test]
    fn counts_that_do_not_add_up_are_a_complaint() {
        assert_eq!(record("begin a\nok a\ndone 1 0\n").complaints.len(), 0);
        assert_eq!(record("begin a\nok a\ndone 2 0\n").complaints.len(), 1);
        assert_eq!(record("begin a\nfail a x\ndone 1 0\n").complaints.len(), 1);
        assert_eq!(record("begin a\ndone 0 0\n").complaints.len(), 1);
    }

    #[test]
    fn results_out_of_turn_are_complaints_and_do_not_count() {
        let stray = record("ok a\n");
        assert_eq!((stray.results.len(), stray.complaints.len()), (0, 1));
        let twice = record("begin a\nok a\nok a\ndone 1 0\n");
        assert_eq!((twice.results.len(), twice.complaints.len()), (1, 1));
        let skipped = record("begin a\nbegin b\nok b\n");
        assert!(skipped.results[0].1.is_err() && skipped.results[1].1.is_ok());
        let late = record("begin a\nok a\ndone 1 0\nbegin b\n");
        assert_eq!((late.open.as_deref(), late.complaints.len()), (None, 1));
        assert_eq!(record("done 0 0\ndone 5 0\n").done, Some((0, 0)));
    }

    #[test]
    fn lines_that_are_no_events() {
        for line in [
            "",
            "begin",
            "begin a b",
            "ok",
            "value x",
            "plug",
            "unplug a b",
            "look a",
            "look a x",
            "hold",
            "hold -1",
            "done 1",
            "done x 0",
            "done -1 0",
            "bench a 1 2 3",
            "hello",
        ] {
            assert!(line.parse::<Event>().is_err(), "{line:?}");
        }
        assert_eq!(record("garbage\n\u{fffd}\n").complaints.len(), 2);
        assert_eq!(Record::read(&[0xff, b'\n']).complaints.len(), 1);
    }
}
