//! Taking devices from their drivers, and giving them back.

use iommu::dump::GroupStanding;
use suites::reports;

use super::{Command, Shell, UsageError};
use crate::println;

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "quarantine",
        arguments: "FUNCTION",
        help: "take from a function's group all that it may reach",
        run: quarantine,
    },
    Command {
        name: "release",
        arguments: "FUNCTION",
        help: "reset a function, end its quarantine, start its driver anew",
        run: release,
    },
];

fn quarantine(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    let Some(function) = shell.find(name) else {
        println!("there is no function {name}");
        return Ok(());
    };
    match shell.machine.iommu.quarantine(function) {
        Ok(()) => {
            let standing = reports::group(&shell.machine.iommu, function).and_then(|group| group.standing);
            let reach = match standing {
                Some(GroupStanding::Quarantined { on_scratch_page: true, .. }) => "only a scratch page",
                _ => "nothing",
            };
            println!("{name} reaches {reach} from now on; `release {name}` gives it back");
        }
        Err(error) => println!("{error}"),
    }
    Ok(())
}

fn release(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    match shell.find(name).map(|function| shell.machine.restart(function)) {
        Some(Ok(true)) => println!("{name} was reset, and its driver has started anew"),
        Some(Ok(false)) => println!("{name} was reset and is free"),
        Some(Err(error)) => println!("{error}"),
        None => println!("there is no function {name}"),
    }
    Ok(())
}
