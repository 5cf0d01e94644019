//! One boot: starts QEMU, watches that the guest goes on, and says how it ended.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::control::{self, Record};
use crate::hands::{Device, Hands};
use crate::typist::{Line, Typist};
use crate::workspace::shown;

/// How many lines of the console are kept to show where a guest stopped.
const TAIL_LINES: usize = 40;
/// How often the guest's progress is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long QEMU may take to end on request before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// What the guest says by the value that it writes to the debug-exit port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    TestsFailed,
    /// A panic or a fatal exception.
    Panicked,
    /// A test that exceeded its deadline.
    DeadlineMissed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Guest(Verdict),
    /// QEMU ended, and the guest had not said how: it reset (a triple fault does), or someone quit QEMU.
    NoVerdict,
    Overrun(Overrun),
    /// QEMU failed, or something killed it.
    Qemu(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// Neither console nor control channel moved for this long.
    Silent(Duration),
    /// Still running after this long.
    Total(Duration),
    /// It came to its [`Cut`].
    Cut,
}

impl Ending {
    /// The isa-debug-exit device ends QEMU with `(value << 1) | 1`; the guest's values start at 0x10.
    fn of(status: ExitStatus) -> Ending {
        match status.code() {
            Some(0) => Ending::NoVerdict,
            Some(0x21) => Ending::Guest(Verdict::Passed),
            Some(0x23) => Ending::Guest(Verdict::TestsFailed),
            Some(0x25) => Ending::Guest(Verdict::Panicked),
            Some(0x27) => Ending::Guest(Verdict::DeadlineMissed),
            _ => Ending::Qemu(status.to_string()),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Guest(Verdict::Passed) => f.write_str("the guest powered off, all well"),
            Ending::Guest(Verdict::TestsFailed) => f.write_str("the guest powered off, tests failed"),
            Ending::Guest(Verdict::Panicked) => f.write_str("the kernel panicked"),
            Ending::Guest(Verdict::DeadlineMissed) => f.write_str("a test exceeded its deadline"),
            Ending::NoVerdict => f.write_str("the guest reset, or QEMU was quit, without a verdict"),
            Ending::Overrun(Overrun::Silent(limit)) => write!(f, "hung: silent for {} s", limit.as_secs()),
            Ending::Overrun(Overrun::Total(limit)) => write!(f, "not done after {} s", limit.as_secs()),
            Ending::Overrun(Overrun::Cut) => f.write_str("the power was cut"),
            Ending::Qemu(status) => write!(f, "QEMU failed ({status})"),
        }
    }
}

/// How long a guest may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub silence: Duration,
    pub total: Duration,
    /// Whether someone works with the guest once its tests are done: then nothing limits it any more.
    pub interactive: bool,
    /// When the power goes, if it does.
    pub cut: Option<Cut>,
    /// What can be plugged in by the hands at the machine, if there are any. QEMU's monitor is on its standard input
    /// and output then.
    pub hands: Option<&'static [Device]>,
    /// What is typed into its shell. Its serial line is on QEMU's standard input then.
    pub typed: &'static [Line],
}

/// A power cut: QEMU is killed, with no time to write anything.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// So many values of this key must have been reported.
    pub key: &'static str,
    pub reports: usize,
    /// So long after the last of them was seen.
    pub then: Duration,
}

pub struct Report {
    pub ending: Ending,
    pub record: Record,
    /// What became of each line that was typed.
    pub typed: Vec<(String, control::Verdict)>,
    /// The last lines of the console; where QEMU itself failed, also what it said.
    pub last_lines: Vec<String>,
}

/// What a boot leaves behind.
pub struct Logs {
    /// All that the guest wrote on its console.
    pub console: PathBuf,
    pub control: PathBuf,
    /// QEMU's own messages. It comments on every access that its IOMMU blocks.
    pub qemu: PathBuf,
}

impl Logs {
    pub fn within(folder: &Path) -> Logs {
        Logs {
            console: folder.join("console.log"),
            control: folder.join("control.log"),
            qemu: folder.join("qemu.log"),
        }
    }
}

/// Runs `command`, a QEMU that writes console and control channel to these files, until it ends or exceeds the limits.
pub fn watch(mut command: Command, logs: &Logs, limits: Option<Limits>) -> Result<Report> {
    let Logs { console, control, qemu } = logs;
    for stale in [console, control] {
        if stale.exists() {
            fs::remove_file(stale).with_context(|| format!("cannot remove {}", stale.display()))?;
        }
    }
    command.stderr(File::create(qemu).with_context(|| format!("cannot create {}", qemu.display()))?);
    let child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
    let mut guest = Guest(child);
    let devices = limits.and_then(|limits| limits.hands);
    let hands = devices.map(|devices| Hands::start(&mut guest.0, control.clone(), devices)).transpose()?;
    let lines = limits.map_or(&[][..], |limits| limits.typed);
    let typist = if lines.is_empty() { None } else { Typist::start(&mut guest.0, console.clone(), lines) };
    let mut progress = Progress::new();
    let ending = loop {
        if let Some(status) = guest.0.try_wait()? {
            break Ending::of(status);
        }
        if let Some(limits) = limits
            && let Some(overrun) = progress.check(&limits, size(console), size(control), control)
        {
            match overrun {
                Overrun::Cut => guest.kill()?,
                Overrun::Silent(_) | Overrun::Total(_) => guest.end()?,
            }
            break Ending::Overrun(overrun);
        }
        sleep(POLL);
    };
    let mut last_lines = tail(&content(console));
    if let Ending::Qemu(_) = ending {
        last_lines.extend(tail(&content(qemu)));
    }
    let mut record = Record::read(&content(control));
    match hands {
        Some(hands) => record.complaints.extend(hands.finish()),
        None if record.requests.is_empty() => {}
        None => record.complaints.push(format!("nobody could do what was asked for: {:?}", record.requests)),
    }
    let typed = typist.map_or_else(Vec::new, Typist::finish);
    Ok(Report { ending, record, typed, last_lines })
}

/// When the guest last gave a sign of life.
struct Progress {
    started: Instant,
    last_sign: Instant,
    sizes: (u64, u64),
    done: bool,
    cut_at: Option<Instant>,
}

impl Progress {
    fn new() -> Progress {
        let now = Instant::now();
        Progress { started: now, last_sign: now, sizes: (0, 0), done: false, cut_at: None }
    }

    fn check(&mut self, limits: &Limits, console: u64, control: u64, channel: &Path) -> Option<Overrun> {
        let now = Instant::now();
        if self.sizes.1 != control && limits.interactive {
            self.done = Record::read(&content(channel)).done.is_some();
        }
        if self.sizes.1 != control && self.cut_at.is_none() {
            let due = limits.cut.filter(|cut| cut.is_due(&Record::read(&content(channel))));
            self.cut_at = due.map(|cut| now + cut.then);
        }
        if self.cut_at.is_some_and(|at| now >= at) {
            return Some(Overrun::Cut);
        }
        if self.sizes != (console, control) {
            self.sizes = (console, control);
            self.last_sign = now;
        }
        if self.done {
            return None;
        }
        if now - self.started > limits.total {
            return Some(Overrun::Total(limits.total));
        }
        (now - self.last_sign > limits.silence).then_some(Overrun::Silent(limits.silence))
    }
}

/// A running QEMU, ended when dropped. Where nothing is dropped any more the system ends it
/// ([`Qemu::command`](crate::qemu::Qemu::command)).
struct Guest(Child);

impl Guest {
    /// Asks QEMU to end, so that it puts the terminal back as it was, and kills it when it does not.
    fn end(&mut self) -> std::io::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            sleep(POLL);
        }
        self.kill()
    }

    fn kill(&mut self) -> std::io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(|_| ())
    }
}

impl Cut {
    fn is_due(&self, record: &Record) -> bool {
        record.values.iter().filter(|(key, _)| key == self.key).count() >= self.reports
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Nothing more can be done about a QEMU that cannot even be killed.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The content of a file that QEMU creates; none when QEMU did not come so far.
fn content(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

fn tail(console: &[u8]) -> Vec<String> {
    let mut lines = VecDeque::new();
    for line in String::from_utf8_lossy(console).lines() {
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.trim_end().to_string());
    }
    lines.into()
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
