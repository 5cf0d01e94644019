//! Where things are, and the calls of cargo.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The bare-metal target that the kernel is built for.
pub const KERNEL_TARGET: &str = "x86_64-unknown-none";
/// The packages of programs for ring 3: each has one program, of its name.
const PROGRAMS: &[&str] = &["attacker", "display", "nvme-driver"];

/// How the kernel is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// As it is shipped.
    Shipped,
    /// With debug assertions, which check the order of locks among other things.
    Checked,
}

impl Build {
    /// The profile in the workspace's Cargo.toml.
    fn profile(self) -> &'static str {
        match self {
            Build::Shipped => "release",
            Build::Checked => "checked",
        }
    }
}

pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// The workspace that this xtask was built from, with cargo as it called us.
    pub fn locate() -> Result<Workspace> {
        // `cargo run` says where xtask lies now; a binary that was started by hand knows where it was built.
        let manifest =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask lies in no workspace")?.to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(target) => std::env::current_dir()?.join(target),
            None => root.join("target"),
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Workspace { root, target, cargo })
    }

    /// A cargo command at the workspace's root that uses our target folder.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target).arg(subcommand);
        command
    }

    /// A cargo command on the kernel, for its target.
    pub fn cargo_on_kernel(&self, subcommand: &str) -> Command {
        self.cargo_on_bare(subcommand, &["kernel"])
    }

    /// A cargo command on the programs for ring 3, for their target, which is the kernel's.
    pub fn cargo_on_programs(&self, subcommand: &str) -> Command {
        self.cargo_on_bare(subcommand, PROGRAMS)
    }

    fn cargo_on_bare(&self, subcommand: &str, packages: &[&str]) -> Command {
        let mut command = self.cargo(subcommand);
        command.args(packages.iter().flat_map(|package| ["--package", package]));
        command.args(["--target", KERNEL_TARGET]);
        // Flags in the environment would replace those in .cargo/config.toml, without which the kernel cannot run.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }

    /// Builds the programs for ring 3 and returns the folder that they, and nothing else, are in. They are always built
    /// as they are shipped, without the symbols that nobody reads in the kernel's image.
    fn build_programs(&self) -> Result<PathBuf> {
        let profile = Build::Shipped.profile();
        let mut command = self.cargo_on_programs("build");
        command.args(["--bins", "--profile", profile]);
        command.args(["--config", "profile.release.strip=true", "--config", "profile.release.debug=false"]);
        succeed(&mut command)?;
        let folder = self.scratch("programs")?;
        for entry in fs::read_dir(&folder)? {
            let old = entry?.path();
            if !PROGRAMS.iter().any(|&name| old.ends_with(name)) {
                fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        for name in PROGRAMS {
            let built = self.target.join(KERNEL_TARGET).join(profile).join(name);
            let file = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
            let copy = folder.join(name);
            // A file that is written anew makes cargo build the kernel anew.
            if fs::read(&copy).ok().as_ref() != Some(&file) {
                fs::write(&copy, file).with_context(|| format!("cannot write {}", copy.display()))?;
            }
        }
        Ok(folder)
    }

    /// Builds the kernel, with the programs in it, and returns where it is.
    pub fn build_kernel(&self, build: Build) -> Result<PathBuf> {
        let programs = self.build_programs()?;
        let mut command = self.cargo_on_kernel("build");
        command.args(["--profile", build.profile()]).env("SLUICE_PROGRAMS", programs);
        succeed(&mut command)?;
        let kernel = self.target.join(KERNEL_TARGET).join(build.profile()).join("kernel");
        if !kernel.is_file() {
            bail!("cargo built the kernel, but {} is not there", kernel.display());
        }
        Ok(kernel)
    }

    /// A folder for what xtask makes, created on demand.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.target.join("sluice").join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// A [`scratch`](Self::scratch) folder for this process alone, until it is dropped: a second boot there would
    /// remove the files of the first. That another process has it is an error at once.
    pub fn lock(&self, name: &str) -> Result<LockedFolder> {
        let path = self.scratch(name)?;
        let lock = path.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.with_context(|| format!("cannot open {}", lock.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(LockedFolder { path, lock: file }),
            Err(TryLockError::WouldBlock) => bail!("another xtask uses {}", path.display()),
            Err(TryLockError::Error(problem)) => {
                Err(problem).with_context(|| format!("cannot lock {}", lock.display()))
            }
        }
    }
}

/// A folder that no other xtask uses.
pub struct LockedFolder {
    pub path: PathBuf,
    /// The system unlocks what is closed, however the process ends.
    lock: File,
}

impl Drop for LockedFolder {
    fn drop(&mut self) {
        // A child that another thread is about to start has it open for a moment as well.
        let _ = self.lock.unlock();
    }
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // The toolchain's own cargo is called by its path, which nobody wants to read.
    let name = program.file_name().filter(|&name| name == "cargo").unwrap_or(command.get_program());
    let mut text = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        text.push(' ');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            text.push_str(&argument);
        } else {
            text.push_str(&format!("'{}'", argument.replace('\'', r"'\''")));
        }
    }
    text
}

/// Runs `command` to its end; its failing is an error that shows it.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_takes_them() {
        let mut command = Command::new("qemu");
        command.args(["-append", "exit test=a*", "it's", "", "-M", "q35,acpi=off"]);
        assert_eq!(shown(&command), r"qemu -append 'exit test=a*' 'it'\''s' '' -M q35,acpi=off");
        assert_eq!(shown(Command::new("/toolchain/bin/cargo").arg("fmt")), "cargo fmt");
        assert_eq!(shown(&Command::new("/own/qemu")), "/own/qemu");
    }

    #[test]
    fn a_folder_is_used_by_one_at_a_time() {
        let workspace = Workspace::locate().unwrap();
        let (name, other) = ("unit-tests/locked", "unit-tests/locked-by-nobody");
        let first = workspace.lock(name).unwrap();
        let problem = workspace.lock(name).err().expect("one too many").to_string();
        assert!(problem.contains("another xtask uses") && problem.ends_with(name), "{problem}");
        assert!(workspace.lock(other).is_ok());
        drop(first);
        assert!(workspace.lock(name).is_ok());
    }

    #[test]
    fn a_failing_command_is_an_error_that_shows_it() {
        let problem = succeed(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert!(problem.contains("sh -c 'exit 3'") && problem.contains('3'), "{problem}");
        assert!(succeed(&mut Command::new("true")).is_ok());
    }
}
