//! `cargo xtask check --mutants`: breaks the code on purpose, in a copy, and sees that a test notices.
//!
//! Each `testing/mutations/*.patch` starts with a text that says what it breaks, and a line
//! `Test: ARGUMENTS-OF-CARGO-TEST` that names the tests that have to fail. They must pass without the patch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::glob;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::workspace::Workspace;

/// A mutation may turn a loop into an endless one. Tests that do not end in this time have noticed it.
const PATIENCE: Duration = Duration::from_secs(900);

struct Mutation {
    name: String,
    patch: PathBuf,
    text: String,
    test: Vec<String>,
}

/// How tests went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tests {
    Passed(usize),
    Failed(Vec<String>),
    /// They did not build, and what the compiler said last.
    Unbuilt(String),
    Endless,
}

/// Tries every mutation whose name fits `pattern`; true when each was caught.
pub fn run(workspace: &Workspace, pattern: &str) -> Result<bool> {
    let folder = workspace.root.join("testing/mutations");
    let mut mutations = load(&folder)?;
    mutations.retain(|mutation| glob::matches(pattern, &mutation.name));
    if mutations.is_empty() {
        bail!("{} holds no patch called {pattern}", folder.display());
    }
    let folder = workspace.lock("mutants")?;
    let copy = Copy::make(workspace, &folder.path)?;
    let mut whole: BTreeMap<Vec<String>, Tests> = BTreeMap::new();
    let mut survivors = 0;
    for mutation in &mutations {
        println!("---- {}\n{}", mutation.name, mutation.text.trim_end());
        let unbroken = match whole.get(&mutation.test) {
            Some(known) => known.clone(),
            None => copy.test(&mutation.test)?,
        };
        whole.insert(mutation.test.clone(), unbroken.clone());
        let verdict = match unbroken {
            Tests::Passed(1..) => copy.try_mutation(mutation)?,
            other => Err(format!("its tests do not pass without it: {other:?}")),
        };
        match verdict {
            Ok(noticed) => println!("==== {}: caught by {noticed}\n", mutation.name),
            Err(reason) => {
                println!("==== {}: NOT CAUGHT: {reason}\n", mutation.name);
                survivors += 1;
            }
        }
    }
    println!("{} mutations, {} caught, {survivors} not caught", mutations.len(), mutations.len() - survivors);
    Ok(survivors == 0)
}

/// The mutations in `folder`, by name.
fn load(folder: &Path) -> Result<Vec<Mutation>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    paths.sort();
    paths.into_iter().map(read_mutation).collect()
}

fn read_mutation(patch: PathBuf) -> Result<Mutation> {
    let text = fs::read_to_string(&patch).with_context(|| format!("cannot read {}", patch.display()))?;
    let test = test_line(&text).with_context(|| format!("{}: no line `Test: ...`", patch.display()))?;
    let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Mutation { name, test, text, patch })
}

/// The arguments on the `Test:` line, which stands before the diff.
fn test_line(text: &str) -> Option<Vec<String>> {
    let header = text.lines().take_while(|line| !line.starts_with("diff ") && !line.starts_with("--- "));
    let arguments = header.filter_map(|line| line.strip_prefix("Test: ")).next()?;
    // The whole command reads as well as its arguments.
    let arguments = arguments.strip_prefix("cargo test ").unwrap_or(arguments);
    let words: Vec<String> = arguments.split_whitespace().map(String::from).collect();
    (!words.is_empty()).then_some(words)
}

/// A copy of the workspace under the target folder, with a target folder of its own that all mutations share.
struct Copy<'a> {
    workspace: &'a Workspace,
    tree: PathBuf,
    target: PathBuf,
}

impl Copy<'_> {
    /// Brings the copy up to date with the files that git knows or would take.
    fn make<'a>(workspace: &'a Workspace, folder: &Path) -> Result<Copy<'a>> {
        let copy = Copy { workspace, tree: folder.join("tree"), target: folder.join("target") };
        let mut list = Command::new("git");
        list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&workspace.root);
        let output = list.output().context("cannot start git")?;
        if !output.status.success() {
            bail!("git cannot list the workspace's files");
        }
        let files: Vec<&str> = std::str::from_utf8(&output.stdout)?.split_terminator('\0').collect();
        copy.remove_strays(&files)?;
        for file in files {
            copy.restore(Path::new(file))?;
        }
        Ok(copy)
    }

    /// Removes sources that an earlier copy had and the workspace has no more.
    fn remove_strays(&self, files: &[&str]) -> Result<()> {
        let mut folders = vec![self.tree.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry?.path();
                let name = path.strip_prefix(&self.tree)?.to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if !files.contains(&name.as_str()) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    /// Makes one file as it is in the workspace. An equal one is left alone: its time tells cargo what to rebuild.
    fn restore(&self, file: &Path) -> Result<()> {
        let (from, to) = (self.workspace.root.join(file), self.tree.join(file));
        let Ok(wanted) = fs::read(&from) else { return Ok(()) };
        if fs::read(&to).is_ok_and(|present| present == wanted) {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&to, wanted).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Applies the mutation, runs its tests and takes it back. `Ok` says what noticed, `Err` why nothing did.
    fn try_mutation(&self, mutation: &Mutation) -> Result<Result<String, String>> {
        let touched = self.touched(mutation)?;
        let applied = self.apply(mutation).output().context("cannot start git")?;
        if !applied.status.success() {
            let message = String::from_utf8_lossy(&applied.stderr);
            return Ok(Err(format!("it does not apply: {}", message.trim_end().replace('\n', "; "))));
        }
        let tests = self.test(&mutation.test);
        for file in touched {
            self.restore(&file)?;
        }
        Ok(match tests? {
            Tests::Failed(names) => Ok(names.join(", ")),
            Tests::Endless => Ok(format!("its tests, which did not end in {} s", PATIENCE.as_secs())),
            Tests::Passed(count) => Err(format!("{count} tests pass in spite of it")),
            Tests::Unbuilt(message) => Err(format!("it does not build: {message}")),
        })
    }

    fn apply(&self, mutation: &Mutation) -> Command {
        let mut command = Command::new("git");
        command.arg("apply").arg(&mutation.patch).current_dir(&self.tree);
        // The copy lies inside a repository; git must take it for a plain folder, or it would skip the files.
        command.env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        command
    }

    /// The files that the patch changes.
    fn touched(&self, mutation: &Mutation) -> Result<Vec<PathBuf>> {
        let output = self.apply(mutation).args(["--numstat", "-z"]).output().context("cannot start git")?;
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(listing
            .split_terminator('\0')
            .filter_map(|line| line.split('\t').nth(2))
            .map(PathBuf::from)
            .collect())
    }

    fn cargo_test(&self, arguments: &[&str]) -> Command {
        let mut command = self.workspace.cargo("test");
        command
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    /// Builds and runs `cargo test` with these arguments.
    fn test(&self, arguments: &[String]) -> Result<Tests> {
        // `--no-run` goes before what is meant for the test binary.
        let split = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
        let cargos: Vec<&str> = arguments[..split].iter().map(String::as_str).collect();
        let mut build = self.cargo_test(&["--quiet", "--no-run"]);
        let output = build.args(&cargos).output().context("cannot start cargo")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let first = message.lines().find(|line| line.starts_with("error")).unwrap_or("error").to_string();
            return Ok(Tests::Unbuilt(first));
        }
        let log = self.target.with_extension("log");
        let mut command = self.cargo_test(&["--no-fail-fast"]);
        command.args(arguments).stdout(fs::File::create(&log)?).stderr(Stdio::null());
        // A group of its own, so that cargo and the test binary under it can be ended together.
        let mut child = command.process_group(0).spawn().context("cannot start cargo")?;
        let started = Instant::now();
        while child.try_wait()?.is_none() {
            if started.elapsed() > PATIENCE {
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Ok(Tests::Endless);
            }
            sleep(Duration::from_millis(100));
        }
        let success = child.wait()?.success();
        Ok(read_results(&String::from_utf8_lossy(&fs::read(&log)?), success))
    }
}

/// What the output of test binaries comes to.
fn read_results(output: &str, success: bool) -> Tests {
    let named = |end: &str| -> Vec<String> {
        let lines = output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(end));
        lines.map(String::from).collect()
    };
    match (success, named(" ... FAILED")) {
        (true, _) => Tests::Passed(named(" ... ok").len()),
        // A test that aborts takes its binary with it: the name of the last one begun is not known.
        (false, names) if names.is_empty() => Tests::Failed(vec!["a test binary that died".into()]),
        (false, names) => Tests::Failed(names),
    }
}

#[cfg(test)]
#[path = "mutants_tests.rs"]
mod tests;
