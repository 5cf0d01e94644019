//! Somebody who works with the guest's shell: types lines on its serial line, and reads what they bring up.
//!
//! A prompt at the beginning of a line says that the line before was carried out. What the log says of it may come
//! later.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::control::Verdict;

/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long what a line brings up may take after the prompt.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the shell begins each line with that it wants typed.
const PROMPT: &str = "> ";

/// The command that lists them all.
const HELP: &str = "help";

/// A line that is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub typed: &'static str,
    /// What it has to bring up, in any order.
    pub shows: &'static [&'static str],
}

/// A thread that types.
pub struct Typist {
    thread: JoinHandle<Vec<(String, Verdict)>>,
    stop: Arc<AtomicBool>,
}

impl Typist {
    /// Types `lines`, one after each prompt, into `qemu`, whose standard input is the guest's serial line, if it is.
    pub fn start(qemu: &mut Child, console: PathBuf, lines: &'static [Line]) -> Option<Typist> {
        let keys = qemu.stdin.take()?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || Session { keys, console, stop: &seen }.hold(lines));
        Some(Typist { thread, stop })
    }

    /// Ends the thread; QEMU has ended. Returns what became of each line.
    pub fn finish(self) -> Vec<(String, Verdict)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| vec![("typist".into(), Err("panicked".into()))])
    }
}

struct Session<'a> {
    keys: ChildStdin,
    console: PathBuf,
    stop: &'a AtomicBool,
}

impl Session<'_> {
    fn hold(mut self, lines: &[Line]) -> Vec<(String, Verdict)> {
        let mut checks = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            let verdict = self.type_line(number, line).and_then(|shown| {
                if line.typed == HELP {
                    checks.push(("every command is typed".to_string(), all_typed(&shown, lines)));
                }
                missing(&shown, line.shows)
            });
            checks.push((format!("> {}", line.typed), verdict));
        }
        checks
    }

    /// Types `line`, which is number `number`, and returns what the console showed since: up to the next prompt or the
    /// guest's end, and as much more as it takes to show all that it has to.
    fn type_line(&mut self, number: usize, line: &Line) -> Result<String, String> {
        let before = self.await_prompt(number + 1)?.len();
        writeln!(self.keys, "{}", line.typed).map_err(|error| error.to_string())?;
        // The line that powers the guest off brings no prompt up. If another one does not, the next is not taken.
        let _ = self.await_prompt(number + 2);
        let asked = Instant::now();
        loop {
            let text = text_of(&self.console).split_off(before);
            let is_over = self.stop.load(Ordering::Relaxed) || asked.elapsed() > PATIENCE;
            if missing(&text, line.shows).is_ok() || is_over {
                return Ok(text);
            }
            sleep(POLL);
        }
    }

    /// The console's text when it has had `count` prompts.
    fn await_prompt(&self, count: usize) -> Result<String, String> {
        loop {
            // Looked at before the console: what was there when QEMU ended counts.
            let has_ended = self.stop.load(Ordering::Relaxed);
            let text = text_of(&self.console);
            if prompts(&text) >= count {
                return Ok(text);
            }
            if has_ended {
                return Err("the guest ended before it took another line".into());
            }
            sleep(POLL);
        }
    }
}

fn text_of(console: &Path) -> String {
    // Serial lines end their lines for teleprinters.
    String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).replace("\r\n", "\n")
}

fn prompts(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with(PROMPT)).count()
}

fn missing(text: &str, wanted: &[&str]) -> Verdict {
    match wanted.iter().find(|&&words| !text.contains(words)) {
        None => Ok(()),
        Some(words) => Err(format!("it did not show {words:?} but: {text}")),
    }
}

/// Whether each command that `help` lists, two spaces before its name, is the first word of a line.
fn all_typed(help: &str, lines: &[Line]) -> Verdict {
    let first_word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_string();
    let listed: BTreeSet<String> =
        help.lines().filter_map(|line| line.strip_prefix("  ")).map(first_word).collect();
    let typed: BTreeSet<String> = lines.iter().map(|line| first_word(line.typed)).collect();
    let left_out: Vec<&String> = listed.difference(&typed).collect();
    match (listed.is_empty(), left_out.is_empty()) {
        (false, true) => Ok(()),
        (true, _) => Err(format!("no commands are listed: {help}")),
        (false, false) => Err(format!("not typed: {left_out:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::workspace::Workspace;

    /// What becomes of `lines` with a shell script in the guest's place, which has its console in `$console`.
    fn session(name: &str, script: &str, lines: &'static [Line]) -> Vec<(String, Verdict)> {
        let folder = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let console = folder.join("console");
        std::fs::write(&console, "").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("console", &console).stdin(Stdio::piped());
        let mut guest = command.spawn().unwrap();
        let typist = Typist::start(&mut guest, console, lines).unwrap();
        guest.wait().unwrap();
        let checks = typist.finish();
        std::fs::remove_dir_all(folder).unwrap();
        checks
    }

    /// A guest that lists two commands, logs late, and powers off at the third line.
    const GUEST: &str = "printf 'boot\\n> ' >> $console; read line; \
        printf 'help\\n  help      list\\n  stop ARG  stop\\n> ' >> $console; read line; \
        printf '%s\\nstopped\\n> [1.0] WARN late\\n' \"$line\" >> $console; read line; echo off >> $console";

    #[test]
    fn each_line_is_typed_at_a_prompt_and_brings_up_what_it_should() {
        const LINES: &[Line] = &[
            Line { typed: "help", shows: &["list"] },
            Line { typed: "stop it", shows: &["stop it", "stopped", "late"] },
            Line { typed: "off", shows: &["off"] },
        ];
        let checks = session("typist-all", GUEST, LINES);
        let names: Vec<&str> = checks.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["every command is typed", "> help", "> stop it", "> off"]);
        assert!(checks.iter().all(|(_, verdict)| verdict.is_ok()), "{checks:?}");
    }

    #[test]
    fn what_is_not_shown_or_not_typed_is_a_failure() {
        const LINES: &[Line] = &[
            Line { typed: "help", shows: &[] },
            Line { typed: "off", shows: &[] },
            Line { typed: "on", shows: &["on again"] },
            Line { typed: "more", shows: &[] },
        ];
        let verdicts: Vec<bool> =
            session("typist-missing", GUEST, LINES).iter().map(|(_, verdict)| verdict.is_ok()).collect();
        assert_eq!(verdicts, [false, true, true, false, false]);
    }
}
