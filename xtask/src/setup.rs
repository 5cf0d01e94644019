//! What has to be on the machine: it is checked for, and installed with consent.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::qemu::{self, Qemu};
use crate::workspace::{KERNEL_TARGET, shown, succeed};

/// Whether installing may go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// `--yes`, or a continuous-integration run.
    Given,
    /// Someone is there to be asked.
    Ask,
    Nobody,
}

impl Consent {
    pub fn find(yes: bool) -> Consent {
        if yes || std::env::var_os("CI").is_some_and(|ci| ci == "true") {
            Consent::Given
        } else if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            Consent::Ask
        } else {
            Consent::Nobody
        }
    }
}

/// What xtask may do to the system package manager with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Root,
    Sudo,
    None,
}

impl Rights {
    fn find() -> Rights {
        if rustix::process::geteuid().is_root() {
            Rights::Root
        } else if starts("sudo") {
            Rights::Sudo
        } else {
            Rights::None
        }
    }
}

/// Makes sure that the toolchain in use can build for the kernel's target.
pub fn require_kernel_target(consent: Consent) -> Result<()> {
    let mut query = Command::new("rustc");
    query.args(["--print", "target-libdir", "--target", KERNEL_TARGET]);
    let output = query.output().context("cannot start rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", KERNEL_TARGET]);
    install(&format!("the Rust target {KERNEL_TARGET}"), vec![add], consent)
}

/// Makes sure that a toolchain of this name with these components is there (for Miri).
pub fn require_toolchain(name: &str, components: &[&str], consent: Consent) -> Result<()> {
    let mut query = Command::new("rustup");
    query.args(["component", "list", "--installed", "--toolchain", name]).stderr(Stdio::null());
    let output = query.output().context("cannot start rustup")?;
    let installed = String::from_utf8_lossy(&output.stdout);
    let has = |component: &&str| installed.lines().any(|line| line.starts_with(component));
    if output.status.success() && components.iter().all(has) {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["toolchain", "install", name, "--profile", "minimal"]);
    add.args(components.iter().flat_map(|component| ["--component", component]));
    install(&format!("the {name} toolchain with {}", components.join(" and ")), vec![add], consent)
}

/// Finds QEMU, or installs it when it is not there under its usual name.
pub fn require_qemu(program: Option<&Path>, consent: Consent) -> Result<Qemu> {
    if let Some(program) = program {
        return Qemu::find(program)?.with_context(|| format!("there is no {}", program.display()));
    }
    let usual = Path::new(qemu::PROGRAM);
    if let Some(found) = Qemu::find(usual)? {
        return Ok(found);
    }
    if !starts("apt-get") {
        bail!("{} is missing: install QEMU {} or newer", qemu::PROGRAM, qemu::OLDEST);
    }
    let commands = apt_commands(Rights::find(), consent == Consent::Given)?;
    install(&format!("QEMU ({})", qemu::PROGRAM), commands, consent)?;
    Qemu::find(usual)?.with_context(|| format!("installed, but {} is still not found", qemu::PROGRAM))
}

fn apt_commands(rights: Rights, unattended: bool) -> Result<Vec<Command>> {
    const INSTALL: [&str; 5] = ["install", "--yes", "--no-install-recommends", "qemu-system-x86", "seabios"];
    let apt = |arguments: &[&str]| {
        let mut words = Vec::new();
        if rights == Rights::Sudo {
            words.push("sudo");
            // Nobody is there to type a password: fail instead of waiting for one.
            words.extend(unattended.then_some("--non-interactive"));
        }
        words.push("apt-get");
        words.extend(arguments);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    };
    match rights {
        Rights::Root | Rights::Sudo => Ok(vec![apt(&["update"]), apt(&INSTALL)]),
        Rights::None => bail!(
            "{} is missing and there is no sudo. Run as root: apt-get {}",
            qemu::PROGRAM,
            INSTALL.join(" ")
        ),
    }
}

/// Runs `commands`, which install `what`: at once, after asking, or not at all.
fn install(what: &str, commands: Vec<Command>, consent: Consent) -> Result<()> {
    let lines: Vec<String> = commands.iter().map(shown).collect();
    let lines = lines.join(" && ");
    match consent {
        Consent::Given => eprintln!("{what} is missing; installing it: {lines}"),
        Consent::Ask => {
            eprint!("{what} is missing. This installs it:\n\n    {lines}\n\nRun it now? [y/N] ");
            std::io::stderr().flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                bail!("{what} is missing. Install it with: {lines}");
            }
        }
        Consent::Nobody => bail!("{what} is missing. Install it with: {lines}   (or repeat with --yes)"),
    }
    let last = commands.len().saturating_sub(1);
    for (number, mut command) in commands.into_iter().enumerate() {
        if consent == Consent::Given {
            command.stdin(Stdio::null()).env("DEBIAN_FRONTEND", "noninteractive");
        }
        match succeed(&mut command) {
            // A package index that could not be refreshed may still be good enough.
            Err(problem) if number < last => eprintln!("{problem}; going on"),
            outcome => outcome.with_context(|| format!("cannot install {what}"))?,
        }
    }
    Ok(())
}

/// Whether there is a program of this name that starts.
fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rights: Rights, unattended: bool) -> Vec<String> {
        apt_commands(rights, unattended).unwrap().iter().map(shown).collect()
    }

    #[test]
    fn apt_is_called_as_root_or_with_sudo() {
        let install = "apt-get install --yes --no-install-recommends qemu-system-x86 seabios";
        assert_eq!(lines(Rights::Root, true), ["apt-get update", install]);
        assert_eq!(
            lines(Rights::Sudo, false),
            ["sudo apt-get update".to_string(), format!("sudo {install}")]
        );
        assert_eq!(lines(Rights::Sudo, true)[1], format!("sudo --non-interactive {install}"));
        let message = apt_commands(Rights::None, true).unwrap_err().to_string();
        assert!(message.contains(install) && message.contains("as root"), "{message}");
    }

    #[test]
    fn without_consent_nothing_runs_and_the_message_says_what_to_run() {
        let mut forbidden = Command::new("touch");
        forbidden.arg("/nonexistent/never");
        let message = install("a tool", vec![forbidden], Consent::Nobody).unwrap_err().to_string();
        assert!(
            message.contains("a tool is missing") && message.contains("touch /nonexistent/never"),
            "{message}"
        );
    }

    #[test]
    fn with_consent_the_last_command_decides() {
        let commands = |first: &str, last: &str| vec![Command::new(first), Command::new(last)];
        assert!(install("a tool", commands("false", "true"), Consent::Given).is_ok());
        assert!(install("a tool", commands("true", "false"), Consent::Given).is_err());
    }
}
