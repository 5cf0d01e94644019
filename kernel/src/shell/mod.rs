//! The shell on the serial line.
//!
//! A command is an entry of [`COMMANDS`], in the order in which `help` shows them.

mod assign;
mod attack;
mod builtin;
mod devices;
pub mod input;
mod iommu;
mod line;
mod net;
pub mod processes;
mod quarantine;
mod tables;

use alloc::vec::Vec;

use ::iommu::PciAddress;
use drivers::pci::{Function, class_name, device_name};
use suites::Machine;

use crate::{print, println};

/// Words on a line, the command included, at most.
const WORDS_MAX: usize = 16;

/// A command of the shell.
pub struct Command {
    /// What is typed.
    pub name: &'static str,
    /// Its arguments, for `help`.
    pub arguments: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// Runs it on the words after its name. An error is shown, with how to use the command.
    pub run: fn(&Shell<'_>, &[&str]) -> Result<(), UsageError>,
}

/// The arguments do not fit the command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsageError;

/// What commands see.
pub struct Shell<'a> {
    /// The machine, as tests see it too.
    pub machine: &'a Machine,
}

/// All commands.
static COMMANDS: &[&[Command]] = &[
    builtin::COMMANDS,
    devices::COMMANDS,
    net::COMMANDS,
    processes::COMMANDS,
    iommu::COMMANDS,
    tables::COMMANDS,
    assign::COMMANDS,
    quarantine::COMMANDS,
    attack::COMMANDS,
];

fn commands() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().copied().flatten()
}

/// What a function is, in words.
fn name_of(function: &Function) -> &'static str {
    device_name(function.id).unwrap_or_else(|| class_name(function.class))
}

impl Shell<'_> {
    /// The function that is written like that, with its segment or without.
    fn find(&self, name: &str) -> Option<PciAddress> {
        let mut addresses = self.machine.hotplug.each().map(|function| function.address);
        addresses.find(|address| {
            let text = alloc::format!("{address}");
            text == name || text.strip_prefix("0000:") == Some(name)
        })
    }

    /// What the function at `address` is; nothing if none was found there.
    fn name_of(&self, address: PciAddress) -> &'static str {
        self.machine.hotplug.function(address).map_or("", |function| name_of(&function))
    }

    /// Reads lines and runs them, for ever; `exit` ends the machine.
    pub fn run(&self) -> ! {
        println!("Type `help` for the commands.");
        loop {
            print!("> ");
            let line = line::read();
            self.execute(&line);
        }
    }

    fn execute(&self, line: &str) {
        let words: Vec<&str> = line.split_ascii_whitespace().take(WORDS_MAX).collect();
        let Some((&name, arguments)) = words.split_first() else { return };
        match commands().find(|command| command.name == name) {
            Some(command) => {
                if (command.run)(self, arguments) == Err(UsageError) {
                    println!("usage: {}", alloc::format!("{name} {}", command.arguments).trim_end());
                }
            }
            None => println!("unknown command {name:?}; `help` lists them"),
        }
    }
}
