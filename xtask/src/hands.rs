//! Hands at the machine: they plug devices in and out when the guest asks for it (`plug NAME`, `unplug NAME` on the
//! control channel), keep QEMU from running for a while (`hold MS`), and press a key when they have seen what a display
//! is to show (`look NAME PICTURE`), through QEMU's monitor protocol (QMP) on its standard input and output.
//!
//! The guest sees what became of it by its slots, and by the key. What QEMU refuses, and what is not on a screen, is a
//! complaint of the boot.

use std::io::{BufRead, BufReader, Write};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::control::{Record, Request};
use crate::screen;

/// How often the guest's wishes are looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long QEMU may refuse something, and how long to wait until it is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// How long a picture may take to be on the screen.
const LOOK_PATIENCE: Duration = Duration::from_secs(100);
/// How long a guest may have itself kept from running.
const LONGEST_HOLD_MS: u64 = 60_000;

/// What the hands have at hand.
struct Tools<'a> {
    /// The process itself: its id may be another's as soon as somebody has waited for it.
    qemu: BorrowedFd<'a>,
    devices: &'a [Device],
    /// Where a screen is dumped.
    dump: &'a Path,
}

/// A device that can be plugged in.
#[derive(Debug)]
pub struct Device {
    /// What the guest calls it, and its id in QEMU.
    pub name: &'static str,
    /// Its driver and properties, as the members of a JSON object.
    pub properties: &'static str,
    /// What is behind it, from the top down: the guest finds all of it at once.
    pub behind: &'static [Device],
}

/// A thread that does what the guest asks for.
pub struct Hands {
    thread: JoinHandle<Vec<String>>,
    stop: Arc<AtomicBool>,
}

impl Hands {
    /// Hands for `qemu`, whose monitor is on its standard input and output, and which nobody has waited for.
    pub fn start(qemu: &mut Child, control: PathBuf, devices: &'static [Device]) -> Result<Hands> {
        let pipes = qemu.stdin.take().zip(qemu.stdout.take());
        let (to, from) = pipes.context("QEMU's monitor is out of the hands' reach")?;
        let monitor = Monitor { to, from: BufReader::new(from) };
        let process = pidfd_open(Pid::from_child(qemu), PidfdFlags::empty()).context("pidfd_open")?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || serve(monitor, control, &process, devices, &seen));
        Ok(Hands { thread, stop })
    }

    /// Ends the thread; QEMU has ended. Returns what went wrong.
    pub fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| vec!["the hands at the machine panicked".into()])
    }
}

fn serve(
    mut monitor: Monitor,
    control: PathBuf,
    qemu: &OwnedFd,
    devices: &'static [Device],
    stop: &AtomicBool,
) -> Vec<String> {
    let mut complaints = Vec::new();
    if let Err(problem) = monitor.begin() {
        // A QEMU that does not get as far says why itself.
        complaints.extend((!stop.load(Ordering::Relaxed)).then(|| format!("QMP: {problem:#}")));
        return complaints;
    }
    let tools = Tools { qemu: qemu.as_fd(), devices, dump: &control.with_file_name("screen.ppm") };
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let bytes = std::fs::read(&control).unwrap_or_default();
        for request in Record::read(&bytes).requests.drain(..).skip(done) {
            done += 1;
            if let Err(problem) = monitor.carry_out_patiently(&request, &tools, stop) {
                complaints.push(format!("{request:?}: {problem:#}"));
            }
        }
        sleep(POLL);
    }
    complaints
}

/// QEMU's monitor.
struct Monitor<To = ChildStdin, From = BufReader<ChildStdout>> {
    to: To,
    from: From,
}

impl<To: Write, From: BufRead> Monitor<To, From> {
    fn begin(&mut self) -> Result<()> {
        self.execute("qmp_capabilities", json!({}))
    }

    /// As [`carry_out`](Self::carry_out). A device that was pulled out in the middle of its work may need a while until
    /// QEMU lets another one take its place, and a picture until it is drawn. That there is none has to be so at once.
    fn carry_out_patiently(&mut self, request: &Request, tools: &Tools<'_>, stop: &AtomicBool) -> Result<()> {
        let patience = match request {
            Request::Look { picture: screen::NOTHING, .. } => Duration::ZERO,
            Request::Look { .. } => LOOK_PATIENCE,
            Request::Plug(_) | Request::Unplug(_) => PATIENCE,
            Request::HoldStill(_) => Duration::ZERO,
        };
        let asked = Instant::now();
        loop {
            match self.carry_out(request, tools) {
                Err(_) if asked.elapsed() < patience && !stop.load(Ordering::Relaxed) => sleep(PAUSE),
                result => return result,
            }
        }
    }

    fn carry_out(&mut self, request: &Request, tools: &Tools<'_>) -> Result<()> {
        let named = |name: &String| {
            let found = tools.devices.iter().find(|device| device.name == name);
            found.context("there is no such device")
        };
        match request {
            Request::Plug(name) => {
                let device = named(name)?;
                if device.behind.is_empty() {
                    return self.add(device);
                }
                self.execute("stop", json!({}))?;
                let added = iter::once(device).chain(device.behind).try_for_each(|device| self.add(device));
                self.execute("cont", json!({}))?;
                added
            }
            Request::Unplug(name) => self.execute("device_del", json!({ "id": named(name)?.name })),
            // QEMU's own `stop` would stop the guest's clocks too.
            &Request::HoldStill(ms) => {
                ensure!(ms <= LONGEST_HOLD_MS, "at most {LONGEST_HOLD_MS} ms");
                pidfd_send_signal(tools.qemu, Signal::STOP)?;
                sleep(Duration::from_millis(ms));
                Ok(pidfd_send_signal(tools.qemu, Signal::CONT)?)
            }
            Request::Look { display, picture } => {
                self.execute("screendump", json!({ "device": display, "filename": tools.dump }))?;
                let dump = std::fs::read(tools.dump);
                screen::verify(&dump.context("no screen was dumped")?, *picture)?;
                self.execute("send-key", json!({ "keys": [{ "type": "qcode", "data": "ret" }] }))
            }
        }
    }

    fn add(&mut self, device: &Device) -> Result<()> {
        let mut arguments: Value = serde_json::from_str(&format!("{{{}}}", device.properties))?;
        arguments["id"] = json!(device.name);
        self.execute("device_add", arguments)
    }

    /// Has QEMU execute a command, and waits for its answer. Events in between are skipped.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<()> {
        writeln!(self.to, "{}", json!({ "execute": command, "arguments": arguments }))?;
        self.to.flush()?;
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line)? == 0 {
                bail!("QEMU has ended");
            }
            let answer: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::workspace::Workspace;

    const DEVICES: &[Device] = &[
        Device { name: "edu", properties: r#""driver":"edu","bus":"slot""#, behind: &[] },
        Device {
            name: "bridge",
            properties: r#""driver":"b","bus":"slot""#,
            behind: &[Device { name: "far", properties: r#""driver":"edu","bus":"bridge""#, behind: &[] }],
        },
    ];

    /// What is sent for `request` to a monitor that says `answers`, and what comes of it.
    fn ask(request: &Request, answers: &str) -> (Vec<Value>, Result<()>) {
        let mut monitor = Monitor { to: Vec::new(), from: answers.as_bytes() };
        let this = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let tools =
            Tools { qemu: this.as_fd(), devices: DEVICES, dump: Path::new("/nonexistent/screen.ppm") };
        let result = monitor.carry_out(request, &tools);
        let sent = String::from_utf8(monitor.to).unwrap();
        (sent.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), result)
    }

    #[test]
    fn devices_are_added_and_deleted_by_their_names() {
        let answers = "{\"event\": \"X\"}\n{\"return\": {}}\n";
        let (sent, result) = ask(&Request::Plug("edu".into()), answers);
        let arguments = json!({ "driver": "edu", "bus": "slot", "id": "edu" });
        assert_eq!(sent, [json!({ "execute": "device_add", "arguments": arguments })]);
        result.unwrap();
        let (sent, result) = ask(&Request::Unplug("edu".into()), answers);
        assert_eq!(sent, [json!({ "execute": "device_del", "arguments": { "id": "edu" } })]);
        result.unwrap();
    }

    #[test]
    fn what_is_behind_a_device_is_added_while_the_guest_is_stopped() {
        let commands = |answers: &str| -> Vec<String> {
            let (sent, _) = ask(&Request::Plug("bridge".into()), answers);
            sent.iter().map(|sent| format!("{} {}", sent["execute"], sent["arguments"]["id"])).collect()
        };
        let [stop, cont] = [r#""stop" null"#, r#""cont" null"#];
        let [bridge, far] = [r#""device_add" "bridge""#, r#""device_add" "far""#];
        assert_eq!(commands(&"{\"return\": {}}\n".repeat(4)), [stop, bridge, far, cont]);
        // It goes on, whatever became of that.
        let refused = "{\"return\": {}}\n{\"error\": {}}\n{\"return\": {}}\n";
        assert_eq!(commands(refused), [stop, bridge, cont]);
        assert!(ask(&Request::Plug("bridge".into()), refused).1.is_err());
    }

    #[test]
    fn no_key_is_pressed_when_nothing_was_seen() {
        let look = Request::Look { display: "gpu".into(), picture: 1 };
        let (sent, result) = ask(&look, "{\"return\": {}}\n");
        let arguments = json!({ "device": "gpu", "filename": "/nonexistent/screen.ppm" });
        assert_eq!(sent, [json!({ "execute": "screendump", "arguments": arguments })]);
        assert!(result.unwrap_err().to_string().contains("no screen"));
    }

    /// A process that writes on and on, in QEMU's place, held for `ms`. How much more it had written after half a
    /// second of that, and after it went on.
    fn hold_writer(ms: u64, file: &Path) -> (u64, u64, Result<()>) {
        let mut writer = Command::new("sh");
        writer.args(["-c", "while :; do echo x >> $0; sleep 0.02; done"]).arg(file);
        let mut writer = writer.spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&writer), PidfdFlags::empty()).unwrap();
        let length = || std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        while length() == 0 {
            sleep(POLL);
        }
        let meanwhile = thread::scope(|scope| {
            let look = scope.spawn(|| {
                sleep(Duration::from_millis(200));
                let before = length();
                sleep(Duration::from_millis(300));
                length() - before
            });
            let tools = Tools { qemu: process.as_fd(), devices: &[], dump: file };
            let mut monitor = Monitor { to: Vec::new(), from: &b""[..] };
            let result = monitor.carry_out(&Request::HoldStill(ms), &tools);
            (look.join().unwrap(), result)
        });
        let held = length();
        sleep(Duration::from_millis(500));
        let after = length() - held;
        writer.kill().unwrap();
        writer.wait().unwrap();
        // A signal to who is gone goes nowhere, whoever has its number now.
        assert!(pidfd_send_signal(&process, Signal::STOP).is_err());
        std::fs::remove_file(file).unwrap();
        (meanwhile.0, after, meanwhile.1)
    }

    #[test]
    fn a_guest_is_held_for_as_long_as_it_says_but_not_for_ever() {
        let folder = Workspace::locate().unwrap().scratch("unit-tests").unwrap();
        let (meanwhile, after, result) = hold_writer(1000, &folder.join("held"));
        result.unwrap();
        assert!(meanwhile == 0 && after > 0, "{meanwhile}, {after}");
        let (meanwhile, _, result) = hold_writer(LONGEST_HOLD_MS + 1, &folder.join("not-held"));
        assert!(meanwhile > 0 && result.unwrap_err().to_string().contains("at most 60000 ms"));
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let problem =
            |name: &str, answers| format!("{:#}", ask(&Request::Plug(name.into()), answers).1.unwrap_err());
        assert!(problem("edu", "{\"error\": {\"desc\": \"no bus\"}}\n").contains("no bus"));
        assert!(problem("edu", "").contains("has ended"));
        assert!(problem("edu", "garbage\n").contains("garbage"));
        assert!(problem("ufo", "{\"return\": {}}\n").contains("no such device"));
    }
}
