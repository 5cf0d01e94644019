//! Calls that ask for what a program cannot have.

use core::{ptr::NonNull, slice};

use abi::{Call, Error, Registers};
use attacker::{DIRECT_MAP, LEFT};

/// The kernel did something that it should have refused.
const TAKEN: u64 = 1;

/// Numbers with which something might go wrong: addresses out of reach, at edges, and of things that may be read only;
/// lengths that wrap.
const HOSTILE: [u64; 16] = [
    0,
    1,
    0xfff,
    0x1000,
    abi::IMAGE.start - 1,
    abi::STACK_TOP - 1,
    abi::STACK_TOP,
    abi::MEMORY.start,
    abi::MEMORY.end - 1,
    abi::MEMORY.end,
    1 << 47,
    DIRECT_MAP,
    0xffff_ffff_8020_0000,
    1 << 63,
    u64::MAX - 0xfff,
    u64::MAX,
];

/// Makes each call about a device with all hostile arguments. Exits with [`LEFT`] if none was answered
/// as if it had been right.
pub fn all_wrong_about_a_device() -> u64 {
    const DEVICE: u64 = 0;
    for &call in &Call::ALL[Call::ConfigRead as usize..] {
        for second in HOSTILE {
            for third in HOSTILE {
                // A time that is far off would be waited for.
                let third = if call == Call::Await { 0 } else { third };
                for fourth in [0, 1, 3, 4, u64::MAX] {
                    let arguments = [DEVICE, second, third, fourth, 0];
                    // SAFETY: none of it is memory that the program has.
                    let answer = unsafe { runtime::call_raw(Registers { number: call as u64, arguments }) };
                    if !is_right_about_a_device(call, second, abi::decode(answer)) {
                        runtime::log(format_args!(
                            "{call:?} of {second:#x}, {third:#x}, {fourth:#x}: {answer:#x}"
                        ));
                        return TAKEN;
                    }
                }
            }
        }
    }
    LEFT
}

/// Whether `answer` is what the kernel may say to this of an `edu`.
fn is_right_about_a_device(call: Call, second: u64, answer: Result<u64, Error>) -> bool {
    match call {
        Call::ConfigRead => answer.is_ok() == (second == 0),
        // It has one, and one interrupt. It can be mapped once.
        Call::BarBytes => answer.is_ok() == (second == 0),
        Call::MapBar => second == 0 && answer != Err(Error::NotLendable) || answer == Err(Error::NotLendable),
        Call::Interrupts => answer == Ok(1),
        Call::HasSpace => matches!(answer, Ok(0 | 1)),
        Call::Await => answer == if second == 1 { Ok(0) } else { Err(Error::NoSuchEvent) },
        _ => answer.is_err(),
    }
}

/// Makes each call with all hostile arguments. Exits with [`LEFT`] if none was answered as if it had been right.
pub fn all_wrong() -> u64 {
    for number in (0..64).chain(HOSTILE).chain((0..64).map(|bit| 1 << bit)) {
        let call = Call::from_number(number);
        if matches!(call, Some(Call::Exit | Call::SleepUntil)) {
            continue;
        }
        for first in HOSTILE {
            for second in HOSTILE {
                let arguments = [first, second, second, first, second];
                // SAFETY: none of it is memory that the program has.
                let answer = abi::decode(unsafe { runtime::call_raw(Registers { number, arguments }) });
                if !is_right(call, first, second, answer) {
                    runtime::log(format_args!("call {number} of {first:#x}, {second:#x}: {answer:x?}"));
                    return TAKEN;
                }
            }
        }
    }
    LEFT
}

/// Whether `answer` is what the kernel may say to these arguments.
fn is_right(call: Option<Call>, first: u64, second: u64, answer: Result<u64, Error>) -> bool {
    match call {
        None => answer == Err(Error::NoSuchCall),
        Some(Call::Now) => answer.is_ok(),
        // Nothing at all, from anywhere; and the last byte of the stack, which is there.
        Some(Call::Log) if second == 0 || (first == abi::STACK_TOP - 1 && second == 1) => true,
        // What there is of a short line may be the program's own.
        Some(Call::Log) => matches!(answer, Err(Error::BadAddress | Error::TooLong)),
        Some(Call::MapMemory) => match answer {
            // Given back at once, so that there is more.
            Ok(address) => (1..=abi::MEMORY_MAX).contains(&first) && give_back(address),
            Err(error) => error == Error::BadLength && !(1..=abi::MEMORY_MAX).contains(&first),
        },
        Some(_) => answer.is_err(),
    }
}

fn give_back(address: u64) -> bool {
    // SAFETY: nothing uses it.
    NonNull::new(address as *mut u8).is_some_and(|at| unsafe { runtime::unmap_memory(at) }.is_ok())
}

/// Takes all the memory that there is, gives it back, and does so again.
pub fn exhaust() -> u64 {
    take_and_give_back();
    take_and_give_back()
}

/// How many pages there were.
fn take_and_give_back() -> u64 {
    const MOST: usize = 256;
    let mut taken = [None; MOST];
    let (mut pages, mut count, mut bytes) = (0, 0, abi::MEMORY_MAX as usize);
    while bytes >= 4096 && count < MOST {
        match runtime::map_memory(bytes) {
            Ok(at) => {
                // SAFETY: just mapped, and as long.
                unsafe { at.as_ptr().add(bytes - 1).write_volatile(1) };
                taken[count] = Some(at);
                pages += bytes / 4096;
                count += 1;
            }
            Err(_) => bytes /= 2,
        }
    }
    for at in taken.into_iter().flatten() {
        // SAFETY: nothing uses it.
        if unsafe { runtime::unmap_memory(at) }.is_err() {
            return 0;
        }
    }
    pages as u64
}

/// Writes to memory that it has given back.
pub fn use_after_unmap() -> u64 {
    let Ok(at) = runtime::map_memory(1) else { return TAKEN };
    // SAFETY: the page is there for the first write. That it is not for the second is the point.
    unsafe {
        at.as_ptr().write_volatile(1);
        if runtime::unmap_memory(at).is_err() {
            return TAKEN;
        }
        at.as_ptr().write_volatile(2);
    }
    TAKEN
}

/// Whether there is anything in memory that the program gets; it leaves something in it for the next one.
pub fn look_for_leftovers() -> u64 {
    let bytes = abi::MEMORY_MAX as usize;
    let Ok(at) = runtime::map_memory(bytes) else { return TAKEN };
    // SAFETY: just mapped, as long, and nobody else's.
    let memory = unsafe { slice::from_raw_parts_mut(at.as_ptr(), bytes) };
    if memory.iter().any(|&byte| byte != 0) {
        return TAKEN;
    }
    memory.fill(0xa5);
    LEFT
}

/// Writes many lines. How many of them the kernel took.
pub fn flood() -> u64 {
    const LINES: u64 = 5000;
    let line = b"flood\n\x1b[2J";
    let arguments = [line.as_ptr() as u64, line.len() as u64, 0, 0, 0];
    let log = || {
        // SAFETY: the kernel reads the line.
        abi::decode(unsafe { runtime::call_raw(Registers { number: Call::Log as u64, arguments }) })
    };
    (0..LINES).filter(|_| log().is_ok()).count() as u64
}
