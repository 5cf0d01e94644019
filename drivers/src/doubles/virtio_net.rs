//! A virtio network device in software, honest or not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    vec,
    vec::Vec,
};

use super::{
    host::{BAR_BYTES, Bench, TestHost},
    virtio::{self, ACCESS_PLATFORM, COMMON, DEVICE, DeviceRegisters, NEEDS_RESET, NOTIFY, TABLE, VERSION_1},
};
use crate::{mmio::trap::Registers, pci::fake::FakeFunction};

pub const CHECKSUM: u64 = 1 << 0;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const STATUS: u64 = 1 << 16;

pub const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

const HEADER: usize = 12;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// What the device does with the buffers it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// What it should.
    Honest,
    /// Takes frames and never says that it has sent them.
    Silent,
    /// Names a chain that it was not given.
    WrongHead(u32),
    /// Moves the used index this much further than it should.
    Jump(u16),
    /// Says that it wrote this many bytes.
    Wrote(u32),
    /// Asks for a reset.
    AsksForReset,
    /// Writes where it may not, and calls it a success.
    Strays,
}

/// The device. What it is like can be changed at any time.
pub struct VirtioNet {
    state: Mutex<State>,
    requester: vtd_model::Device,
    host: Weak<TestHost>,
}

pub struct State {
    pub offered: u64,
    pub behaviour: Behaviour,
    /// It does not become quiet when it is reset.
    pub restless: bool,
    pub mac: [u8; 6],
    pub mtu: u16,
    pub link: u16,
    /// What it has sent, header and frame.
    pub sent: Vec<Vec<u8>>,
    /// Chains with empty buffers, not used yet.
    empty: VecDeque<u16>,
    pub doorbells: usize,
    registers: DeviceRegisters<2>,
}

/// A machine with this device in it.
pub fn bench() -> (Bench, Arc<VirtioNet>) {
    bench_with(virtio::function(0x1041_1af4, 0x0200_0001))
}

/// A machine with this device behind another configuration space.
pub fn bench_with(function: FakeFunction) -> (Bench, Arc<VirtioNet>) {
    let bench = Bench::new(function);
    let state = State {
        offered: VERSION_1 | ACCESS_PLATFORM | CHECKSUM | MAC | STATUS,
        behaviour: Behaviour::Honest,
        restless: false,
        mac: ADDRESS,
        mtu: 1500,
        link: 1,
        sent: vec![],
        empty: VecDeque::new(),
        doorbells: 0,
        registers: DeviceRegisters::default(),
    };
    let host = Arc::downgrade(&bench.host);
    let device = Arc::new(VirtioNet { state: Mutex::new(state), requester: bench.requester.clone(), host });
    bench.plug(device.clone());
    (bench, device)
}

impl VirtioNet {
    /// Changes the device.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    /// A frame arrives. False if the driver has left the device no buffer.
    pub fn arrive(&self, frame: &[u8]) -> bool {
        let state = &mut *self.state.lock().unwrap();
        while let Some(head) = state.registers.take(&self.requester, RECEIVE) {
            state.empty.push_back(head);
        }
        let Some(head) = state.empty.pop_front() else { return false };
        let table = state.registers.descriptors(RECEIVE);
        let (address, bytes, flags, _) = virtio::descriptor(&self.requester, table, head);
        assert!(flags == 2 && bytes >= HEADER + frame.len(), "a buffer to be written");
        let address = if state.behaviour == Behaviour::Strays { 0x66_6000 } else { address };
        let _ = self.requester.write(address, &[&[0; HEADER], frame].concat());
        self.finish(state, RECEIVE, head, (HEADER + frame.len()) as u32);
        true
    }

    /// The link comes or goes.
    pub fn change_link(&self, link: u16) {
        let state = &mut *self.state.lock().unwrap();
        state.link = link;
        state.registers.raise(&self.requester, &self.host, state.registers.config_vector);
    }

    fn send(&self, state: &mut State) {
        while let Some(head) = state.registers.take(&self.requester, TRANSMIT) {
            match state.behaviour {
                Behaviour::Silent => continue,
                Behaviour::AsksForReset => {
                    state.registers.status |= NEEDS_RESET;
                    return state.registers.raise(&self.requester, &self.host, state.registers.config_vector);
                }
                _ => {}
            }
            let table = state.registers.descriptors(TRANSMIT);
            let (address, bytes, flags, _) = virtio::descriptor(&self.requester, table, head);
            assert_eq!(flags, 0, "one buffer to be read");
            let mut frame = vec![0; bytes];
            let _ = self.requester.read(address, &mut frame);
            state.sent.push(frame);
            self.finish(state, TRANSMIT, head, 0);
        }
    }

    fn finish(&self, state: &mut State, queue: usize, head: u16, written: u32) {
        let (mut head, mut written, mut step) = (u32::from(head), written, 1);
        match state.behaviour {
            Behaviour::WrongHead(wrong) => head = wrong,
            Behaviour::Wrote(bytes) => written = bytes,
            Behaviour::Jump(further) => step += further,
            _ => {}
        }
        if let Some(vector) = state.registers.finish(&self.requester, queue, head, written, step) {
            state.registers.raise(&self.requester, &self.host, vector);
        }
    }
}

impl Registers for VirtioNet {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let state = self.state.lock().unwrap();
        match (offset, width) {
            (COMMON..DEVICE, _) => state.registers.read(offset - COMMON, state.offered, 2),
            (DEVICE..0x2006, 1) => state.mac[offset - DEVICE].into(),
            (0x2006, 2) => state.link.into(),
            (0x200a, 2) => state.mtu.into(),
            (TABLE..BAR_BYTES, 4) => state.registers.table[(offset - TABLE) / 4].into(),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let state = &mut *self.state.lock().unwrap();
        match offset {
            COMMON..DEVICE => {
                state.registers.write(offset - COMMON, value, state.restless);
                if offset == virtio::STATUS && value == 0 {
                    state.empty.clear();
                }
            }
            NOTIFY..TABLE => {
                state.doorbells += 1;
                if virtio::rung(offset, width, value, 2) == TRANSMIT {
                    self.send(state);
                }
            }
            TABLE..BAR_BYTES if width == 4 => {
                state.registers.table[(offset - TABLE) / 4] = value as u32;
            }
            _ => panic!("write to {offset:#x}"),
        }
    }
}
