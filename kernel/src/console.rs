//! The serial line: human text out, keys in.

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use x86::io::{inb, outb};

use crate::{
    arch::clock,
    sync::{IrqMutex, Rank, assert_not_in_interrupt},
};

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

const DATA_READY: u8 = 1 << 0;
const TRANSMIT_EMPTY: u8 = 1 << 5;

/// The ISA interrupt of the first serial port.
pub const ISA_IRQ: u8 = 4;

/// A 16550 that may not be there, or not take any more.
struct Serial {
    /// It once did not take a byte in time: later bytes are not waited for, so that output costs no time.
    stuck: bool,
}

static SERIAL: IrqMutex<Serial> = IrqMutex::new(Rank::Console, Serial { stuck: false });

impl Serial {
    /// 115200 baud, 8 bits, no parity, FIFO on, interrupts off.
    fn init(&mut self) {
        const DIVISOR_ACCESS: u8 = 1 << 7;
        const EIGHT_BITS: u8 = 0b11;
        const FIFO_ENABLE_AND_CLEAR: u8 = 0b111;
        /// Data terminal ready, request to send, and output 2, which lets interrupts through.
        const READY: u8 = 0b1011;
        // SAFETY: these ports belong to the serial port or to nothing, and the lock is held.
        unsafe {
            outb(INTERRUPT_ENABLE, 0);
            outb(LINE_CONTROL, DIVISOR_ACCESS);
            outb(DATA, 1);
            outb(INTERRUPT_ENABLE, 0);
            outb(LINE_CONTROL, EIGHT_BITS);
            outb(FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR);
            outb(MODEM_CONTROL, READY);
        }
    }

    fn send(&mut self, byte: u8) {
        // Long enough for a byte at 115200 baud many times over, however slow a port read is.
        const ROUNDS_MAX: u32 = 1_000_000;
        let rounds = if self.stuck { 1 } else { ROUNDS_MAX };
        for _ in 0..rounds {
            // SAFETY: reading the line status has no effect on what is received or sent.
            if unsafe { inb(LINE_STATUS) } & TRANSMIT_EMPTY != 0 {
                self.stuck = false;
                // SAFETY: the port takes a byte.
                unsafe { outb(DATA, byte) };
                return;
            }
        }
        self.stuck = true;
    }

    fn receive(&mut self) -> Option<u8> {
        // SAFETY: reading these registers takes a byte out of the FIFO and has no other effect.
        unsafe { (inb(LINE_STATUS) & DATA_READY != 0).then(|| inb(DATA)) }
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}

/// Lines logged so far.
static LINES: AtomicU64 = AtomicU64::new(0);

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            assert_not_in_interrupt("log");
            LINES.fetch_add(1, Ordering::Relaxed);
            let now_us = clock::now_ns() / 1000;
            let (s, us) = (now_us / 1_000_000, now_us % 1_000_000);
            let Some(module) = record.target().split("::").next() else { return };
            print(format_args!("[{s:4}.{us:06}] {:5} {module}: {}\n", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Starts the console and directs the `log` crate to it.
pub fn init() {
    SERIAL.lock().init();
    // Fails only if a logger is already set.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// Lines that were logged so far.
pub fn lines() -> u64 {
    LINES.load(Ordering::Relaxed)
}

/// Writes text. One call is not interleaved with others.
pub fn print(text: fmt::Arguments<'_>) {
    // Writing to the line never fails.
    let _ = SERIAL.lock().write_fmt(text);
}

/// Writes text although the line's owner may have died with the lock: only for the end of the machine.
pub fn print_at_end(text: fmt::Arguments<'_>) {
    const TRIES: usize = 1_000_000;
    let _ = match SERIAL.try_lock_for(TRIES) {
        Some(mut serial) => serial.write_fmt(text),
        None => Serial { stuck: false }.write_fmt(text),
    };
}

/// Makes the port raise its interrupt for every byte received.
pub fn enable_receive_interrupt() {
    const RECEIVED: u8 = 1;
    let _serial = SERIAL.lock();
    // SAFETY: the port is ours while the lock is held.
    unsafe { outb(INTERRUPT_ENABLE, RECEIVED) };
}

/// Makes the port raise its interrupt once, of which it then knows nothing any more: that it could send something.
pub fn raise_interrupt() {
    const RECEIVED: u8 = 1;
    const SENT: u8 = 1 << 1;
    let _serial = SERIAL.lock();
    // SAFETY: the port is ours while the lock is held.
    unsafe {
        outb(INTERRUPT_ENABLE, RECEIVED | SENT);
        outb(INTERRUPT_ENABLE, RECEIVED);
    }
}

/// The next byte received, if there is one.
pub fn receive() -> Option<u8> {
    SERIAL.lock().receive()
}

/// Prints a line on the console, without the log's prefix.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(::core::format_args!("\n")) };
    ($($argument:tt)+) => {
        $crate::console::print(::core::format_args!("{}\n", ::core::format_args!($($argument)+)))
    };
}

/// Prints text on the console, without the log's prefix.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(::core::format_args!($($argument)*)) };
}
