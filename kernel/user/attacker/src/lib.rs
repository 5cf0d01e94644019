//! What the attacker does, by the number it is started with: shared with the tests that say what has to come of it.
#![no_std]
#![forbid(unsafe_code)]

macro_rules! attacks {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What the attacker does.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u64)]
        pub enum Attack {
            $($(#[$doc])* $name,)+
        }

        impl Attack {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What its number is.
            #[must_use]
            pub fn from_number(number: u64) -> Option<Self> {
                Self::ALL.get(usize::try_from(number).ok()?).copied()
            }
        }
    };
}

attacks! {
    /// None: it exits with [`LEFT`].
    Nothing,
    /// Never gives the CPU back.
    Spin,
    /// Sleeps for ever.
    Sleep,
    /// Reads the kernel's memory in the direct map.
    ReadKernel,
    /// Writes where the kernel's code is.
    WriteKernel,
    /// Jumps to where the kernel's code is.
    ExecuteKernel,
    /// Reads where the target of a null pointer would be.
    ReadNull,
    /// Writes its own code.
    WriteCode,
    /// Executes its own stack.
    ExecuteStack,
    /// Uses more stack than it has.
    OverflowStack,
    /// Jumps to an address that is not canonical.
    JumpAstray,
    /// Divides by zero.
    Divide,
    /// Stops the CPU.
    Halt,
    /// Turns interrupts off.
    DisableInterrupts,
    /// Writes a port.
    Port,
    /// Writes a model-specific register.
    WriteMsr,
    /// Loads another page table.
    LoadTable,
    /// Sets a GS base.
    SetGsBase,
    /// Asks where the kernel's descriptors are.
    StoreDescriptors,
    /// Raises a vector that an interrupt has.
    RaiseInterrupt,
    /// Raises the vector of a breakpoint, by its long form.
    RaiseException,
    /// Traces itself.
    Trace,
    /// Uses SSE.
    Sse,
    /// Uses the x87.
    X87,
    /// Calls the kernel by `syscall`.
    Syscall,
    /// Calls the kernel by `sysenter`.
    Sysenter,
    /// Leaves flags and segments as the kernel would not have them, and calls it: exits with [`LEFT`].
    Flags,
    /// Looks for a while whether any register changes by itself: exits with [`LEFT`] if none does.
    Registers,
    /// Makes every call with every kind of argument: exits with [`LEFT`] if none is answered as if it were right.
    Calls,
    /// Takes all the memory that it gets, twice: exits with the number of pages that it got the second time.
    Exhaust,
    /// Uses memory after it gave it back.
    UseAfterUnmap,
    /// Looks for something in new memory: exits with [`LEFT`] if there is nothing.
    Leftovers,
    /// Writes far more lines than it may: exits with the number of those that were taken.
    Flood,
    /// Panics.
    Panic,
    /// Has its device, an `edu`, copy memory that they share, and waits for its interrupt: exits with [`LEFT`] if all
    /// is as it should be.
    EduCopies,
    /// Has it read and write the kernel's memory, by its physical address: exits with [`LEFT`] when it has tried.
    EduReachesKernel,
    /// The same by the address of the kernel's code.
    EduReachesKernelsHalf,
    /// The same by an address of the kernel's direct map.
    EduReachesDirectMap,
    /// Has it write memory that it had before, and no more: exits with [`LEFT`] if it finds nothing there.
    EduReachesWhatItHad,
    /// Has it write memory that it may only read: exits with [`LEFT`] if it finds nothing there.
    EduWritesWhatItMayRead,
    /// Reads what is behind its registers.
    EduBeyondRegisters,
    /// As `Calls`, with a device to make them about.
    EduCalls,
    /// Keeps it writing to memory for ever.
    EduWritesForEver,
    /// Has it, which has the program's addresses, read and write the program's code: exits with [`LEFT`] if it could be
    /// read.
    EduWritesCode,
    /// Takes and gives back memory that it uses, again and again: exits with [`LEFT`] if there is always some.
    EduChurns,
    /// Makes a disk of its device, and says of [`DISK_REQUESTS`] requests also what is not so: exits with [`LEFT`] if
    /// none of it was taken for an answer.
    DiskLies,
    /// Makes a disk of its device, and answers no request.
    DiskNeverAnswers,
    /// Makes a disk of its device, which it was not given for that: exits with [`LEFT`] if it is refused.
    DiskUninvited,
}

/// How many requests [`Attack::DiskLies`] answers, and what it says that there is on its disk.
pub const DISK_REQUESTS: u64 = 4;
pub const DISK_BYTE: u8 = 0x5a;

/// What the attacker exits with if nothing came of it, and it would have noticed.
pub const LEFT: u64 = 42;

/// What it exits with if something was refused that should not be, or did not happen in time.
pub const REFUSED: u64 = 3;

/// RAM at 64 MiB in the kernel's direct map, by its layout.
pub const DIRECT_MAP: u64 = 0xffff_8000_0400_0000;
/// Where the kernel's code begins, by its linker script.
pub const KERNEL_CODE: u64 = 0xffff_ffff_8020_0000;
