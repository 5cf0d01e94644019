//! Processes: which there are, starting and ending them.

use alloc::vec::Vec;

use suites::Machine;

use super::{Command, Shell, UsageError};
use crate::{
    arch::clock::{self, NS_PER_S},
    println,
    process::{self, Driver, Giver, Process},
    programs,
};

/// How long a process may take to end.
const END_NS: u64 = 5 * NS_PER_S;
/// How long one that was started is waited for, in case that it ends at once.
const START_NS: u64 = NS_PER_S / 2;

pub(super) static COMMANDS: &[Command] = &[
    Command { name: "ps", arguments: "", help: "the processes in ring 3, and what can be started", run: ps },
    Command {
        name: "start",
        arguments: "PROGRAM [NUMBER [FUNCTION [disk]]]",
        help: "start a program in ring 3, with a number as its argument, and give it a device, to make a disk of it",
        run: start,
    },
    Command { name: "kill", arguments: "PID", help: "end a process", run: kill },
];

fn ps(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    println!("pid  program       pages  for");
    for process in process::all() {
        let Process { pid, name, started_ns, .. } = *process;
        let seconds = clock::now_ns().saturating_sub(started_ns) / NS_PER_S;
        println!("{pid:4}  {name:12}  {:5}  {seconds} s", process.pages());
    }
    for file in programs::FILES {
        println!("`start {}` starts a program of {} bytes", file.name, file.bytes.len());
    }
    Ok(())
}

fn start(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let (name, number, function, is_for_disk) = match arguments {
        [name] => (name, "0", None, false),
        [name, number] => (name, *number, None, false),
        [name, number, function] => (name, *number, Some(function), false),
        [name, number, function, "disk"] => (name, *number, Some(function), true),
        _ => return Err(UsageError),
    };
    let number = number.parse().map_err(|_| UsageError)?;
    let mut devices = Vec::new();
    if let Some(at) = function {
        let Some(function) = shell.find(at) else {
            println!("there is no function {at}");
            return Ok(());
        };
        let giver = giver(shell.machine);
        if is_for_disk {
            match process::start_disk(&giver, name, number, function) {
                Ok(Driver { process, disk }) => {
                    println!("{process} makes a disk of {}", disk.dma().function())
                }
                Err(error) => println!("{at}: {error}"),
            }
            return Ok(());
        }
        match giver.give(function) {
            Ok(given) => devices.push(given),
            Err(error) => {
                println!("{at}: {error}");
                return Ok(());
            }
        }
    }
    match process::start(name, number, devices) {
        Ok(process) => match process.wait(clock::now_ns() + START_NS) {
            Some(ending) => println!("{process} {ending}"),
            None => println!("{process} runs"),
        },
        Err(error) => println!("{name}: {error}"),
    }
    Ok(())
}

/// What it takes to give devices of `machine` to processes.
pub fn giver(machine: &Machine) -> Giver {
    let (host, iommu) = (machine.host.clone(), machine.iommu.clone());
    let (hotplug, disks) = (machine.hotplug.clone(), machine.disks.clone());
    Giver { host, iommu, hotplug, disks, shares_spaces: machine.shares_spaces }
}

fn kill(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [pid] = arguments else { return Err(UsageError) };
    let pid = pid.parse().map_err(|_| UsageError)?;
    let Some(process) = process::find(pid) else {
        println!("there is no process {pid}");
        return Ok(());
    };
    process.kill();
    match process.wait(clock::now_ns() + END_NS) {
        Some(ending) => println!("{process} {ending}"),
        None => println!("{process} has not ended yet"),
    }
    Ok(())
}
