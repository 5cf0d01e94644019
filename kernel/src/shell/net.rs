//! Commands about the network.

use alloc::sync::Arc;

use ::net::{Address, Interface, Ipv4Address, NoResult, Pending, Refused, Sink, http::Url};
use drivers::net::{Counters, Link};

use super::{Command, Shell, UsageError};
use crate::{
    arch::clock::{self, NS_PER_S},
    print, println,
};

pub(super) static COMMANDS: &[Command] = &[
    Command { name: "net", arguments: "", help: "network interfaces", run: show },
    Command {
        name: "ping",
        arguments: "ADDRESS [INTERFACE]",
        help: "ask whether somebody is there",
        run: ping,
    },
    Command { name: "resolve", arguments: "NAME [INTERFACE]", help: "the address of a name", run: resolve },
    Command {
        name: "fetch",
        arguments: "URL [INTERFACE]",
        help: "fetch a file by HTTP, and show how fast it came",
        run: fetch,
    },
];

/// Longer than any job of an interface takes; a fetch is waited for as long as it gets on.
const JOB_DEADLINE_NS: u64 = 30 * NS_PER_S;

/// How often progress is shown.
const PROGRESS_NS: u64 = NS_PER_S;

/// Bytes of a file that are shown.
const SHOWN_BYTES: usize = 256;

fn show(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    for (number, interface) in (0..).map_while(|number| shell.machine.interface(number)).enumerate() {
        let status = interface.status();
        let link = if status.link == Link::Up { "up" } else { "down" };
        println!(
            "net{number}  {}  {:10}  {}  link {link}",
            interface.dma().function(),
            status.info.driver,
            status.mac
        );
        match status.address {
            Some(Address { own, router, name_server }) => {
                print!("      address {own}");
                router.iter().for_each(|router| print!("  router {router}"));
                name_server.iter().for_each(|server| print!("  name server {server}"));
                println!();
            }
            None => println!("      no address yet"),
        }
        let Counters { received, received_bytes, sent, damaged, doubtful, lost, resets, doorbells } =
            status.counters;
        println!("      received {received} ({received_bytes} bytes)  sent {sent}  doorbells {doorbells}");
        println!("      damaged {damaged}  doubtful {doubtful}  lost {lost}  resets {resets}");
        println!("      connections answered {}", status.served);
    }
    Ok(())
}

/// The interface that is named, or the first.
fn interface_of(shell: &Shell<'_>, names: &[&str]) -> Result<Arc<Interface>, UsageError> {
    let number = match names {
        [] => 0,
        [name] => name.strip_prefix("net").and_then(|number| number.parse().ok()).ok_or(UsageError)?,
        _ => return Err(UsageError),
    };
    shell.machine.interface(number).ok_or_else(|| {
        println!("there is no interface net{number}");
        UsageError
    })
}

/// Waits for a job and returns its result; shows why there is none.
fn result_of<T, E: core::fmt::Display>(job: Result<Pending<Result<T, E>>, Refused>) -> Option<T> {
    let job = job.inspect_err(|error| println!("{error}")).ok()?;
    let deadline_ns = clock::now_ns().saturating_add(JOB_DEADLINE_NS);
    let result = job.wait(deadline_ns).inspect_err(|error| println!("{error}")).ok()?;
    result.inspect_err(|error| println!("{error}")).ok()
}

fn ping(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [address, names @ ..] = arguments else { return Err(UsageError) };
    let to: Ipv4Address = address.parse().map_err(|_| UsageError)?;
    let interface = interface_of(shell, names)?;
    if let Some(took_ns) = result_of(interface.ping(to)) {
        println!("{to} answers after {} us", took_ns / 1000);
    }
    Ok(())
}

fn resolve(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name, names @ ..] = arguments else { return Err(UsageError) };
    let interface = interface_of(shell, names)?;
    if let Some(address) = result_of(interface.resolve(name)) {
        println!("{name} is {address}");
    }
    Ok(())
}

/// The beginning of a file.
#[derive(Default)]
struct Beginning {
    text: alloc::vec::Vec<u8>,
}

impl Sink for Beginning {
    fn take(&mut self, bytes: &[u8]) {
        let room = SHOWN_BYTES.saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn fetch(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [url, names @ ..] = arguments else { return Err(UsageError) };
    let url: Url = match url.parse() {
        Ok(url) => url,
        Err(error) => {
            println!("{error}");
            return Ok(());
        }
    };
    let interface = interface_of(shell, names)?;
    let started_ns = clock::now_ns();
    match interface.fetch(url, Beginning::default()) {
        Err(error) => println!("{error}"),
        Ok(job) => match follow(&job) {
            Err(error) => println!("{error}"),
            Ok(Err(error)) => println!("{error}"),
            Ok(Ok(fetched)) => {
                let took_ms = (clock::now_ns() - started_ns) / 1_000_000;
                crate::demo::dump(&fetched.sink.text);
                println!(
                    "{} bytes in {took_ms} ms, {} KiB/s",
                    fetched.bytes,
                    fetched.bytes * 1000 / 1024 / took_ms.max(1)
                );
            }
        },
    }
    Ok(())
}

/// Waits for a fetch and shows how far it is. It ends by itself when nothing comes any more, and without a result when
/// its interface is shut down.
fn follow<T>(job: &Pending<T>) -> Result<T, NoResult> {
    loop {
        match job.wait(clock::now_ns().saturating_add(PROGRESS_NS)) {
            Err(NoResult::TimedOut) => println!("  {} KiB so far", job.progress() / 1024),
            result => return result,
        }
    }
}
