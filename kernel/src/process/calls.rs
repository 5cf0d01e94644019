//! What the kernel does for a program: one function for each [`Call`].

use abi::{Call, Error, Registers};

use super::{Ending, Running};
use crate::arch::clock;

impl Running {
    /// Does what the program asks for. `Some` if that is its end.
    pub(super) fn serve(&mut self, registers: Registers) -> Option<Ending> {
        let [first, second, ..] = registers.arguments;
        let answer = match Call::from_number(registers.number) {
            Some(Call::Exit) => return Some(Ending::Exited(first)),
            Some(Call::Log) => self.log(first, second),
            Some(Call::MapMemory) => self.space.map_memory(first),
            Some(Call::UnmapMemory) => self.space.unmap_memory(first).map(|()| 0),
            Some(Call::ProtectMemory) => self.space.protect_memory(first, second != 0).map(|()| 0),
            Some(Call::Now) => Ok(clock::now_ns()),
            Some(Call::SleepUntil) => {
                self.process.wait_in_kernel(first, || false);
                Ok(0)
            }
            Some(call) => self.serve_device(call, registers.arguments),
            None => Err(Error::NoSuchCall),
        };
        self.context.answer(abi::encode(answer));
        None
    }

    fn log(&mut self, address: u64, bytes: u64) -> Result<u64, Error> {
        let mut line = [0; abi::LOG_MAX];
        let line =
            usize::try_from(bytes).ok().and_then(|bytes| line.get_mut(..bytes)).ok_or(Error::TooLong)?;
        self.space.read(address, line)?;
        if !self.lines.take(clock::now_ns()) {
            return Err(Error::TooOften);
        }
        for byte in line.iter_mut().filter(|byte| !matches!(byte, b' '..=b'~')) {
            *byte = b'.';
        }
        let process = &self.process;
        log::info!("{process}: {}", str::from_utf8(line).unwrap_or("?"));
        Ok(0)
    }
}

/// How many lines a program may write: some at once, and more as time passes.
pub(super) struct Lines {
    left: u64,
    since_ns: u64,
}

impl Lines {
    const AT_ONCE: u64 = 32;
    /// Time for another one.
    const EACH_NS: u64 = clock::NS_PER_S / 10;

    pub(super) const fn new() -> Self {
        Self { left: Self::AT_ONCE, since_ns: 0 }
    }

    /// Whether there may be another one now.
    fn take(&mut self, now_ns: u64) -> bool {
        let more = now_ns.saturating_sub(self.since_ns) / Self::EACH_NS;
        self.left = self.left.saturating_add(more).min(Self::AT_ONCE);
        self.since_ns = self.since_ns.saturating_add(more.saturating_mul(Self::EACH_NS));
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
