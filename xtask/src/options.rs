//! Arguments that several subcommands share, and the loop that reads them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::machine::Processor;
use crate::setup::Consent;

/// Options of every subcommand that boots the kernel.
#[derive(Debug, Default)]
pub struct BootOptions {
    pub yes: bool,
    pub qemu: Option<PathBuf>,
    pub kvm: bool,
    /// Words for the kernel's command line.
    pub cmdline: String,
    pub time_limit: Option<Duration>,
}

pub const BOOT_USAGE: &str = "  \
    --accel tcg|kvm     emulate the processor (the default), or use the host's through KVM
  --cmdline WORDS     words for the kernel's command line
  --time-limit SECS   how long a boot may take until its tests are done
  --qemu PATH         another QEMU than qemu-system-x86_64
  --yes               install what is missing without asking (CI=true does too)
";

impl BootOptions {
    /// Takes the option `name` if it is one of these.
    pub fn take(&mut self, name: &str, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        match name {
            "yes" => self.yes = true,
            "qemu" => self.qemu = Some(parser.value()?.into()),
            "cmdline" => self.cmdline = parser.value()?.string()?,
            "time-limit" => self.time_limit = Some(Duration::from_secs(parser.value()?.parse()?)),
            "accel" => {
                self.kvm = match parser.value()?.string()?.as_str() {
                    "kvm" => true,
                    "tcg" => false,
                    other => return Err(format!("--accel is tcg or kvm, not {other}").into()),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub fn consent(&self) -> Consent {
        Consent::find(self.yes)
    }

    pub fn processor(&self) -> Processor {
        if self.kvm { Processor::Kvm } else { Processor::Emulated }
    }
}

/// What the arguments of a subcommand came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// All were read; what followed `--`.
    Rest(Vec<OsString>),
    Help,
}

/// Reads all arguments; `take` gets each long option's name and says whether it knows it.
pub fn read(
    parser: &mut Parser,
    mut take: impl FnMut(&str, &mut Parser) -> Result<bool, lexopt::Error>,
) -> Result<Read, lexopt::Error> {
    loop {
        if let Some(raw) = parser.try_raw_args()
            && raw.peek().is_some_and(|next| next == "--")
        {
            return Ok(Read::Rest(raw.skip(1).collect()));
        }
        match parser.next()? {
            None => return Ok(Read::Rest(Vec::new())),
            Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Read::Help),
            Some(Arg::Long(name)) => {
                let name = name.to_string();
                if !take(&name, parser)? {
                    return Err(Arg::Long(&name).unexpected());
                }
            }
            Some(other) => return Err(other.unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(words: &[&str]) -> Result<(BootOptions, Read), lexopt::Error> {
        let mut options = BootOptions::default();
        let read = read(&mut Parser::from_args(words), |name, parser| options.take(name, parser))?;
        Ok((options, read))
    }

    #[test]
    fn options_and_what_follows_the_dashes() {
        let words =
            ["--accel", "kvm", "--cmdline=log=debug x", "--time-limit", "9", "--", "-d", "int", "--yes"];
        let (options, read) = read_all(&words).unwrap();
        assert!(options.kvm && !options.yes);
        assert_eq!(
            (options.cmdline.as_str(), options.time_limit),
            ("log=debug x", Some(Duration::from_secs(9)))
        );
        assert_eq!(read, Read::Rest(vec!["-d".into(), "int".into(), "--yes".into()]));
    }

    #[test]
    fn what_nobody_knows_is_an_error() {
        for words in [
            &["--wrong"][..],
            &["stray"],
            &["-x"],
            &["--accel", "hax"],
            &["--time-limit", "soon"],
            &["--yes=no"],
        ] {
            assert!(read_all(words).is_err(), "{words:?}");
        }
        assert_eq!(read_all(&["--yes", "--help"]).unwrap().1, Read::Help);
    }
}
