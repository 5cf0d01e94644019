//! Access to device registers: the only `unsafe` of this crate.
//!
//! A [`Register`] is checked once, when it is made from an [`Mmio`] window; after that an access is one volatile
//! instruction of exactly the register's width. Nothing else touches device memory.

use core::{fmt, marker::PhantomData, ptr::NonNull};

/// A mapped run of device registers.
///
/// Copies name the same registers: they are the device's, not memory of ours, and volatile access to them races with
/// nothing that the language knows.
#[derive(Clone)]
pub struct Mmio {
    base: NonNull<u8>,
    bytes: usize,
    /// Where accesses go instead, in tests against a device in software.
    #[cfg(test)]
    trap: Option<trap::Trap>,
}

// SAFETY: the mapping is valid on every CPU and for ever (see `Mmio::new`), and is only accessed by volatile
// operations on device registers.
unsafe impl Send for Mmio {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The `bytes` bytes of registers at `base`.
    ///
    /// # Safety
    /// The range is mapped uncached, readable and writable, for as long as the kernel runs; it holds device registers
    /// and no memory that Rust knows of.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self {
            base,
            bytes,
            #[cfg(test)]
            trap: None,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The `bytes` bytes from `offset`, or `None` if they are not all inside this window.
    #[must_use]
    pub fn window(&self, offset: usize, bytes: usize) -> Option<Self> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: `offset` is at most `self.bytes`, so the result is inside or one past the end of the mapping.
        let base = unsafe { self.base.add(offset) };
        Some(Self {
            base,
            bytes,
            #[cfg(test)]
            trap: self.trap.as_ref().map(|trap| trap.further(offset)),
        })
    }

    /// The register of type `T` at `offset`.
    ///
    /// # Errors
    /// It does not lie wholly inside the window, or is not aligned to its size.
    pub fn register<T: Word, A: Access>(&self, offset: usize) -> Result<Register<T, A>, OutsideWindow> {
        let outside = OutsideWindow { offset, width: size_of::<T>(), window_bytes: self.bytes };
        let window = self.window(offset, size_of::<T>()).ok_or(outside)?;
        let at = window.base.cast::<T>();
        if !at.is_aligned() {
            return Err(outside);
        }
        Ok(Register {
            at,
            _access: PhantomData,
            #[cfg(test)]
            trap: window.trap,
        })
    }
}

impl fmt::Debug for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mmio({} bytes)", self.bytes)
    }
}

/// A register that the device's window cannot hold: the window is too small, or the offset is misaligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideWindow {
    /// Byte offset of the register in the window.
    pub offset: usize,
    /// Width of the register in bytes.
    pub width: usize,
    /// Length of the window in bytes.
    pub window_bytes: usize,
}

impl fmt::Display for OutsideWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, width, window_bytes } = self;
        write!(
            f,
            "{width}-byte register at {offset:#x} does not fit into a window of {window_bytes:#x} bytes"
        )
    }
}

impl core::error::Error for OutsideWindow {}

/// One device register of width `T`, inside its window and aligned.
pub struct Register<T, A = ReadWrite> {
    at: NonNull<T>,
    _access: PhantomData<A>,
    #[cfg(test)]
    trap: Option<trap::Trap>,
}

// SAFETY: a register is part of an `Mmio` mapping, which is valid on every CPU and for ever; accesses are volatile and
// exactly as wide as the register.
unsafe impl<T: Word, A> Send for Register<T, A> {}
// SAFETY: as for `Send`.
unsafe impl<T: Word, A> Sync for Register<T, A> {}

impl<T: Word, A: Readable> Register<T, A> {
    /// Reads the register.
    #[inline]
    pub fn read(&self) -> T {
        #[cfg(test)]
        if let Some(trap) = &self.trap {
            return T::from_u64(trap.read(size_of::<T>()));
        }
        // SAFETY: `register` checked that the access lies inside its mapping and is aligned; any bit pattern is a `T`.
        unsafe { self.at.read_volatile() }
    }
}

impl<T: Word, A: Writable> Register<T, A> {
    /// Writes the register. Writes to memory that precede it in program order are visible to the device first.
    #[inline]
    pub fn write(&self, value: T) {
        #[cfg(test)]
        if let Some(trap) = &self.trap {
            return trap.write(size_of::<T>(), value.to_u64());
        }
        // The compiler may move plain stores past a volatile one; x86 then keeps the order of stores, also from
        // write-back memory to uncached registers.
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        // SAFETY: `register` checked that the access lies inside its mapping and is aligned.
        unsafe { self.at.write_volatile(value) }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The widths that a register can have.
pub trait Word: Copy + sealed::Sealed + 'static {
    /// The value with the low bits of `raw`.
    #[cfg(test)]
    fn from_u64(raw: u64) -> Self;
    /// The value as the low bits of a number.
    #[cfg(test)]
    fn to_u64(self) -> u64;
}

/// How a register may be used.
pub trait Access: sealed::Sealed + 'static {}

/// May be read.
pub trait Readable: Access {}

/// May be written.
pub trait Writable: Access {}

/// A register with no side effect worth a type: read and written.
pub enum ReadWrite {}

/// A register that only the device changes.
pub enum ReadOnly {}

/// A register that must not be read, such as a doorbell.
pub enum WriteOnly {}

macro_rules! words {
    ($($kind:ty),+) => {
        $(
            impl sealed::Sealed for $kind {}

            impl Word for $kind {
                #[cfg(test)]
                fn from_u64(raw: u64) -> Self {
                    raw as Self
                }

                #[cfg(test)]
                fn to_u64(self) -> u64 {
                    self.into()
                }
            }
        )+
    };
}

words!(u8, u16, u32, u64);

macro_rules! mark {
    ($($kind:ty: $($marker:ident),+;)+) => {
        $(impl sealed::Sealed for $kind {} $(impl $marker for $kind {})+)+
    };
}

mark! {
    ReadWrite: Access, Readable, Writable;
    ReadOnly: Access, Readable;
    WriteOnly: Access, Writable;
}

#[cfg(test)]
pub mod trap;

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn window() -> Mmio {
        let memory: &'static mut [u64; 4] = Box::leak(Box::new([0; 4]));
        // SAFETY: leaked and used by nothing else; ordinary memory behaves like a plain register.
        unsafe { Mmio::new(NonNull::from(memory).cast(), 32) }
    }

    #[test]
    fn registers_lie_inside_their_window() {
        let window = window();
        assert!(window.register::<u64, ReadWrite>(24).is_ok());
        let expected = OutsideWindow { offset: 28, width: 8, window_bytes: 32 };
        assert_eq!(window.register::<u64, ReadWrite>(28).err(), Some(expected));
        assert!(window.register::<u8, ReadWrite>(31).is_ok());
        assert!(window.register::<u8, ReadWrite>(32).is_err());
        assert!(window.register::<u32, ReadWrite>(usize::MAX - 3).is_err());
        assert!(window.register::<u32, ReadWrite>(2).is_err());
    }

    #[test]
    fn a_window_of_a_window_is_no_larger() {
        let window = window();
        let inner = window.window(8, 16).unwrap();
        assert_eq!(inner.bytes(), 16);
        assert!(inner.register::<u64, ReadWrite>(16).is_err());
        assert!(window.window(8, 25).is_none());
        assert!(window.window(usize::MAX, 2).is_none());
        assert!(window.window(32, 0).is_some());
    }

    #[test]
    fn an_access_touches_exactly_its_register() {
        let window = window();
        let low = window.register::<u32, ReadWrite>(8).unwrap();
        let high = window.register::<u32, ReadOnly>(12).unwrap();
        let both = window.register::<u64, WriteOnly>(8).unwrap();
        both.write(0x1122_3344_5566_7788);
        low.write(0xffff_ffff);
        assert_eq!((low.read(), high.read()), (0xffff_ffff, 0x1122_3344));
    }
}
