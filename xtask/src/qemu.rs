//! The QEMU at hand: its version and what its devices can do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};

pub const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest QEMU that boots the kernel with everything the default machine has.
pub const OLDEST: Version = Version(7, 2);

/// Major and minor number; the micro number never decides anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// The version in the first line of `qemu-system-x86_64 --version`.
    pub fn parse(output: &str) -> Option<Version> {
        let (_, rest) = output.lines().next()?.split_once(" version ")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        Some(Version(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// A command before another one's words: it becomes that one (`exec`), with the same process id, and the system kills
/// it when its parent dies. It is part of util-linux, which Debian and Ubuntu always have.
const SETPRIV: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// Whether there is one that can do that.
static ENDS_WITH_US: LazyLock<bool> = LazyLock::new(|| {
    let mut command = Command::new(SETPRIV[0]);
    command.args(&SETPRIV[1..]).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
});

pub struct Qemu {
    pub program: PathBuf,
    pub version: Version,
}

impl Qemu {
    /// The QEMU under this name or path; `None` when there is none. Too old a one is an error.
    pub fn find(program: &Path) -> Result<Option<Qemu>> {
        let output = match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            output => output.with_context(|| format!("cannot start {}", program.display()))?,
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            bail!("`{} --version` does not say which version it is: {text:?}", program.display());
        };
        if version < OLDEST {
            bail!("{} is QEMU {version}; {OLDEST} or newer is needed", program.display());
        }
        Ok(Some(Qemu { program: program.to_path_buf(), version }))
    }

    /// Starts this QEMU. It is killed when the thread that started it ends, however that comes to pass: a guest that
    /// spins would otherwise outlive an xtask that was killed, which drops nothing. QEMU 10.0 itself has no option for
    /// that.
    pub fn command(&self) -> Command {
        if !*ENDS_WITH_US {
            return Command::new(&self.program);
        }
        let mut command = Command::new(SETPRIV[0]);
        command.args(&SETPRIV[1..]).arg(&self.program);
        command
    }

    /// What the kernel has to be told of its IOMMU: blocked interrupts are recorded from 10.0 on, and the guest cannot
    /// tell.
    pub fn words(&self) -> &'static str {
        if self.version < Version(10, 0) { "lacks=interrupt-faults" } else { "" }
    }

    /// Whether `device` exists and, unless `property` is empty, has this property.
    pub fn offers(&self, device: &str, property: &str) -> Result<bool> {
        let mut command = Command::new(&self.program);
        command.args(["-device", &format!("{device},help")]).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot start {}", self.program.display()))?;
        let listing = String::from_utf8_lossy(&output.stdout);
        Ok(output.status.success() && (property.is_empty() || lists_property(&listing, property)))
    }
}

/// Whether the output of `-device NAME,help` has `property` (lines of the form `  aw-bits=<uint8>  - ...`).
fn lists_property(listing: &str, property: &str) -> bool {
    listing.lines().filter_map(|line| line.trim_start().split_once('=')).any(|(name, _)| name == property)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::thread;

    use super::*;

    #[test]
    fn a_qemu_ends_with_who_started_it() {
        let start = || {
            let qemu = Qemu { program: "sh".into(), version: OLDEST };
            let mut command = qemu.command();
            command.args(["-c", "echo up; exec sleep 60"]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "up\n");
            child
        };
        let mut orphan = thread::spawn(start).join().unwrap();
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn versions_of_distributions_and_of_own_builds() {
        for (line, version) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", Version(7, 2)),
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c)",
                Version(10, 0),
            ),
            ("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.10)", Version(8, 2)),
            ("QEMU emulator version 11.0.50 (v11.0.0-12-gabcdef)", Version(11, 0)),
        ] {
            assert_eq!(Version::parse(line), Some(version));
        }
        for line in ["", "QEMU emulator", "QEMU emulator version x.y", "version 7"] {
            assert_eq!(Version::parse(line), None, "{line}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version(10, 0) > Version(7, 2) && Version(7, 10) > Version(7, 2));
    }

    #[test]
    fn properties_are_found_by_their_whole_name() {
        let listing =
            "intel-iommu options:\n  aw-bits=<uint8>        -  (default: 48)\n  x-flts=<bool>  - on/off\n";
        assert!(lists_property(listing, "aw-bits") && lists_property(listing, "x-flts"));
        assert!(!lists_property(listing, "bits") && !lists_property(listing, "flts"));
    }

    #[test]
    fn a_missing_program_is_none_and_a_strange_one_an_error() {
        assert!(Qemu::find(Path::new("/nonexistent/qemu")).unwrap().is_none());
        assert!(Qemu::find(Path::new("true")).is_err());
    }
}
