//! Runs a scenario's boots: files, command line, comparison of the disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::boot::{self, Cut, Ending, Limits, Logs, Report};
use crate::control::{Record, Verdict};
use crate::disk::{self, Claim};
use crate::firmware;
use crate::machine::{Console, Files, Machine, Processor};
use crate::network::{self, Fetched, Network};
use crate::power_cut;
use crate::qemu::Qemu;
use crate::scenario::{Expect, Scenario};
use crate::session::{self, BrokenOff, Outcome};
use crate::symbols;
use crate::workspace::{Build, shown};

/// What all scenarios of a run have in common.
pub struct Stage<'a> {
    pub qemu: &'a Qemu,
    /// By how they were built: those that the scenarios ask for.
    pub kernels: &'a BTreeMap<Build, PathBuf>,
    pub processor: Processor,
    /// Each scenario gets a folder here, and each of its boots one in that.
    pub folder: &'a Path,
    /// In-kernel tests to run instead of each scenario's own choice.
    pub tests: Option<&'a str>,
    /// Words for the kernel's command line besides the scenario's own.
    pub cmdline: &'a str,
    pub total: Duration,
}

impl Stage<'_> {
    /// Which in-kernel tests run.
    pub fn tests<'s>(&'s self, scenario: &'s Scenario) -> &'s str {
        self.tests.unwrap_or(scenario.tests)
    }

    /// Boots the kernel on the scenario's machine until all its tests have run.
    pub fn play(&self, scenario: &Scenario) -> Result<Outcome> {
        let folder = self.folder.join(scenario.name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        if let Expect::PowerCut { .. } = scenario.expect {
            return power_cut::play(self, scenario, &folder);
        }
        if scenario.expect == Expect::Session {
            return self.hold_session(scenario, &folder.join("boot-1"));
        }
        let mut boots = 0;
        session::play(|after| {
            boots += 1;
            self.boot(scenario, after, &folder.join(format!("boot-{boots}")))
        })
    }

    /// One boot, in which somebody types.
    fn hold_session(&self, scenario: &Scenario, folder: &Path) -> Result<Outcome> {
        let (report, visits) = self.run(scenario, None, folder, None)?;
        let mut outcome = Outcome { checks: report.typed, boots: 1, ..Outcome::default() };
        outcome.checks.extend(visits);
        let is_off = report.ending == Ending::Guest(boot::Verdict::Passed);
        let verdict = if is_off { Ok(()) } else { Err(report.ending.to_string()) };
        outcome.checks.push(("the guest powers off".to_string(), verdict));
        outcome.complain_of(&report.record.complaints);
        if outcome.checks.iter().all(|(_, verdict)| verdict.is_ok()) {
            fs::remove_file(disk_within(folder))?;
        } else {
            let (ending, last_lines) = (report.ending, report.last_lines);
            outcome.broken_off.push(BrokenOff { boot: 1, ending, last_lines });
        }
        Ok(outcome)
    }

    /// One boot with a disk of its own; the disk goes when what it had to show has been seen.
    pub fn boot(
        &self,
        scenario: &Scenario,
        after: Option<&str>,
        folder: &Path,
    ) -> Result<(Report, Vec<(String, Verdict)>)> {
        let (report, mut checks) = self.run(scenario, after, folder, None)?;
        let disk = disk_within(folder);
        checks.extend(compare_values(&report.record, scenario, &disk));
        if checks.iter().all(|(_, verdict)| verdict.is_ok()) {
            fs::remove_file(&disk)?;
        }
        Ok((report, checks))
    }

    /// Runs QEMU with a fresh disk, which stays, and says what its visitors have seen. Of a boot whose power is cut
    /// there is a log of what reached the disk. If one of its ports went to somebody else, others are drawn, once.
    pub fn run(
        &self,
        scenario: &Scenario,
        after: Option<&str>,
        folder: &Path,
        cut: Option<Cut>,
    ) -> Result<(Report, Vec<(String, Verdict)>)> {
        let first = self.run_once(scenario, after, folder, cut)?;
        if network::lost_a_port(&first.0) {
            return self.run_once(scenario, after, folder, cut);
        }
        Ok(first)
    }

    fn run_once(
        &self,
        scenario: &Scenario,
        after: Option<&str>,
        folder: &Path,
        cut: Option<Cut>,
    ) -> Result<(Report, Vec<(String, Verdict)>)> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (disk, logs) = (disk_within(folder), Logs::within(folder));
        disk::create(&disk)?;
        let write_log = write_log_within(folder);
        if cut.is_some() {
            File::create(&write_log).with_context(|| format!("cannot create {}", write_log.display()))?;
        }
        if scenario.reserves {
            firmware::write(folder).with_context(|| format!("cannot write to {}", folder.display()))?;
        }
        let network = Network::start(scenario)?;
        let cmdline = self.command_line(scenario, after, &network.words(scenario));
        let kernel = self.kernels.get(&scenario.build).context("the kernel was not built for this")?;
        let files = Files {
            kernel,
            disk: &disk,
            write_log: cut.is_some().then_some(&*write_log),
            console_log: &logs.console,
            control: &logs.control,
        };
        let machine = Machine {
            scenario,
            processor: self.processor,
            console: if scenario.typed.is_empty() { Console::Silent } else { Console::Typed },
            cmdline: &cmdline,
            ports: &network.ports,
            files,
        };
        let mut command = self.command(machine.arguments(), folder)?;
        if scenario.has_hands() {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else if !scenario.typed.is_empty() {
            command.stdin(Stdio::piped());
        }
        let silence = Duration::from_secs(scenario.silence_s);
        let limits = Limits {
            silence,
            total: self.total,
            interactive: false,
            cut,
            hands: scenario.has_hands().then_some(scenario.devices),
            typed: scenario.typed,
        };
        let watched =
            network.entertain(scenario, &logs.control, || boot::watch(command, &logs, Some(limits)));
        let (mut report, checks) = (watched.0?, watched.1);
        report.last_lines = symbols::resolve(kernel, report.last_lines);
        Ok((report, checks))
    }

    /// The user's own words come last, and win.
    fn command_line(&self, scenario: &Scenario, after: Option<&str>, network: &str) -> String {
        let mut words = vec![format!("test={}", self.tests(scenario))];
        if scenario.typed.is_empty() {
            words.insert(0, "exit".to_string());
        }
        words.extend(after.map(|name| format!("test-after={name}")));
        // A disk without a medium is one whose speed may be measured.
        words.extend(scenario.hollow.then(|| "disk=hollow".to_string()));
        words.extend([network, scenario.cmdline, self.qemu.words(), self.cmdline].map(String::from));
        words.retain(|word| !word.is_empty());
        words.join(" ")
    }

    /// QEMU with nothing to read; the whole command line is written beside its logs, to repeat it by hand.
    fn command(&self, arguments: Vec<OsString>, folder: &Path) -> Result<Command> {
        let mut command = self.qemu.command();
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        fs::write(folder.join("command"), shown(&command) + "\n")?;
        Ok(command)
    }
}

/// The disk image of a boot that has its files in `folder`.
pub fn disk_within(folder: &Path) -> PathBuf {
    folder.join("disk.img")
}

/// The log of its writes.
pub fn write_log_within(folder: &Path) -> PathBuf {
    folder.join("writes.log")
}

/// Whether the CPUs that run in the guest are all that it was given.
fn compare_cpus(running: &[String], scenario: &Scenario) -> Result<()> {
    let given: Vec<String> = scenario.apic_ids().iter().map(u32::to_string).collect();
    if running != given {
        bail!("the machine has the CPUs {}", given.join(" "));
    }
    Ok(())
}

/// Compares every value that the guest reported with the host's side of it.
fn compare_values(record: &Record, scenario: &Scenario, image: &Path) -> Vec<(String, Verdict)> {
    let compare = |key: &str, words: &[String]| -> Result<(String, Result<()>)> {
        if key == "fetched" {
            let fetched = Fetched::parse(words)?;
            return Ok((fetched.to_string(), fetched.verify()));
        }
        if key == "apic-ids" {
            return Ok((format!("APIC ids {}", words.join(" ")), compare_cpus(words, scenario)));
        }
        let claim = Claim::parse(key, words)?;
        Ok((claim.to_string(), claim.verify(image)))
    };
    let check = |(key, words): &(String, Vec<String>)| match compare(key, words) {
        Ok((name, result)) => (name, result.map_err(|problem| format!("{problem:#}"))),
        Err(problem) => (format!("value {key}"), Err(format!("{problem:#}"))),
    };
    // That a guest serves pages is said to its visitors.
    record.values.iter().filter(|(key, _)| key != network::SERVING).map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::judge;
    use crate::qemu::Version;
    use crate::scenario::Expect;
    use crate::workspace::Workspace;

    /// Plays a scenario with a shell script in QEMU's place. The script finds the kernel's words in `$words`, and
    /// the paths that the command line names in `$control`, `$console` and `$disk`.
    fn play_script(name: &str, script: &str, scenario: &Scenario) -> Outcome {
        use std::os::unix::fs::PermissionsExt;
        let folder = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join(name);
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("qemu");
        let text = format!(
            "#!/bin/sh\nfor word; do case $word in\n\
             file,id=control,*) control=${{word#*path=}};;\n\
             file,id=console,*) console=${{word#*path=}};;\n\
             driver=file,node-name=image,*) disk=${{word#*filename=}};;\n\
             exit*) words=$word;;\nesac; done\n{script}\n"
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let qemu = Qemu { program, version: Version(7, 2) };
        let stage = Stage {
            qemu: &qemu,
            kernels: &BTreeMap::from([(Build::Shipped, "kernel".into())]),
            processor: Processor::Emulated,
            folder: &folder,
            tests: None,
            cmdline: "log=warn",
            total: Duration::from_secs(60),
        };
        let outcome = stage.play(&Scenario { name: "played", ..scenario.clone() }).unwrap();
        fs::remove_dir_all(folder).unwrap();
        outcome
    }

    #[test]
    fn a_guest_that_reads_and_writes_its_disk_is_compared_with_the_image() {
        let script = "read_digest=$(dd if=$disk bs=512 skip=64 count=8 status=none | sha256sum | cut -d' ' -f1)\n\
             yes written | head -c 1024 | dd of=$disk bs=512 seek=99 conv=notrunc status=none\n\
             write_digest=$(yes written | head -c 1024 | sha256sum | cut -d' ' -f1)\n\
             printf 'begin disk::both\\nvalue disk-read 64 8 %s\\nvalue disk-written 99 2 %s\\n' \
                 $read_digest $write_digest > $control\n\
             printf 'value disk-written 100 2 %s\\nok disk::both\\ndone 1 0\\n' $write_digest >> $control\n\
             exit 33";
        let outcome = play_script("stage-disk", script, &Scenario::DEFAULT);
        let verdicts: Vec<(&str, bool)> =
            outcome.checks.iter().map(|(name, verdict)| (name.as_str(), verdict.is_ok())).collect();
        assert_eq!(
            verdicts,
            [("disk-read 64 8", true), ("disk-written 99 2", true), ("disk-written 100 2", false)]
        );
    }

    #[test]
    fn a_guest_that_crashes_is_booted_again_with_the_next_test() {
        let script = "case $words in\n\
             'exit test=* net-port='*' selftest=panic lacks=interrupt-faults log=warn') printf 'begin a\\nok a\\nbegin b\\n' > $control; exit 37;;\n\
             'exit test=* test-after=b net-port='*' selftest=panic lacks=interrupt-faults log=warn') printf 'begin c\\nok c\\ndone 1 0\\n' > $control; exit 33;;\n\
             esac; exit 1";
        let scenario =
            Scenario { cmdline: "selftest=panic", expect: Expect::TheseFail(&["b"]), ..Scenario::DEFAULT };
        let outcome = play_script("stage-crash", script, &scenario);
        assert_eq!(outcome.boots, 2);
        let score = judge(&scenario, "*", &outcome, None);
        assert_eq!((score.passed, score.failures), (4, vec![]));
    }

    #[test]
    fn a_guest_that_hangs_is_charged_with_the_test_it_began() {
        let script = "case $words in\n\
             *test-after=b*) echo 'done 0 0' > $control; exit 33;;\n\
             esac; printf 'begin a\\nok a\\nbegin b\\n' > $control; echo 'in b' > $console; exec sleep 100";
        let scenario = Scenario { silence_s: 1, ..Scenario::DEFAULT };
        let outcome = play_script("stage-hang", script, &scenario);
        assert_eq!(outcome.tests[1], ("b".to_string(), Err("hung: silent for 1 s".to_string())));
        assert_eq!(outcome.broken_off[0].last_lines, ["in b"]);
    }

    #[test]
    fn a_boot_whose_port_is_taken_is_repeated_once() {
        let refuse = "echo \"-netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:4080-:80'\" >&2\n\
             echo x >> ${disk%/*}/refused; exit 1";
        let pass = "printf 'begin a\\nok a\\ndone 1 0\\n' > $control; exit 33";
        let once = format!("if ! test -e ${{disk%/*}}/refused; then {refuse}; fi; {pass}");
        let outcome = play_script("stage-port-taken", &once, &Scenario::DEFAULT);
        assert_eq!((outcome.tests, outcome.boots), (vec![("a".to_string(), Ok(()))], 1));
        // Twice is no accident any more.
        let twice = format!("test \"$(cat ${{disk%/*}}/refused)\" = \"x\nx\" || {{ {refuse}; }}; {pass}");
        let outcome = play_script("stage-ports-taken", &twice, &Scenario::DEFAULT);
        assert!(matches!(outcome.broken_off[0].ending, Ending::Qemu(_)));
    }

    #[test]
    fn complaints_about_the_protocol_are_failures_whatever_is_expected() {
        let script = "printf 'nonsense\\n' > $control; exit 33";
        for (name, expect) in [
            ("stage-tests", Scenario::DEFAULT.expect),
            ("stage-session", Expect::Session),
            ("stage-refusal", Expect::Refusal("no unit")),
            ("stage-kept", Expect::PowerCut { keeps: true }),
            ("stage-lost", Expect::PowerCut { keeps: false }),
        ] {
            let scenario = Scenario { expect, ..Scenario::DEFAULT };
            let outcome = play_script(name, script, &scenario);
            let score = judge(&scenario, "*", &outcome, None);
            let told = score.failures.iter().any(|(_, reason)| reason.contains("not an event: "));
            assert!(told, "{name}: {:?}", score.failures);
        }
    }

    #[test]
    fn a_qemu_that_does_not_start_the_machine_fails_the_scenario() {
        let outcome = play_script("stage-refused", "echo 'no such device' >&2; exit 1", &Scenario::DEFAULT);
        let score = judge(&Scenario::DEFAULT, "*", &outcome, None);
        assert_eq!(score.passed, 0);
        assert!(score.failures.iter().any(|(name, _)| name == "boot"), "{:?}", score.failures);
    }
}
