//! `cargo xtask run`: one boot, with the guest's console on ours and its verdict as our exit code.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lexopt::{Parser, ValueExt};

use crate::boot::{self, Ending, Limits, Logs, Report, Verdict};
use crate::disk;
use crate::firmware;
use crate::machine::{Console, Files, Machine};
use crate::matrix;
use crate::network::Network;
use crate::options::{self, BOOT_USAGE, BootOptions, Read};
use crate::qemu::Qemu;
use crate::scenario::Scenario;
use crate::setup;
use crate::symbols;
use crate::workspace::Workspace;

const USAGE: &str = "Usage: cargo xtask run [OPTIONS] [-- QEMU-ARGUMENTS]

Builds the kernel, boots it in QEMU with its console here and ends with the guest's verdict: 0 all well, 1 tests failed
or none ran, 3 panic, 4 a test's deadline, 5 hung or too slow, 6 no verdict; 2 xtask itself failed.
QEMU's own messages are in target/sluice/run/qemu.log.
On a terminal a shell follows the tests (Ctrl-A X quits QEMU); otherwise the guest powers off.

  --exit              power off after the tests, on a terminal too
  --gdb               wait for a debugger before the first instruction
  --scenario NAME     a machine of the test matrix instead of the default one
  --test GLOB         only these in-kernel tests (none: no test)
";

/// How long the guest may say nothing before its tests are done.
const SILENCE: Duration = Duration::from_secs(120);
const TOTAL: Duration = Duration::from_secs(900);

#[derive(Default)]
struct Options {
    boot: BootOptions,
    exit: bool,
    gdb: bool,
    scenario: Option<String>,
    tests: Option<String>,
    qemu_arguments: Vec<OsString>,
}

pub fn main(mut parser: Parser) -> Result<ExitCode> {
    let mut options = Options::default();
    match options::read(&mut parser, |name, parser| options.take(name, parser))? {
        Read::Help => {
            print!("{USAGE}{BOOT_USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Read::Rest(arguments) => options.qemu_arguments = arguments,
    }
    let scenario = options.find_scenario()?;
    let report = options.boot(scenario)?;
    eprint!("{}", remarks(&report, options.is_interactive()));
    let tests = Tests::of(&options.command_line(scenario, false), report.record.done);
    if tests == Tests::NoneRan {
        eprintln!("\nxtask run: no test ran");
    }
    Ok(ExitCode::from(exit_code(&report.ending, tests)))
}

/// How far the guest's tests came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tests {
    /// They are turned off.
    Off,
    Unfinished,
    /// None fits what was asked for, or the machine lacks what they need.
    NoneRan,
    Passed,
    Failed,
}

impl Tests {
    /// Those of a kernel with these words. `done` are the guest's counts, if it came to the end of its tests.
    fn of(words: &str, done: Option<(usize, usize)>) -> Tests {
        // As the kernel has it, the last of several counts.
        let glob = words.split_whitespace().filter_map(|word| word.strip_prefix("test=")).next_back();
        match done {
            _ if glob == Some("none") => Tests::Off,
            None => Tests::Unfinished,
            Some((0, 0)) => Tests::NoneRan,
            Some((_, 0)) => Tests::Passed,
            Some(_) => Tests::Failed,
        }
    }
}

/// What the console has not shown by itself.
fn remarks(report: &Report, interactive: bool) -> String {
    let mut text = String::new();
    let is_done = report.record.done.is_some();
    let quit_after_tests = report.ending == Ending::NoVerdict && is_done;
    if !matches!(report.ending, Ending::Guest(_)) && !quit_after_tests {
        text += &format!("\nxtask run: {}\n", report.ending);
    }
    // At the shell tests may be run once more, which the protocol does not know.
    if !(interactive && is_done) {
        for complaint in &report.record.complaints {
            text += &format!("xtask run: control channel: {complaint}\n");
        }
    }
    let shown: Vec<&str> = report.last_lines.iter().map(String::as_str).collect();
    match report.ending {
        Ending::Overrun(_) | Ending::Qemu(_) => {
            text += &format!("the last lines:\n    {}\n", shown.join("\n    "));
        }
        Ending::Guest(Verdict::Panicked | Verdict::DeadlineMissed) => {
            let frames: Vec<&str> =
                shown.into_iter().filter(|line| line.trim_start().starts_with('#')).collect();
            text += &format!("\nthe backtrace, by name:\n{}\n", frames.join("\n"));
        }
        Ending::Guest(_) | Ending::NoVerdict => {}
    }
    text
}

/// The exit code for how the boot ended.
fn exit_code(ending: &Ending, tests: Tests) -> u8 {
    match (ending, tests) {
        (Ending::Guest(Verdict::Panicked), _) => 3,
        (Ending::Guest(Verdict::DeadlineMissed), _) => 4,
        (Ending::Overrun(_), _) => 5,
        (Ending::Qemu(_), _) => 6,
        (Ending::Guest(Verdict::TestsFailed), _) => 1,
        // Whoever quits QEMU at the shell has seen the tests end.
        (Ending::Guest(Verdict::Passed) | Ending::NoVerdict, Tests::Passed | Tests::Off) => 0,
        (Ending::Guest(Verdict::Passed) | Ending::NoVerdict, Tests::Failed | Tests::NoneRan) => 1,
        // All well without the end of the tests is no verdict: they did not all run.
        (Ending::Guest(Verdict::Passed) | Ending::NoVerdict, Tests::Unfinished) => 6,
    }
}

impl Options {
    fn take(&mut self, name: &str, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        match name {
            "exit" => self.exit = true,
            "gdb" => self.gdb = true,
            "scenario" => self.scenario = Some(parser.value()?.string()?),
            "test" => self.tests = Some(parser.value()?.string()?),
            _ => return self.boot.take(name, parser),
        }
        Ok(true)
    }

    fn boot(&self, scenario: &'static Scenario) -> Result<Report> {
        let workspace = Workspace::locate()?;
        let folder = workspace.lock("run")?;
        let folder = &folder.path;
        let qemu = setup::require_build_and_boot(self.boot.qemu.as_deref(), self.boot.consent())?;
        let kernel = workspace.build_kernel(scenario.build)?;
        let disk = folder.join("disk.img");
        if !disk::is_there(&disk) {
            disk::create(&disk)?;
        }
        let logs = Logs::within(folder);
        if scenario.reserves {
            firmware::write(folder)?;
        }
        let files = Files {
            kernel: &kernel,
            disk: &disk,
            write_log: None,
            console_log: &logs.console,
            control: &logs.control,
        };
        let interactive = self.is_interactive();
        let network = Network::start(scenario)?;
        for (number, port) in network.ports.iter().enumerate() {
            eprintln!("the guest's web server, by its interface net{number}: http://127.0.0.1:{port}/");
        }
        let command = self.command(&qemu, scenario, files, interactive, &network);
        if self.gdb {
            eprintln!("waiting for a debugger: gdb {} -ex 'target remote :1234'", shown_path(&kernel));
        }
        // Whoever sits at a debugger has all the time, and so has who goes straight to the shell.
        let at_once = interactive && self.tests.as_deref() == Some("none");
        let limits = (!self.gdb && !at_once).then_some(Limits {
            silence: SILENCE,
            total: self.boot.time_limit.unwrap_or(TOTAL),
            interactive,
            cut: None,
            hands: None,
            typed: &[],
        });
        let mut report = boot::watch(command, &logs, limits)?;
        report.last_lines = symbols::resolve(&kernel, report.last_lines);
        Ok(report)
    }

    fn command(
        &self,
        qemu: &Qemu,
        scenario: &Scenario,
        files: Files,
        interactive: bool,
        network: &Network,
    ) -> Command {
        // Nobody comes by himself.
        let network_words = network.words(&Scenario { visitors: 0, ..scenario.clone() });
        let words = [&network_words, qemu.words(), &self.command_line(scenario, interactive)];
        let cmdline = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        let console = if interactive { Console::Terminal } else { Console::Output };
        let ports = &network.ports;
        let processor = self.boot.processor();
        let machine = Machine { scenario, processor, console, cmdline: &cmdline, ports, files };
        let mut command = qemu.command();
        command.args(machine.arguments());
        if self.gdb {
            command.args(["-gdb", "tcp::1234", "-S"]);
        }
        command.args(&self.qemu_arguments);
        if !interactive {
            command.stdin(Stdio::null());
        }
        command
    }

    fn find_scenario(&self) -> Result<&'static Scenario> {
        let name = self.scenario.as_deref().unwrap_or("default");
        let found = matrix::all().iter().find(|scenario| scenario.name == name);
        let scenario = found
            .with_context(|| format!("there is no scenario {name}; `cargo xtask test --list` shows them"))?;
        if scenario.needs_somebody() {
            bail!("{name} needs somebody at the machine, as `cargo xtask test --scenario {name}` has");
        }
        Ok(scenario)
    }

    /// Whether a shell follows the tests.
    fn is_interactive(&self) -> bool {
        std::io::stdin().is_terminal() && !self.exit
    }

    fn command_line(&self, scenario: &Scenario, interactive: bool) -> String {
        let tests = self.tests.as_deref().unwrap_or(scenario.tests);
        let exit = if interactive { "" } else { "exit" };
        let words = [exit, &format!("test={tests}"), scenario.cmdline, &self.boot.cmdline].map(String::from);
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// The path as short as it can be from where the user is.
fn shown_path(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Overrun;
    use crate::control::Record;

    #[test]
    fn exit_codes_pass_the_verdict_on() {
        let guest = |verdict, tests| exit_code(&Ending::Guest(verdict), tests);
        assert_eq!(guest(Verdict::Passed, Tests::Passed), 0);
        assert_eq!(guest(Verdict::TestsFailed, Tests::Failed), 1);
        assert_eq!(guest(Verdict::TestsFailed, Tests::Unfinished), 1);
        assert_eq!(guest(Verdict::Panicked, Tests::Unfinished), 3);
        assert_eq!(guest(Verdict::DeadlineMissed, Tests::Unfinished), 4);
        assert_eq!(exit_code(&Ending::Overrun(Overrun::Silent(SILENCE)), Tests::Passed), 5);
        assert_eq!(exit_code(&Ending::Qemu("exit status: 1".into()), Tests::Unfinished), 6);
    }

    #[test]
    fn a_good_verdict_counts_only_when_the_tests_came_to_their_end() {
        for good in [Ending::Guest(Verdict::Passed), Ending::NoVerdict] {
            assert_eq!(exit_code(&good, Tests::Passed), 0);
            assert_eq!(exit_code(&good, Tests::Failed), 1);
            assert_eq!(exit_code(&good, Tests::Unfinished), 6);
        }
    }

    #[test]
    fn that_no_test_ran_is_a_failure_unless_they_are_off() {
        let code = |words, done| exit_code(&Ending::Guest(Verdict::Passed), Tests::of(words, done));
        assert_eq!(code("exit test=typo::*", Some((0, 0))), 1);
        assert_eq!(code("exit test=*", Some((0, 0))), 1);
        assert_eq!(code("exit test=none test=typo::*", Some((0, 0))), 1);
        assert_eq!(code("exit test=none", Some((0, 0))), 0);
        // A kernel that is to run no test need not come to their end.
        assert_eq!(code("exit test=* test=none", None), 0);
        assert_eq!(code("exit test=*", Some((3, 0))), 0);
        assert_eq!(code("exit test=*", Some((3, 1))), 1);
        assert_eq!(code("exit test=*", None), 6);
    }

    #[test]
    fn scenarios_in_which_somebody_does_something_are_left_to_the_tests() {
        let find = |name: &str| {
            Options { scenario: Some(name.into()), ..Options::default() }
                .find_scenario()
                .map(|found| found.name)
        };
        for name in ["hotplug", "standstill", "displays", "shell", "power-cut"] {
            let problem = find(name).unwrap_err().to_string();
            assert!(problem.contains(&format!("`cargo xtask test --scenario {name}`")), "{problem}");
        }
        for name in ["checked", "network", "selftest-panic"] {
            assert_eq!(find(name).unwrap(), name);
        }
        assert!(find("nothing").is_err());
        assert_eq!(Options::default().find_scenario().unwrap().name, "default");
    }

    #[test]
    fn complaints_about_the_protocol_are_shown() {
        let remarks_on = |lines: &[u8], interactive| {
            let ending = Ending::Guest(Verdict::Passed);
            let record = Record::read(lines);
            remarks(&Report { ending, record, typed: vec![], last_lines: vec![] }, interactive)
        };
        let lines = b"begin a\nok a\nnonsense\ndone 1 0\n";
        assert_eq!(remarks_on(lines, false), "xtask run: control channel: not an event: \"nonsense\"\n");
        assert!(remarks_on(b"begin a\nnonsense\n", true).contains("nonsense"));
        // Somebody has run a test at the shell.
        assert_eq!(remarks_on(b"done 0 0\nbegin a\nok a\ndone 1 0\n", true), "");
    }

    #[test]
    fn the_guest_powers_off_unless_someone_is_there() {
        let mut options = Options { tests: Some("dma::*".into()), ..Options::default() };
        options.boot.cmdline = "log=debug".into();
        assert_eq!(options.command_line(&matrix::all()[0], true), "test=dma::* log=debug");
        assert_eq!(options.command_line(&matrix::all()[0], false), "exit test=dma::* log=debug");
    }
}
