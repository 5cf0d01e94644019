//! The command line: what the kernel is asked to do.

use core::fmt;

use log::LevelFilter;
use suites::power_cut::Flushing;

/// The words of the command line, sorted by what they are for. Later words win.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Power off after the tests and the demonstration, instead of starting the shell.
    pub exit: bool,
    /// The host plugs devices in and out when the control channel asks it to.
    pub plugs: bool,
    /// Which tests to run.
    pub tests: Selection<'a>,
    /// Which benchmarks to run.
    pub bench: Option<&'a str>,
    /// What the log shows.
    pub log: LevelFilter,
    /// What all `iommu=` together say.
    pub iommu: iommu::Options,
    /// Remapping units record the interrupts that they block. QEMU's does not before 10.0; nothing in the guest tells.
    pub interrupt_faults: bool,
    /// A test that misbehaves on purpose is added.
    pub selftest: Option<Misbehaviour>,
    /// A test that writes to the disk until the power goes is added.
    pub power_cut: Option<Flushing>,
    /// How long the stress test runs, in seconds.
    pub stress_s: u64,
    /// How many processes are killed while their device writes.
    pub kills: u64,
    /// How much is written to and read from the disk at random, in MiB.
    pub bulk_mib: u64,
    /// The port on which the host serves files to the network tests.
    pub net_port: Option<u16>,
    /// How much they fetch by each interface, in MiB.
    pub fetch_mib: u64,
    /// How many visitors the host sends to each interface.
    pub visitors: u64,
    /// The disk has no medium behind it: nothing is stored, and what it does costs no more than the way there.
    pub hollow_disk: bool,
    /// NVMe disks are driven by processes in ring 3.
    pub served_disk: bool,
    /// Devices that processes are given get their address spaces.
    pub shares_spaces: bool,
    /// The bridges are left as by firmware that configures none.
    pub unconfigured_bridges: bool,
}

/// Which tests to run: those that the glob matches, from or after a name in sorted order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selection<'a> {
    /// `test=`; nothing is run if it is `none`.
    pub glob: &'a str,
    /// `test-from=`.
    pub from: Option<&'a str>,
    /// `test-after=`.
    pub after: Option<&'a str>,
}

/// How a test misbehaves that proves that misbehaviour is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misbehaviour {
    /// It panics.
    Panic,
    /// It spins with interrupts off.
    Hang,
    /// It destroys the interrupt descriptor table.
    TripleFault,
    /// It takes two locks in the wrong order. Only debug builds notice.
    LockOrder,
    /// It lets an interrupt come while it holds a lock. Only debug builds notice.
    UnmaskedLock,
    /// It allocates in an interrupt. Only debug builds notice.
    AllocatingHandler,
    /// It logs in an interrupt. Only debug builds notice.
    LoggingHandler,
}

/// What the disk of `xtask` has room for.
const BULK_MIB_MAX: u64 = 64;

/// The longest file of `xtask`.
const FETCH_MIB_MAX: u64 = 256;

/// As many as come within the deadline of the test that counts them.
const VISITORS_MAX: u64 = 10_000;

/// The stress test's deadline leaves so much.
const STRESS_S_MAX: u64 = 240;

/// As many as there is time for within the deadline of the test that kills them.
const KILLS_MAX: u64 = 1000;

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            exit: false,
            plugs: false,
            tests: Selection { glob: "*", from: None, after: None },
            bench: None,
            log: LevelFilter::Info,
            iommu: iommu::Options::default(),
            interrupt_faults: true,
            selftest: None,
            power_cut: None,
            stress_s: 5,
            kills: 3,
            bulk_mib: 4,
            net_port: None,
            fetch_mib: 2,
            visitors: 0,
            hollow_disk: false,
            served_disk: false,
            shares_spaces: false,
            unconfigured_bridges: false,
        }
    }
}

/// A word that means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownWord<'a>(pub &'a str);

impl fmt::Display for UnknownWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown word on the command line: {:?}", self.0)
    }
}

/// Reads `line`, and reports every word that means nothing.
pub fn parse<'a>(line: &'a str, mut report: impl FnMut(UnknownWord<'a>)) -> Options<'a> {
    let mut options = Options::default();
    for word in line.split_ascii_whitespace() {
        if let Some(words) = word.strip_prefix("iommu=") {
            options.iommu.apply(words, |word| report(UnknownWord(word)));
        } else if options.take(word).is_none() {
            report(UnknownWord(word));
        }
    }
    options
}

impl<'a> Options<'a> {
    /// Takes one word; `None` if it means nothing.
    fn take(&mut self, word: &'a str) -> Option<()> {
        let Some((key, value)) = word.split_once('=') else {
            match word {
                "exit" => self.exit = true,
                "plugs" => self.plugs = true,
                _ => return None,
            }
            return Some(());
        };
        match key {
            "test" => self.tests.glob = value,
            "test-from" => self.tests.from = Some(value),
            "test-after" => self.tests.after = Some(value),
            "bench" => self.bench = Some(value),
            "log" => self.log = log_level(value)?,
            "lacks" if value == "interrupt-faults" => self.interrupt_faults = false,
            "disk" if value == "hollow" => self.hollow_disk = true,
            "disk" if value == "process" => self.served_disk = true,
            "spaces" if value == "shared" => self.shares_spaces = true,
            "bridges" if value == "unconfigured" => self.unconfigured_bridges = true,
            "stress" => self.stress_s = value.parse().ok().filter(|s| (1..=STRESS_S_MAX).contains(s))?,
            "kills" => self.kills = value.parse().ok().filter(|kills| (1..=KILLS_MAX).contains(kills))?,
            "bulk" => self.bulk_mib = value.parse().ok().filter(|mib| (1..=BULK_MIB_MAX).contains(mib))?,
            "net-port" => self.net_port = Some(value.parse().ok().filter(|&port| port != 0)?),
            "fetch" => self.fetch_mib = value.parse().ok().filter(|mib| (1..=FETCH_MIB_MAX).contains(mib))?,
            "visitors" => self.visitors = value.parse().ok().filter(|&visitors| visitors <= VISITORS_MAX)?,
            "selftest" => self.selftest = Some(misbehaviour(value)?),
            "power-cut" => self.power_cut = Some(flushing(value)?),
            _ => return None,
        }
        Some(())
    }
}

fn log_level(value: &str) -> Option<LevelFilter> {
    Some(match value {
        "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => return None,
    })
}

fn flushing(value: &str) -> Option<Flushing> {
    Some(match value {
        "flushed" => Flushing::Done,
        "unflushed" => Flushing::Omitted,
        _ => return None,
    })
}

fn misbehaviour(value: &str) -> Option<Misbehaviour> {
    Some(match value {
        "panic" => Misbehaviour::Panic,
        "hang" => Misbehaviour::Hang,
        "triple-fault" => Misbehaviour::TripleFault,
        "lock-order" => Misbehaviour::LockOrder,
        "unmasked-lock" => Misbehaviour::UnmaskedLock,
        "allocating-handler" => Misbehaviour::AllocatingHandler,
        "logging-handler" => Misbehaviour::LoggingHandler,
        _ => return None,
    })
}
