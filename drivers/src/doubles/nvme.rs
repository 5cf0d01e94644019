//! An NVMe controller in software with an admin queue, honest or not.

use std::{
    sync::{Arc, Mutex, Weak},
    vec::Vec,
};

use iommu::platform::MsiMessage;

use super::host::{BAR_BYTES, Bench, TestHost};
use crate::{
    mmio::trap::Registers,
    pci::{ConfigSpace, fake::FakeFunction},
};

/// Where the MSI-X table is in BAR 0; its capability is at 0x40.
const TABLE: usize = 0x4000;
const DOORBELLS: usize = 0x1000;

/// 64 entries, 1 s to become ready, NVM commands, pages of 4 KiB.
pub const CAPABILITIES: u64 = 63 | 2 << 24 | 1 << 37;

/// What the controller does with the commands it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// What it should.
    Honest,
    /// Takes commands and does nothing with them.
    Silent,
    /// Names another command.
    WrongId(u16),
    /// Names another queue.
    OtherQueue(u16),
    /// Reports this status.
    Status(u16),
    /// Also writes where it may not, and calls it a success.
    Strays,
}

/// The controller. What it is like can be changed at any time.
pub struct Nvme {
    state: Mutex<State>,
    requester: vtd_model::Device,
    host: Weak<TestHost>,
}

pub struct State {
    pub behaviour: Behaviour,
    pub capabilities: u64,
    /// It does not become ready.
    pub lame: bool,
    /// It does not become quiet.
    pub restless: bool,
    /// Commands that it has had.
    pub commands: usize,
    configuration: u32,
    ready: bool,
    attributes: u32,
    submission: u64,
    completion: u64,
    head: u32,
    tail: u32,
    phase: bool,
    table: [u32; 4],
}

/// Configuration space of the controller.
pub fn function() -> FakeFunction {
    let function = FakeFunction::new(0x0010_1b36, 0x0108_0200, 0).with(0x34, 0x40);
    function.with(0x40, 0x11).writable(0x40, 0xc000_0000).with(0x44, TABLE as u32)
}

/// A machine with this controller in it.
pub fn bench() -> (Bench, Arc<Nvme>) {
    let bench = Bench::new(function());
    let state = State {
        behaviour: Behaviour::Honest,
        capabilities: CAPABILITIES,
        lame: false,
        restless: false,
        commands: 0,
        configuration: 0,
        ready: false,
        attributes: 0,
        submission: 0,
        completion: 0,
        head: 0,
        tail: 0,
        phase: true,
        table: [0; 4],
    };
    let host = Arc::downgrade(&bench.host);
    let device = Arc::new(Nvme { state: Mutex::new(state), requester: bench.requester.clone(), host });
    bench.plug(device.clone());
    (bench, device)
}

impl Nvme {
    /// Changes the controller.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    fn configure(&self, state: &mut State, value: u32) {
        state.configuration = value;
        if value & 1 == 0 {
            state.ready = state.restless && state.ready;
            return;
        }
        assert_eq!(value, 0x0046_0001, "entries of 64 and 16 bytes, pages of 4 KiB");
        (state.head, state.tail, state.phase) = (0, 0, true);
        state.ready = !state.lame;
    }

    /// Takes the commands up to `tail`.
    fn run(&self, state: &mut State, tail: u32) {
        let size = (state.attributes & 0xfff) + 1;
        assert!(state.ready && tail < size);
        while state.head != tail {
            let mut command = [0_u8; 64];
            let _ = self.requester.read(state.submission + 64 * u64::from(state.head), &mut command);
            state.head = (state.head + 1) % size;
            state.commands += 1;
            if state.behaviour != Behaviour::Silent {
                self.serve(state, command, size);
            }
        }
    }

    fn serve(&self, state: &mut State, command: [u8; 64], size: u32) {
        let prp = u64::from_le_bytes(command[24..32].try_into().unwrap());
        assert_eq!((command[0], command[40]), (0x06, 1), "Identify Controller");
        let mut page = [b' '; 4096];
        page[..2].copy_from_slice(&[0x36, 0x1b]);
        page[24..30].copy_from_slice(b"double");
        // It does not care whether it gets through.
        let _ = self.requester.write(prp, &page);
        if state.behaviour == Behaviour::Strays {
            let _ = self.requester.write(0x66_6000, &page);
        }
        let mut id = u16::from_le_bytes([command[2], command[3]]);
        let (mut queue, mut status) = (0, 0);
        match state.behaviour {
            Behaviour::WrongId(wrong) => id = wrong,
            Behaviour::OtherQueue(other) => queue = other,
            Behaviour::Status(code) => status = code,
            _ => {}
        }
        let dwords = [
            0,
            0,
            u32::from(queue) << 16 | state.head,
            u32::from(id) | u32::from(state.phase) << 16 | u32::from(status) << 17,
        ];
        let entry: Vec<u8> = dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        let _ = self.requester.write(state.completion + 16 * u64::from(state.tail), &entry);
        state.tail = (state.tail + 1) % size;
        state.phase ^= state.tail == 0;
        self.raise(state);
    }

    fn raise(&self, state: &State) {
        let Some(host) = self.host.upgrade() else { return };
        let on = host.space.read32(self.requester.address(), 0x40) & 0xc000_0000 == 0x8000_0000;
        if on && host.is_bus_master() && state.table[3] & 1 == 0 {
            let address = u64::from(state.table[0]) | u64::from(state.table[1]) << 32;
            host.deliver(MsiMessage { address, data: state.table[2] });
        }
    }
}

impl Registers for Nvme {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let state = self.state.lock().unwrap();
        match (offset, width) {
            (0x00, 8) => state.capabilities,
            (0x08, 4) => 0x0001_0400,
            (0x14, 4) => state.configuration.into(),
            (0x1c, 4) => state.ready.into(),
            (TABLE..BAR_BYTES, 4) => state.table[(offset - TABLE) / 4].into(),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        match (offset, width) {
            (0x14, 4) => self.configure(&mut state, value as u32),
            (0x24, 4) => state.attributes = value as u32,
            (0x28, 8) => state.submission = value,
            (0x30, 8) => state.completion = value,
            (DOORBELLS, 4) => self.run(&mut state, value as u32),
            (0x1004, 4) => {}
            (TABLE..BAR_BYTES, 4) => state.table[(offset - TABLE) / 4] = value as u32,
            _ => panic!("write to {offset:#x}"),
        }
    }
}
