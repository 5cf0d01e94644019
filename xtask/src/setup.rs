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

/// Something that is not there, and how to get it.
struct Missing {
    what: String,
    commands: Vec<Command>,
    /// Whether the commands can be run from here at all.
    rights: bool,
}

/// Makes sure that the kernel can be built and booted: the Rust target, and QEMU under its usual name unless
/// `program` names another.
pub fn require_build_and_boot(program: Option<&Path>, consent: Consent) -> Result<Qemu> {
    let mut missing: Vec<Missing> = kernel_target_missing()?.into_iter().collect();
    let path = program.unwrap_or(Path::new(qemu::PROGRAM));
    let found = Qemu::find(path)?;
    match (&found, program) {
        (Some(_), _) => {}
        (None, Some(program)) => bail!("there is no {}", program.display()),
        (None, None) => missing.push(qemu_missing(Rights::find(), starts("apt-get"), consent)?),
    }
    install(missing, consent)?;
    match found {
        Some(found) => Ok(found),
        None => {
            Qemu::find(path)?.with_context(|| format!("installed, but {} is still not found", qemu::PROGRAM))
        }
    }
}

/// Makes sure that the toolchain in use can build for the kernel's target.
pub fn require_kernel_target(consent: Consent) -> Result<()> {
    install(kernel_target_missing()?.into_iter().collect(), consent)
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
    let what = format!("the {name} toolchain with {}", components.join(" and "));
    install(vec![Missing { what, commands: vec![add], rights: true }], consent)
}

fn kernel_target_missing() -> Result<Option<Missing>> {
    let mut query = Command::new("rustc");
    query.args(["--print", "target-libdir", "--target", KERNEL_TARGET]);
    let output = query.output().context("cannot start rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(None);
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", KERNEL_TARGET]);
    Ok(Some(Missing { what: format!("the Rust target {KERNEL_TARGET}"), commands: vec![add], rights: true }))
}

fn qemu_missing(rights: Rights, apt: bool, consent: Consent) -> Result<Missing> {
    if !apt {
        bail!("{} is missing: install QEMU {} or newer", qemu::PROGRAM, qemu::OLDEST);
    }
    let apt_get = |arguments: &[&str]| {
        let mut words = Vec::new();
        if rights == Rights::Sudo {
            words.push("sudo");
            // Nobody is there to type a password: fail instead of waiting for one.
            words.extend((consent == Consent::Given).then_some("--non-interactive"));
        }
        words.push("apt-get");
        words.extend(arguments);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    };
    let install = ["install", "--yes", "--no-install-recommends", "qemu-system-x86", "seabios"];
    Ok(Missing {
        what: format!("QEMU ({})", qemu::PROGRAM),
        commands: vec![apt_get(&["update"]), apt_get(&install)],
        rights: rights != Rights::None,
    })
}

/// Installs what is missing: at once, after asking, or not at all.
fn install(missing: Vec<Missing>, consent: Consent) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let message = describe(&missing);
    if missing.iter().any(|missing| !missing.rights) {
        bail!("{message}\n(apt-get needs root, and there is no sudo)");
    }
    match consent {
        Consent::Given => eprintln!("{message}"),
        Consent::Ask => {
            eprint!("{message}\nRun this now? [y/N] ");
            std::io::stderr().flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                bail!("nothing was installed");
            }
        }
        Consent::Nobody => bail!("{message}\n(or repeat with --yes)"),
    }
    missing.into_iter().try_for_each(|missing| run_all(missing, consent))
}

fn describe(missing: &[Missing]) -> String {
    let names: Vec<&str> = missing.iter().map(|missing| missing.what.as_str()).collect();
    let mut text = format!("missing: {}. To install:\n", names.join(" and "));
    for command in missing.iter().flat_map(|missing| &missing.commands) {
        text += &format!("\n    {}", shown(command));
    }
    text + "\n"
}

fn run_all(missing: Missing, consent: Consent) -> Result<()> {
    let last = missing.commands.len().saturating_sub(1);
    for (number, mut command) in missing.commands.into_iter().enumerate() {
        if consent == Consent::Given {
            command.stdin(Stdio::null()).env("DEBIAN_FRONTEND", "noninteractive");
        }
        match succeed(&mut command) {
            // A package index that could not be refreshed may still be good enough.
            Err(problem) if number < last => eprintln!("{problem}; going on"),
            outcome => outcome.with_context(|| format!("cannot install {}", missing.what))?,
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

    fn lines(rights: Rights, consent: Consent) -> Vec<String> {
        qemu_missing(rights, true, consent).unwrap().commands.iter().map(shown).collect()
    }

    fn a_tool(commands: &[&[&str]]) -> Missing {
        let command = |words: &&[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        Missing { what: "a tool".into(), commands: commands.iter().map(command).collect(), rights: true }
    }

    #[test]
    fn apt_is_called_as_root_or_with_sudo() {
        let install = "apt-get install --yes --no-install-recommends qemu-system-x86 seabios";
        assert_eq!(lines(Rights::Root, Consent::Given), ["apt-get update", install]);
        assert_eq!(lines(Rights::Sudo, Consent::Ask)[1], format!("sudo {install}"));
        assert_eq!(lines(Rights::Sudo, Consent::Given)[1], format!("sudo --non-interactive {install}"));
    }

    #[test]
    fn where_packages_cannot_be_installed_the_message_says_what_to_do() {
        let missing = qemu_missing(Rights::None, true, Consent::Given).unwrap();
        let message = install(vec![missing], Consent::Given).unwrap_err().to_string();
        assert!(message.contains("apt-get install") && message.contains("needs root"), "{message}");
        let message = qemu_missing(Rights::Root, false, Consent::Given).err().unwrap().to_string();
        assert!(message.contains("install QEMU 7.2 or newer"), "{message}");
    }

    #[test]
    fn without_consent_nothing_runs_and_one_message_has_all_commands() {
        let missing = vec![a_tool(&[&["touch", "/nonexistent/1"]]), a_tool(&[&["touch", "/nonexistent/2"]])];
        let message = install(missing, Consent::Nobody).unwrap_err().to_string();
        assert!(message.contains("    touch /nonexistent/1\n    touch /nonexistent/2\n"), "{message}");
    }

    #[test]
    fn with_consent_the_last_command_decides() {
        assert!(install(vec![a_tool(&[&["false"], &["true"]])], Consent::Given).is_ok());
        let message =
            install(vec![a_tool(&[&["true"], &["false"]])], Consent::Given).unwrap_err().to_string();
        assert!(message.contains("a tool"), "{message}");
        assert!(install(Vec::new(), Consent::Nobody).is_ok());
    }
}
