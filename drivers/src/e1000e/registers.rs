//! The registers of the controller that the driver uses, by the names of its data sheet.

use bitflags::bitflags;

use super::error::E1000eError;
use crate::{
    host::Host,
    mmio::{Mmio, OutsideWindow, ReadOnly, Register, WriteOnly},
    net::{Link, MacAddress},
};

/// How long the controller may take to end its requests, and for a reset.
const RESET_DEADLINE_NS: u64 = 2_000_000_000;
/// How long nobody may touch it after its reset has begun.
const SETTLE_NS: u64 = 1_000_000;

/// Words of the table of multicast addresses (MTA).
const MULTICAST_WORDS: usize = 128;

bitflags! {
    /// CTRL.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u32 {
        const MASTER_DISABLE = 1 << 2;
        const AUTO_SPEED = 1 << 5;
        const SET_LINK_UP = 1 << 6;
        const RESET = 1 << 26;
    }

    /// STATUS.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Status: u32 {
        const LINK_UP = 1 << 1;
        const MASTER_ENABLED = 1 << 19;
    }

    /// ICR, IMS, IMC, EIAC: why an interrupt is raised.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cause: u32 {
        const LINK_CHANGED = 1 << 2;
        const RECEIVED = 1 << 20;
        const SENT = 1 << 22;
        const OTHER = 1 << 24;
    }
}

/// RCTL: on, broadcasts too, buffers of 2048 bytes, check sequence taken off.
const RECEIVE_ON: u32 = 1 << 1 | 1 << 15 | 1 << 26;
/// TCTL: on, short frames padded, collision threshold and distance as the data sheet recommends.
const TRANSMIT_ON: u32 = 1 << 1 | 1 << 3 | 0x0f << 4 | 0x3f << 12;
/// RXCSUM: checksums of IP, and of TCP and UDP, are verified.
const VERIFY_CHECKSUMS: u32 = 1 << 8 | 1 << 9;
/// IVAR: which MSI-X entry is for what; bit 3 of each field makes it valid.
const ENTRIES: u32 = {
    const VALID: u32 = 8;
    let frames = super::FRAMES_ENTRY as u32 | VALID;
    let other = super::OTHER_ENTRY as u32 | VALID;
    frames | frames << 8 | other << 16
};
/// RAH: the address is valid.
const ADDRESS_VALID: u32 = 1 << 31;

/// The registers of one ring.
pub struct RingRegisters {
    base: [Register<u32>; 2],
    bytes: Register<u32>,
    head: Register<u32>,
    pub tail: Register<u32>,
}

impl RingRegisters {
    fn at(window: &Mmio, at: usize) -> Result<Self, OutsideWindow> {
        Ok(Self {
            base: [window.register(at)?, window.register(at + 4)?],
            bytes: window.register(at + 8)?,
            head: window.register(at + 0x10)?,
            tail: window.register(at + 0x18)?,
        })
    }

    /// Says where the ring is. It is empty.
    pub fn set(&self, iova: u64, bytes: u32) {
        self.base[0].write(iova as u32);
        self.base[1].write((iova >> 32) as u32);
        self.bytes.write(bytes);
        self.head.write(0);
        self.tail.write(0);
    }
}

/// The registers that the driver uses.
pub struct Registers {
    control: Register<u32>,
    status: Register<u32, ReadOnly>,
    cause: Register<u32>,
    interrupt_throttle: Register<u32>,
    mask_set: Register<u32>,
    mask_clear: Register<u32, WriteOnly>,
    auto_clear: Register<u32>,
    entries: Register<u32>,
    receive_control: Register<u32>,
    transmit_control: Register<u32>,
    pub receive: RingRegisters,
    pub transmit: RingRegisters,
    receive_checksum: Register<u32>,
    multicast: Mmio,
    address: [Register<u32, ReadOnly>; 2],
}

impl Registers {
    /// The registers in BAR 0.
    pub fn at(window: &Mmio) -> Result<Self, OutsideWindow> {
        const MULTICAST: usize = 0x5200;
        let multicast_bytes = 4 * MULTICAST_WORDS;
        let outside =
            OutsideWindow { offset: MULTICAST, width: multicast_bytes, window_bytes: window.bytes() };
        Ok(Self {
            control: window.register(0x0000)?,
            status: window.register(0x0008)?,
            cause: window.register(0x00c0)?,
            interrupt_throttle: window.register(0x00c4)?,
            mask_set: window.register(0x00d0)?,
            mask_clear: window.register(0x00d8)?,
            auto_clear: window.register(0x00dc)?,
            entries: window.register(0x00e4)?,
            receive_control: window.register(0x0100)?,
            transmit_control: window.register(0x0400)?,
            receive: RingRegisters::at(window, 0x2800)?,
            transmit: RingRegisters::at(window, 0x3800)?,
            receive_checksum: window.register(0x5000)?,
            multicast: window.window(MULTICAST, multicast_bytes).ok_or(outside)?,
            address: [window.register(0x5400)?, window.register(0x5404)?],
        })
    }

    /// Makes the controller quiet: when this returns `Ok` it has ended its requests and forgotten its rings.
    ///
    /// # Errors
    /// It did not say so in time.
    pub fn reset(&self, host: &dyn Host) -> Result<(), E1000eError> {
        self.mask_clear.write(u32::MAX);
        self.receive_control.write(0);
        self.transmit_control.write(0);
        // No new requests, and those that were begun are ended.
        let control = self.control() - Control::RESET;
        self.control.write((control | Control::MASTER_DISABLE).bits());
        self.wait(host, || !self.status().contains(Status::MASTER_ENABLED))?;
        self.control.write((self.control() | Control::RESET).bits());
        let settled_ns = host.now_ns().saturating_add(SETTLE_NS);
        while host.now_ns() < settled_ns {
            host.relax();
        }
        self.wait(host, || !self.control().contains(Control::RESET))?;
        self.mask_clear.write(u32::MAX);
        Ok(())
    }

    fn wait(&self, host: &dyn Host, is_done: impl Fn() -> bool) -> Result<(), E1000eError> {
        let deadline_ns = host.now_ns().saturating_add(RESET_DEADLINE_NS);
        while !is_done() {
            if host.now_ns() >= deadline_ns {
                let (control, status) = (self.control.read(), self.status.read());
                return Err(E1000eError::NotQuiet { control, status });
            }
            host.relax();
        }
        Ok(())
    }

    /// Sets up what does not change while the controller runs. The rings are set, the controller is reset.
    pub fn configure(&self) -> Result<(), OutsideWindow> {
        for word in 0..MULTICAST_WORDS {
            self.multicast.register::<u32, WriteOnly>(4 * word)?.write(0);
        }
        self.receive_checksum.write(VERIFY_CHECKSUMS);
        self.interrupt_throttle.write(0);
        self.entries.write(ENTRIES);
        self.auto_clear.write((Cause::RECEIVED | Cause::SENT | Cause::OTHER).bits());
        let control = self.control() - Control::MASTER_DISABLE;
        self.control.write((control | Control::AUTO_SPEED | Control::SET_LINK_UP).bits());
        Ok(())
    }

    /// Lets the controller move frames.
    pub fn start(&self) {
        self.receive_control.write(RECEIVE_ON);
        self.transmit_control.write(TRANSMIT_ON);
    }

    /// Whether it still answers, and still moves frames.
    pub fn is_running(&self) -> bool {
        const ON: u32 = 1 << 1;
        let receive = self.receive_control.read();
        receive != u32::MAX && receive & self.transmit_control.read() & ON != 0
    }

    /// Lets the controller raise interrupts for `causes`. Those that it has meanwhile it raises at once.
    pub fn unmask(&self, causes: Cause) {
        self.mask_set.write(causes.bits());
    }

    /// Takes note of a change of the link, and returns what it is now.
    pub fn link(&self) -> Link {
        let causes = Cause::LINK_CHANGED | Cause::OTHER;
        self.cause.write(causes.bits());
        self.unmask(causes);
        // Read after it was cleared: a change that comes now is another interrupt.
        let status = self.status();
        if status != Status::from_bits_retain(u32::MAX) && status.contains(Status::LINK_UP) {
            Link::Up
        } else {
            Link::Down
        }
    }

    /// The address that a reset has loaded, if one interface can have it.
    pub fn mac(&self) -> Option<MacAddress> {
        let [low, high] = [&self.address[0], &self.address[1]].map(|register| register.read());
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        let mac = MacAddress([a, b, c, d, e, f]);
        (high & ADDRESS_VALID != 0 && mac.is_usable()).then_some(mac)
    }

    fn control(&self) -> Control {
        Control::from_bits_retain(self.control.read())
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.status.read())
    }
}
