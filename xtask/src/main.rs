//! `cargo xtask`: builds, boots, tests, measures and checks Sluice from the host.
//!
//! Each subcommand is one module with a `main` that reads its own arguments; [`COMMANDS`] is the whole list.
//! The way of a boot: [`scenario`] says which machine, [`machine`] turns that into QEMU's arguments, [`boot`]
//! runs QEMU and watches it, [`control`] understands what the guest reports, and [`session`] boots again after
//! a test that took the guest down.

#![forbid(unsafe_code)]

mod bench;
mod boot;
mod check;
mod control;
mod disk;
mod dmar;
mod firmware;
mod hands;
mod host_tests;
mod judge;
mod lacks;
#[cfg(test)]
mod line_width;
mod machine;
mod matrix;
mod mutants;
mod network;
mod options;
mod plot;
mod power_cut;
mod qemu;
mod run;
mod scenario;
mod schedule;
mod screen;
mod session;
mod setup;
mod shell_session;
mod side_by_side;
mod stage;
mod symbols;
mod test;
mod typist;
mod workspace;
mod write_log;

use std::process::ExitCode;

/// xtask itself failed: bad arguments, a missing tool, a build that broke.
const FAILED: u8 = 2;

struct Command {
    name: &'static str,
    summary: &'static str,
    main: fn(lexopt::Parser) -> anyhow::Result<ExitCode>,
}

const COMMANDS: &[Command] = &[
    Command { name: "run", summary: "boot the kernel in QEMU, with its console here", main: run::main },
    Command {
        name: "test",
        summary: "host tests, then the kernel on every machine of the matrix",
        main: test::main,
    },
    Command {
        name: "bench",
        summary: "benchmarks, in the guest (instructions) and on the host",
        main: bench::main,
    },
    Command { name: "check", summary: "formatting and lints; Miri; mutations", main: check::main },
    Command { name: "dmar", summary: "print the DMAR table of some machine", main: dmar::main },
];

fn main() -> ExitCode {
    let mut arguments = lexopt::Parser::from_env();
    match dispatch(&mut arguments) {
        Ok(Some(command)) => match (command.main)(arguments) {
            Ok(code) => code,
            Err(problem) => {
                eprintln!("xtask {}: {problem:#}", command.name);
                ExitCode::from(FAILED)
            }
        },
        Ok(None) => {
            print!("{}", usage());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("xtask: {problem}\n\n{}", usage());
            ExitCode::from(FAILED)
        }
    }
}

/// The subcommand that the first argument names; `None` when help was asked for.
fn dispatch(arguments: &mut lexopt::Parser) -> Result<Option<&'static Command>, lexopt::Error> {
    match arguments.next()? {
        Some(lexopt::Arg::Value(name)) => match COMMANDS.iter().find(|command| name == command.name) {
            Some(command) => Ok(Some(command)),
            None => Err(format!("there is no command {name:?}").into()),
        },
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) => Ok(None),
        Some(other) => Err(other.unexpected()),
        None => Err("which command?".into()),
    }
}

fn usage() -> String {
    let mut text =
        String::from("Usage: cargo xtask COMMAND [OPTIONS]   (--help after a command lists its options)\n\n");
    for command in COMMANDS {
        text += &format!("  {:<6} {}\n", command.name, command.summary);
    }
    text
}
