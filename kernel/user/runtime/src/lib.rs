//! What every program in ring 3 has: its start, its calls, its end.
//!
//! A program says [`main!`] once, with a function that takes the number it was started with.
#![no_std]

mod device;

use core::{arch::asm, fmt, fmt::Write, ptr::NonNull};

pub use abi;
use abi::{Call, Error, Registers};
pub use device::Device;

/// Makes `$main`, a `fn(u64) -> u64`, what the program does. What it returns is the code that the program exits with.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn _start(argument: u64) -> ! {
            $crate::exit($main(argument))
        }

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::log(format_args!("{info}"));
            $crate::exit($crate::PANICKED)
        }
    };
}

/// What a program exits with that panicked.
pub const PANICKED: u64 = 101;

/// Makes the call that the registers say, whatever they say.
///
/// # Safety
/// The memory that the call takes away, if it takes any, is not used any more.
pub unsafe fn call_raw(registers: Registers) -> u64 {
    let Registers { number, arguments: [first, second, third, fourth, fifth] } = registers;
    let answer;
    // SAFETY: the kernel changes no register but RAX, and no memory but what the call says.
    unsafe {
        asm!(
            "int {vector}",
            vector = const abi::VECTOR,
            inlateout("rax") number => answer,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
        );
    }
    answer
}

/// # Safety
/// As for [`call_raw`].
unsafe fn call(call: Call, arguments: [u64; 5]) -> Result<u64, Error> {
    // SAFETY: the caller's promise.
    abi::decode(unsafe { call_raw(Registers { number: call as u64, arguments }) })
}

/// Ends the program.
pub fn exit(code: u64) -> ! {
    loop {
        // SAFETY: nothing is used any more.
        let _never = unsafe { call(Call::Exit, [code, 0, 0, 0, 0]) };
    }
}

/// Writes a line to the kernel's log; what is too long is cut off, and what is too much is lost.
pub fn log(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; abi::LOG_MAX], len: 0 };
    // It never fails.
    let _cut_off = line.write_fmt(text);
    // SAFETY: the kernel reads the line, and takes nothing away.
    let _lost = unsafe { call(Call::Log, [line.bytes.as_ptr() as u64, line.len as u64, 0, 0, 0]) };
}

struct Line {
    bytes: [u8; abi::LOG_MAX],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (to, &from) in self.bytes.iter_mut().skip(self.len).zip(text.as_bytes()) {
            *to = from;
            self.len += 1;
        }
        Ok(())
    }
}

/// The time, in nanoseconds since boot.
pub fn now_ns() -> u64 {
    // SAFETY: takes nothing away. It cannot fail.
    unsafe { call(Call::Now, [0; 5]) }.unwrap_or_default()
}

/// Waits.
pub fn sleep_until(time_ns: u64) {
    // SAFETY: takes nothing away. It cannot fail.
    let _always = unsafe { call(Call::SleepUntil, [time_ns, 0, 0, 0, 0]) };
}

/// New, zeroed memory.
///
/// # Errors
/// There is none.
pub fn map_memory(bytes: usize) -> Result<NonNull<u8>, Error> {
    // SAFETY: takes nothing away.
    let address = unsafe { call(Call::MapMemory, [bytes as u64, 0, 0, 0, 0]) }?;
    NonNull::new(address as *mut u8).ok_or(Error::OutOfMemory)
}

/// Lets the program write memory, or not.
///
/// # Errors
/// It is none that [`map_memory`] gave.
///
/// # Safety
/// Nobody writes it if that is not allowed, nor has a reference by which it could be.
pub unsafe fn protect_memory(address: NonNull<u8>, is_writable: bool) -> Result<(), Error> {
    let arguments = [address.as_ptr() as u64, is_writable.into(), 0, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { call(Call::ProtectMemory, arguments) }.map(|_| ())
}

/// Gives memory back.
///
/// # Errors
/// It is none that [`map_memory`] gave, or a device has it.
///
/// # Safety
/// Nothing uses it any more.
pub unsafe fn unmap_memory(address: NonNull<u8>) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe { call(Call::UnmapMemory, [address.as_ptr() as u64, 0, 0, 0, 0]) }.map(|_| ())
}
