//! An 82574 in software, honest or not.

use std::{
    sync::{Arc, Mutex, Weak},
    vec,
    vec::Vec,
};

use iommu::platform::MsiMessage;

use super::host::{BAR_BYTES, Bench, TestHost};
use crate::{
    mmio::trap::Registers,
    pci::{ConfigSpace, fake::FakeFunction},
};

pub const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Where the MSI-X table is in BAR 0; its capability is at 0x40.
const TABLE: usize = 0x6000;

pub const CONTROL: usize = 0x0000;
const STATUS: usize = 0x0008;
const CAUSE: usize = 0x00c0;
const MASK_SET: usize = 0x00d0;
const MASK_CLEAR: usize = 0x00d8;
const AUTO_CLEAR: usize = 0x00dc;
const ENTRIES: usize = 0x00e4;
const RECEIVE_CONTROL: usize = 0x0100;
const TRANSMIT_CONTROL: usize = 0x0400;
const RECEIVE: usize = 0x2800;
const TRANSMIT: usize = 0x3800;

const MASTER_DISABLE: u32 = 1 << 2;
const RESET: u32 = 1 << 26;
const RECEIVED: u32 = 1 << 20;
const SENT: u32 = 1 << 22;
const OTHER: u32 = 1 << 24;
const LINK_CHANGED: u32 = 1 << 2;

/// What the controller does with the descriptors it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// What it should.
    Honest,
    /// Takes frames and never says that it has sent them.
    Silent,
    /// Says that it wrote this many bytes.
    Wrote(u16),
    /// Sets these bits of status and errors instead of those for a good frame.
    Says(u16),
    /// Writes where it may not, and calls it a success.
    Strays,
}

/// The controller. What it is like can be changed at any time.
pub struct E1000e {
    state: Mutex<State>,
    requester: vtd_model::Device,
    host: Weak<TestHost>,
}

/// Start of what is summed, and where the sum goes.
type Checksum = (u8, u8);

pub struct State {
    pub behaviour: Behaviour,
    /// It does not end its requests.
    pub restless: bool,
    /// It does not end its reset.
    pub hangs_in_reset: bool,
    /// It was pulled out: it reads as all ones.
    pub is_gone: bool,
    pub mac: [u8; 6],
    pub link: bool,
    /// What it has sent, with the checksum that it was to complete.
    pub sent: Vec<(Vec<u8>, Option<Checksum>)>,
    context: Checksum,
    registers: Vec<u32>,
    cause: u32,
    mask: u32,
    table: [u32; 8],
}

/// A machine with this controller in it.
pub fn bench() -> (Bench, Arc<E1000e>) {
    // Two MSI-X entries.
    let function = FakeFunction::new(0x10d3_8086, 0x0200_0000, 0).with(0x34, 0x40);
    let function = function.with(0x40, 0x11 | 1 << 16).writable(0x40, 0xc000_0000).with(0x44, TABLE as u32);
    let bench = Bench::new(function);
    let state = State {
        behaviour: Behaviour::Honest,
        restless: false,
        hangs_in_reset: false,
        is_gone: false,
        mac: ADDRESS,
        link: true,
        sent: vec![],
        context: (0, 0),
        registers: vec![0; TABLE / 4],
        cause: 0,
        mask: 0,
        table: [0; 8],
    };
    let host = Arc::downgrade(&bench.host);
    let device = Arc::new(E1000e { state: Mutex::new(state), requester: bench.requester.clone(), host });
    bench.plug(device.clone());
    (bench, device)
}

impl State {
    fn at(&mut self, offset: usize) -> &mut u32 {
        &mut self.registers[offset / 4]
    }

    /// Address, length, head and tail of a ring.
    fn ring(&mut self, at: usize) -> (u64, u32, u32, u32) {
        let base = u64::from(*self.at(at)) | u64::from(*self.at(at + 4)) << 32;
        (base, *self.at(at + 8) / 16, *self.at(at + 0x10), *self.at(at + 0x18))
    }

    fn may_move(&mut self) -> bool {
        *self.at(CONTROL) & MASTER_DISABLE == 0
    }

    fn control(&mut self, value: u32) {
        if value & RESET == 0 {
            *self.at(CONTROL) = value;
            return;
        }
        assert!(*self.at(CONTROL) & MASTER_DISABLE != 0, "requests are ended before the reset");
        self.registers.fill(0);
        (self.cause, self.mask, self.context) = (0, 0, (0, 0));
        if self.hangs_in_reset {
            *self.at(CONTROL) = RESET;
        }
    }
}

impl E1000e {
    /// Changes the controller.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    /// A frame arrives. False if the driver has left the controller no buffer.
    pub fn arrive(&self, frame: &[u8]) -> bool {
        let state = &mut *self.state.lock().unwrap();
        let (base, size, head, tail) = state.ring(RECEIVE);
        if *state.at(RECEIVE_CONTROL) & 2 == 0 || !state.may_move() || head == tail {
            return false;
        }
        let at = base + 16 * u64::from(head);
        let mut raw = [0; 8];
        let _ = self.requester.read(at, &mut raw);
        let buffer = u64::from_le_bytes(raw);
        let buffer = if state.behaviour == Behaviour::Strays { 0x66_6000 } else { buffer };
        let _ = self.requester.write(buffer, frame);
        let (mut bytes, mut says) = (frame.len() as u64, 3);
        match state.behaviour {
            Behaviour::Wrote(wrote) => bytes = wrote.into(),
            Behaviour::Says(bits) => says = bits.into(),
            _ => {}
        }
        let _ = self.requester.write(at + 8, &(bytes | says << 32).to_le_bytes());
        *state.at(RECEIVE + 0x10) = (head + 1) % size;
        self.raise(state, RECEIVED);
        true
    }

    /// The link comes or goes.
    pub fn change_link(&self, link: bool) {
        let state = &mut *self.state.lock().unwrap();
        state.link = link;
        self.raise(state, LINK_CHANGED | OTHER);
    }

    fn send(&self, state: &mut State) {
        loop {
            let (base, size, head, tail) = state.ring(TRANSMIT);
            if *state.at(TRANSMIT_CONTROL) & 2 == 0 || !state.may_move() || head == tail {
                return;
            }
            let at = base + 16 * u64::from(head);
            let mut raw = [0; 16];
            let _ = self.requester.read(at, &mut raw);
            let words = [0, 8].map(|half| u64::from_le_bytes(raw[half..half + 8].try_into().unwrap()));
            assert!(words[1] & 1 << 29 != 0, "an extended descriptor");
            if words[1] >> 20 & 0xf == 0 {
                let (start, field) = ((words[0] >> 32) as u8, (words[0] >> 40) as u8);
                state.context = (start, field);
            } else {
                let mut frame = vec![0; (words[1] & 0xf_ffff) as usize];
                let _ = self.requester.read(words[0], &mut frame);
                let checksum = (words[1] & 1 << 41 != 0).then_some(state.context);
                state.sent.push((frame, checksum));
                assert_eq!(words[1] >> 24 & 0xff, 0x2b, "a whole frame, reported");
                if state.behaviour != Behaviour::Silent {
                    let _ = self.requester.write(at + 8, &(words[1] | 1 << 32).to_le_bytes());
                    self.raise(state, SENT);
                }
            }
            *state.at(TRANSMIT + 0x10) = (head + 1) % size;
        }
    }

    fn raise(&self, state: &mut State, causes: u32) {
        state.cause |= causes;
        let entries = *state.at(ENTRIES);
        for (cause, field) in [(RECEIVED, 0), (SENT, 8), (OTHER, 16)] {
            let entry = entries >> field;
            if state.cause & state.mask & cause != 0 && entry & 8 != 0 {
                let cleared = cause & *state.at(AUTO_CLEAR);
                state.cause &= !cleared;
                state.mask &= !cleared;
                self.send_message(state, (entry & 7) as usize);
            }
        }
    }

    fn send_message(&self, state: &State, entry: usize) {
        let Some(host) = self.host.upgrade() else { return };
        let [low, high, data, control] = [0, 1, 2, 3].map(|word| state.table[4 * entry + word]);
        let on = host.space.read32(self.requester.address(), 0x40) & 0xc000_0000 == 0x8000_0000;
        if on && host.is_bus_master() && control & 1 == 0 {
            host.deliver(MsiMessage { address: u64::from(low) | u64::from(high) << 32, data });
        }
    }
}

impl Registers for E1000e {
    fn read(&self, offset: usize, width: usize) -> u64 {
        assert_eq!(width, 4);
        let state = &mut *self.state.lock().unwrap();
        if state.is_gone {
            return u32::MAX.into();
        }
        let [a, b, c, d, e, f] = state.mac;
        let value = match offset {
            STATUS => {
                let is_master = state.restless || state.may_move();
                u32::from(state.link) << 1 | u32::from(is_master) << 19
            }
            CAUSE => state.cause,
            0x5400 => u32::from_le_bytes([a, b, c, d]),
            0x5404 => u32::from_le_bytes([e, f, 0, 0x80]),
            TABLE..BAR_BYTES => state.table[(offset - TABLE) / 4],
            _ => *state.at(offset),
        };
        value.into()
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        assert_eq!(width, 4);
        let (state, value) = (&mut *self.state.lock().unwrap(), value as u32);
        match offset {
            _ if state.is_gone => {}
            CONTROL => state.control(value),
            CAUSE => state.cause &= !value,
            MASK_SET => {
                state.mask |= value;
                self.raise(state, 0);
            }
            MASK_CLEAR => state.mask &= !value,
            TABLE..BAR_BYTES => state.table[(offset - TABLE) / 4] = value,
            _ => {
                *state.at(offset) = value;
                if offset == TRANSMIT + 0x18 {
                    self.send(state);
                }
            }
        }
    }
}
