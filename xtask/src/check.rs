//! `cargo xtask check`: formatting, lints and documentation, and on request Miri and the mutations.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use lexopt::{Parser, ValueExt};

use crate::mutants;
use crate::options::{self, Read};
use crate::setup::{self, Consent};
use crate::workspace::{Workspace, shown, succeed};

const USAGE: &str = "Usage: cargo xtask check [OPTIONS]

Checks formatting, lints (clippy, warnings denied) for the host and for the kernel's target, and the documentation of the
libraries.

  --miri              the unit tests of mm and iommu under Miri instead (needs the nightly toolchain)
  --mutants[=GLOB]    each patch of testing/mutations instead, or some: a test must fail with it
  --yes               install what is missing without asking (CI=true does too)
";

pub fn main(mut parser: Parser) -> Result<ExitCode> {
    let (mut yes, mut miri, mut mutants) = (false, false, None);
    let rest = options::read(&mut parser, |name, parser| {
        match name {
            "yes" => yes = true,
            "miri" => miri = true,
            "mutants" => {
                mutants = Some(parser.optional_value().map_or(Ok("*".to_string()), ValueExt::string)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match rest {
        Read::Help => {
            print!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Read::Rest(rest) if !rest.is_empty() => bail!("`check` takes no arguments after --"),
        Read::Rest(_) => {}
    }
    let workspace = Workspace::locate()?;
    let consent = Consent::find(yes);
    let mut good = true;
    if miri {
        good &= run_miri(&workspace, consent)?;
    }
    if let Some(pattern) = &mutants {
        good &= mutants::run(&workspace, pattern)?;
    }
    if !miri && mutants.is_none() {
        setup::require_kernel_target(consent)?;
        good = run_all(&mut lints(&workspace));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lints(workspace: &Workspace) -> Vec<Command> {
    let mut format = workspace.cargo("fmt");
    format.args(["--all", "--check"]);
    let mut host = workspace.cargo("clippy");
    host.args(["--all-targets", "--", "--deny", "warnings"]);
    let mut interleavings = workspace.cargo("clippy");
    interleavings.args(["--package", "interleavings", "--tests", "--", "--deny", "warnings"]);
    // For kernels that bring their own frame allocator.
    let mut engine = workspace.cargo("clippy");
    engine.args(["--package", "mm", "--no-default-features", "--", "--deny", "warnings"]);
    // The kernel is no default member: it builds for the bare target only, with the libraries under it.
    let mut kernel = workspace.cargo_on_kernel("clippy");
    kernel.args(["--", "--deny", "warnings"]);
    let mut programs = workspace.cargo_on_programs("clippy");
    programs.args(["--", "--deny", "warnings"]);
    // What other kernels take, and what they write drivers after: no link of its documentation leads nowhere.
    let mut documentation = workspace.cargo("doc");
    documentation.args(["--no-deps", "--package", "mm", "--package", "iommu", "--package", "drivers"]);
    documentation.env("RUSTDOCFLAGS", "--deny warnings");
    vec![format, host, interleavings, engine, kernel, programs, documentation]
}

fn run_miri(workspace: &Workspace, consent: Consent) -> Result<bool> {
    setup::require_toolchain("nightly", &["miri", "rust-src"], consent)?;
    Ok(run_all(&mut miri(workspace)))
}

/// Strict provenance, but for the IOVA allocator: the tree that it is built on (intrusive-collections) keeps a colour
/// in the low bit of a pointer, and makes the pointer out of a number again.
fn miri(workspace: &Workspace) -> Vec<Command> {
    const STRICT: &str = "-Zmiri-strict-provenance";
    const PERMISSIVE: &str = "-Zmiri-permissive-provenance";
    let command = |flags: &str, arguments: &[&str]| {
        // Through rustup: `cargo xtask` runs under the stable toolchain's own cargo, which knows no `+nightly`.
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "miri", "test", "--package"]).args(arguments);
        command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", workspace.target.join("miri"));
        let flags = std::env::var_os("MIRIFLAGS").unwrap_or_else(|| flags.into());
        command.env("MIRIFLAGS", flags);
        command
    };
    vec![
        command(STRICT, &["mm"]),
        command(STRICT, &["iommu", "--lib", "--", "--skip", "iova::"]),
        command(PERMISSIVE, &["iommu", "--lib", "iova::"]),
    ]
}

/// Runs all commands, also after one has failed, and says of each how it went.
fn run_all(commands: &mut [Command]) -> bool {
    let mut good = true;
    for command in commands {
        println!("{}", shown(command));
        match succeed(command) {
            Ok(()) => println!("    ok"),
            Err(problem) => {
                println!("    FAILED: {problem:#}");
                good = false;
            }
        }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_command_fails_all_and_stops_none() {
        let marker = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join("check-went-on");
        let mut touch = Command::new("touch");
        touch.arg(&marker);
        assert!(!run_all(&mut [Command::new("false"), touch]));
        assert!(marker.exists());
        std::fs::remove_file(marker).unwrap();
        assert!(run_all(&mut [Command::new("true")]));
    }

    #[test]
    fn miri_tries_every_unit_test_once() {
        let workspace = Workspace::locate().unwrap();
        let commands = miri(&workspace);
        let lines: Vec<String> = commands.iter().map(shown).collect();
        assert!(lines[0].ends_with("--package mm"), "{lines:?}");
        assert!(lines[1].ends_with("iommu --lib -- --skip iova::"), "{lines:?}");
        assert!(lines[2].ends_with("iommu --lib iova::"), "{lines:?}");
    }

    #[test]
    fn warnings_are_denied_for_the_host_and_for_the_kernel() {
        let lines: Vec<String> = lints(&Workspace::locate().unwrap()).iter().map(shown).collect();
        let clippy: Vec<&String> = lines.iter().filter(|line| line.contains("clippy")).collect();
        assert!(
            clippy.len() == 5 && clippy.iter().all(|line| line.ends_with("--deny warnings")),
            "{lines:?}"
        );
        assert!(clippy[1].contains("--package interleavings"));
        assert!(clippy[2].contains("--package mm --no-default-features"));
        assert!(clippy[3].contains("--package kernel --target x86_64-unknown-none"));
        assert!(clippy[4].contains("--package attacker "), "{lines:?}");
        assert!(clippy[4].contains(" --target x86_64-unknown-none"), "{lines:?}");
    }

    #[test]
    fn warnings_are_denied_for_the_documentation_of_the_libraries() {
        let commands = lints(&Workspace::locate().unwrap());
        let documentation = commands.iter().find(|command| command.get_args().next() == Some("doc".as_ref()));
        let documentation = documentation.expect("nothing checks the documentation");
        assert!(shown(documentation).ends_with("--no-deps --package mm --package iommu --package drivers"));
        let flags = documentation.get_envs().find(|(name, _)| *name == "RUSTDOCFLAGS");
        assert_eq!(flags, Some(("RUSTDOCFLAGS".as_ref(), Some("--deny warnings".as_ref()))));
    }
}
