//! The calls by which programs in ring 3 ask the kernel for something: all that both have to agree on.
//!
//! A program puts the number of a [`Call`] into RAX, its arguments into RDI, RSI, RDX, R10 and R8, executes `int` with
//! [`VECTOR`], and finds the answer in RAX; every other register stays as it is. An answer is a number up to
//! [`ANSWER_MAX`], or the negative of an [`Error`]. Addresses are the program's own, lengths are in bytes, times in
//! nanoseconds since boot. What a call does not take is ignored. Nothing that a program passes is believed: the kernel
//! checks every argument, and an address that the program itself could not use as it asks for is [`Error::BadAddress`].
//!
//! | call              | arguments                    | answer                        | errors                             |
//! |-------------------|------------------------------|-------------------------------|------------------------------------|
//! | `Exit`            | code                         | none: the program has ended   |                                    |
//! | `Log`             | address, length              | 0                             | `BadAddress`, `TooLong`, `TooOften`|
//! | `MapMemory`       | length                       | address of new, zeroed memory | `BadLength`, `OutOfMemory`         |
//! | `UnmapMemory`     | address                      | 0                             | `BadAddress`, `InUse`              |
//! | `ProtectMemory`   | address, 1 to write it or 0  | 0                             | `BadAddress`, `DeviceLost`         |
//! | `Now`             |                              | the time                      |                                    |
//! | `SleepUntil`      | time                         | 0                             |                                    |
//! | `ConfigRead`      | device, offset               | the dword there               | `NoSuchDevice`, `BadAddress`       |
//! | `BarBytes`        | device, BAR                  | its length                    | `NoSuchDevice`, `NotLendable`      |
//! | `MapBar`          | device, BAR                  | address of its registers      | the same, `InUse`, `OutOfMemory`   |
//! | `HasSpace`        | device                       | 1 if it has, 0 if not         | `NoSuchDevice`                     |
//! | `Share`           | device, address, IOVA, way   | 0                             | `NoSuchDevice`, `SpaceShared`, `BadAddress`, `BadIova`, `InUse`, `OutOfMemory`, `DeviceLost` |
//! | `Unshare`         | device, IOVA                 | 0                             | `NoSuchDevice`, `BadIova`, `DeviceLost` |
//! | `Interrupts`      | device                       | how many it has               | `NoSuchDevice`                     |
//! | `Await`           | device, events, time         | those that came               | `NoSuchDevice`, `NoSuchEvent`      |
//! | `Serve`           | device, address              | 0                             | `NoSuchDevice`, `NotAllowed`, `BadAddress`, `BadLength`, `OutOfMemory`, `InUse` |
//! | `TakeRequest`     | device, address, data        | 1 if there was one, 0 if not  | `NoSuchDevice`, `NotServing`, `BadAddress` |
//! | `CompleteRequest` | device, request, outcome, code, data | 0                     | `NoSuchDevice`, `NotServing`, `NoSuchRequest`, `NoSuchOutcome`, `BadAddress` |
//!
//! Devices are those that the process was given when it was started, by number from 0: there is no way to others. A BAR
//! is mapped as a whole, but for the pages that the tables of MSI-X are in: they are not there. What is in it is
//! registers, uncached; or memory, which display controllers have in prefetchable BARs: that is all zeros at first, and
//! the CPU may combine what is written there, until a fence. What is shared is memory from `MapMemory`, all of it, from
//! the IOVA on, with a [`DeviceAccess`] as its way; the program goes on seeing it, and cannot give it back meanwhile.
//!
//! A device may have the address space of the program instead: its addresses are the program's, and it reads and writes
//! what the program can, and nothing else. Then memory is shared with it when it is there, and not any more when it is
//! given back. What was given back then, or was shared before, is the program's for another `MapMemory` of as many
//! pages, and nobody else's as long as the program has its devices: it is zeroed, but a device that was told to write
//! there before may not be done.
//!
//! Events are bits: that of interrupt `n` is `1 << n`, and [`EVENT_REQUEST`] and [`EVENT_RESET`] are those of a device
//! that is served. An interrupt that came before it is waited for is not lost; it is told once. The others are told for
//! as long as they are so.
//!
//! `Serve` makes a block device of a device that the program was started to make one of: what it is like, a
//! [`BlockOffer`], is at the address. From then on others have requests for it. `TakeRequest` hands one over: a
//! [`BlockRequest`] at the address, and what is to be written at `data`, which therefore has room for the longest.
//! `CompleteRequest` says by a [`BlockOutcome`] how it ended, with the device's own `code` for it; if it was done, what
//! was read is taken from `data`. A request that is not completed within ten seconds is the end of the program. On
//! [`EVENT_RESET`] it has the device forget all that it has, and says so by another `Serve` with the same offer, within
//! the same time; the requests that it has taken before are none any more.
//!
//! A program starts at the entry point of its file with one number as its argument (in RDI), on a stack of
//! [`STACK_BYTES`]. It has neither x87 nor SSE. What it does that the CPU does not let it do is its end; a number that
//! is no call's is [`Error::NoSuchCall`].
#![no_std]
#![forbid(unsafe_code)]

use core::ops::Range;

/// The vector of the gate. Only this one can be raised from ring 3.
pub const VECTOR: u8 = 0xf3;

/// The largest answer that is no error.
pub const ANSWER_MAX: u64 = i64::MAX as u64;

/// Where a program's file may want to be: in the lowest 2 GiB, so that code of any code model works, but not at their
/// start, where the target of a null pointer is.
pub const IMAGE: Range<u64> = 0x20_0000..0x4000_0000;
/// The first address behind a program's stack.
pub const STACK_TOP: u64 = 0x7fff_f000;
/// How long the stack is. Nothing is mapped for as much again below it.
pub const STACK_BYTES: u64 = 64 << 10;
/// Where `MapMemory` finds addresses. Each is given out once in a program's life.
pub const MEMORY: Range<u64> = 1 << 32..1 << 46;

const _: () = {
    assert!(IMAGE.end <= STACK_TOP - 2 * STACK_BYTES && STACK_TOP < MEMORY.start && MEMORY.end < 1 << 47);
    assert!(is_user(IMAGE.start) && is_user(STACK_TOP) && is_user(MEMORY.end - 1));
    assert!(!is_user(0) && !is_user(MEMORY.end) && !is_user(u64::MAX));
};

/// How much `MapMemory` gives at once.
pub const MEMORY_MAX: u64 = 1 << 20;
/// How long a line of `Log` may be.
pub const LOG_MAX: usize = 200;

/// Whether a program may have anything at `address`: from the start of [`IMAGE`] to the end of [`MEMORY`].
#[must_use]
pub const fn is_user(address: u64) -> bool {
    address >= IMAGE.start && address < MEMORY.end
}

/// The registers of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// The call's.
    pub number: u64,
    /// RDI, RSI, RDX, R10 and R8.
    pub arguments: [u64; 5],
}

macro_rules! numbered {
    ($(#[$of:meta])* $name:ident: $($(#[$doc:meta])* $variant:ident = $number:literal,)+) => {
        $(#[$of])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u64)]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The one with this number.
            #[must_use]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// What a program can ask for. The module's table says what each takes and answers.
    Call:
    /// Ends the program.
    Exit = 0,
    /// Writes a line to the kernel's log. What is not printable is shown as a dot.
    Log = 1,
    /// New memory: zeroed, writable, not executable, in whole pages, and of a length up to [`MEMORY_MAX`].
    MapMemory = 2,
    /// Gives memory from `MapMemory` back.
    UnmapMemory = 3,
    /// Lets the program write memory from `MapMemory`, or read it only; and devices that have its address space.
    ProtectMemory = 4,
    /// What time it is.
    Now = 5,
    /// Waits.
    SleepUntil = 6,
    /// Reads the configuration space of a device.
    ConfigRead = 7,
    /// How long a BAR is.
    BarBytes = 8,
    /// Shows the program a device's registers, once each.
    MapBar = 9,
    /// Whether a device has the address space of the program.
    HasSpace = 10,
    /// Lets a device reach memory from `MapMemory`.
    Share = 11,
    /// Takes from a device what it can reach at an IOVA. When this returns, it can no more.
    Unshare = 12,
    /// How many interrupts a device has for the program.
    Interrupts = 13,
    /// Waits until one of the events is there, or for the time.
    Await = 14,
    /// Makes a block device of a device, or takes requests again after a reset.
    Serve = 15,
    /// Takes a request for a device that is served.
    TakeRequest = 16,
    /// Says how a request ended that was taken.
    CompleteRequest = 17,
}

numbered! {
    /// Why the kernel does not do what a program asks for.
    Error:
    /// The program has nothing at the address, or not that much, or may not use it so.
    BadAddress = 1,
    /// The length is 0 or more than the call takes.
    BadLength = 2,
    /// The program has as much as it may have, or there is no more.
    OutOfMemory = 3,
    /// A line has more than [`LOG_MAX`] bytes.
    TooLong = 4,
    /// The program has written more lines than it may in this time.
    TooOften = 5,
    /// A device has it.
    InUse = 6,
    /// The number is no call's.
    NoSuchCall = 7,
    /// The process was given no device of this number.
    NoSuchDevice = 8,
    /// The IOVA is not the start of a page, or in use, or beyond what there is.
    BadIova = 9,
    /// There is no such BAR, or it is none of which anything can be mapped.
    NotLendable = 10,
    /// The device was taken away, or does not answer.
    DeviceLost = 11,
    /// The device has no such event, or none was asked for.
    NoSuchEvent = 12,
    /// The program does not serve the device.
    NotServing = 13,
    /// The program has no request of this number.
    NoSuchRequest = 14,
    /// A request cannot end so.
    NoSuchOutcome = 15,
    /// The process was not given the device to make a block device of it.
    NotAllowed = 16,
    /// The device has the address space of the program: there is nothing to share piece by piece.
    SpaceShared = 17,
}

numbered! {
    /// What a device may do with memory.
    DeviceAccess:
    /// Read it.
    Read = 1,
    /// Write it.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

numbered! {
    /// What a request asks for.
    BlockOperation:
    /// To read blocks.
    Read = 1,
    /// To write blocks.
    Write = 2,
    /// To make durable what was written.
    Flush = 3,
    /// To forget what is in blocks.
    Deallocate = 4,
}

numbered! {
    /// How a request ended.
    BlockOutcome:
    /// It was done.
    Done = 0,
    /// The medium could not be read or written.
    Medium = 1,
    /// The device does not know the request, or something in it.
    Unsupported = 2,
    /// Otherwise.
    Failed = 3,
}

/// The event that there is a request to take.
pub const EVENT_REQUEST: u64 = 1 << 16;
/// The event that a device is to be reset.
pub const EVENT_RESET: u64 = 1 << 17;

/// What a block device is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockOffer {
    /// Size of a block in bytes: a power of two from 512 to 4096.
    pub block_bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Most blocks that are read or written by a request.
    pub blocks_per_request: u64,
    /// Most blocks that one deallocates; 0 if none does.
    pub blocks_per_deallocation: u64,
    /// Most requests at a time.
    pub depth: u64,
    /// Nothing can be written.
    pub is_read_only: bool,
    /// What is done may be lost until it is flushed.
    pub flushes: bool,
}

impl BlockOffer {
    /// Length in memory, in words.
    pub const WORDS: usize = 6;

    /// As it is in memory.
    #[must_use]
    pub fn encode(self) -> [u64; Self::WORDS] {
        let flags = u64::from(self.is_read_only) | u64::from(self.flushes) << 1;
        let Self { block_bytes, blocks, blocks_per_request, blocks_per_deallocation, depth, .. } = self;
        [block_bytes, blocks, blocks_per_request, blocks_per_deallocation, depth, flags]
    }

    /// What is in memory, whatever it says.
    #[must_use]
    pub fn decode(words: [u64; Self::WORDS]) -> Self {
        let [block_bytes, blocks, blocks_per_request, blocks_per_deallocation, depth, flags] = words;
        let (is_read_only, flushes) = (flags & 1 != 0, flags & 2 != 0);
        Self {
            block_bytes,
            blocks,
            blocks_per_request,
            blocks_per_deallocation,
            depth,
            is_read_only,
            flushes,
        }
    }
}

/// A request for a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRequest {
    /// Its number, which no other one has.
    pub id: u64,
    /// What to do.
    pub operation: BlockOperation,
    /// The first block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// If it is not 0, the data are at this IOVA and nowhere else: somebody tries whether the device reaches what it
    /// should not.
    pub at: u64,
}

impl BlockRequest {
    /// Length in memory, in words.
    pub const WORDS: usize = 5;

    /// As it is in memory.
    #[must_use]
    pub const fn encode(self) -> [u64; Self::WORDS] {
        [self.id, self.operation as u64, self.first, self.blocks, self.at]
    }

    /// What is in memory; `None` if the operation is none.
    #[must_use]
    pub fn decode(words: [u64; Self::WORDS]) -> Option<Self> {
        let [id, operation, first, blocks, at] = words;
        Some(Self { id, operation: BlockOperation::from_number(operation)?, first, blocks, at })
    }
}

/// The answer that says so.
#[must_use]
pub const fn encode(answer: Result<u64, Error>) -> u64 {
    match answer {
        Ok(value) => value,
        Err(error) => (error as u64).wrapping_neg(),
    }
}

/// What an answer says.
///
/// # Errors
/// The kernel has not done it. A number that is no error's is taken for [`Error::BadAddress`]; the kernel gives none.
pub const fn decode(answer: u64) -> Result<u64, Error> {
    if answer <= ANSWER_MAX {
        return Ok(answer);
    }
    match Error::from_number(answer.wrapping_neg()) {
        Some(error) => Err(error),
        None => Err(Error::BadAddress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_was_put_into_them() {
        for value in [0, 1, ANSWER_MAX] {
            assert_eq!(decode(encode(Ok(value))), Ok(value));
        }
        for &error in Error::ALL {
            assert_eq!(decode(encode(Err(error))), Err(error));
        }
    }

    #[test]
    fn offers_and_requests_are_in_memory_as_they_are() {
        let offer = BlockOffer {
            block_bytes: 512,
            blocks: 2,
            blocks_per_request: 3,
            blocks_per_deallocation: 4,
            depth: 5,
            is_read_only: false,
            flushes: true,
        };
        assert_eq!(BlockOffer::decode(offer.encode()), offer);
        assert_eq!(offer.encode(), [512, 2, 3, 4, 5, 2]);
        let request = BlockRequest { id: 9, operation: BlockOperation::Write, first: 1, blocks: 2, at: 3 };
        assert_eq!(BlockRequest::decode(request.encode()), Some(request));
        assert_eq!(BlockRequest::decode([9, 0, 1, 2, 3]), None);
    }

    #[test]
    fn a_number_is_one_call() {
        for &call in Call::ALL {
            assert_eq!(Call::from_number(call as u64), Some(call));
        }
        assert_eq!(Call::from_number(Call::ALL.len() as u64), None);
        assert_eq!(Call::from_number(u64::MAX), None);
    }
}
