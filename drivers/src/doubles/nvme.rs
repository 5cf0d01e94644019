//! An NVMe controller in software with an admin queue and I/O queues, honest or not.

use core::sync::atomic::{AtomicBool, Ordering};
use std::{
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
    vec,
    vec::Vec,
};

use iommu::platform::MsiMessage;

use super::{
    host::{BAR_BYTES, Bench, TestHost},
    secondaries::Secondaries,
};
use crate::{
    mmio::trap::Registers,
    pci::{ConfigSpace, fake::FakeFunction},
};

/// Where the MSI-X table is in BAR 0; its capability is at 0x40.
const TABLE: usize = 0x4000;
/// The register that turns the controller on and off.
pub const CONFIGURATION: usize = 0x14;
const DOORBELLS: usize = 0x1000;
/// Entries of the MSI-X table, and queue pairs with the admin queue.
const PAIRS: usize = 4;

/// 64 entries, 1 s to become ready, NVM commands, pages of 4 KiB.
pub const CAPABILITIES: u64 = 63 | 2 << 24 | 1 << 37;

/// Blocks of its namespace.
pub const BLOCKS: u64 = 2048;
pub const BLOCK: usize = 512;
/// Identifier of its namespace.
const NAMESPACE: u32 = 2;

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
    /// Breaks down.
    Dies,
}

/// The controller. What it is like can be changed at any time.
pub struct Nvme {
    state: Mutex<State>,
    requester: vtd_model::Device,
    host: Weak<TestHost>,
    /// Whoever reads its status waits.
    pub stalls: AtomicBool,
}

pub struct State {
    /// In its admin queue.
    pub behaviour: Behaviour,
    /// In its I/O queues.
    pub io: Behaviour,
    /// It ends commands that it is asked to abort.
    pub aborts: bool,
    /// It says that it has, whether it has or not.
    pub claims_to_abort: bool,
    pub capabilities: u64,
    /// CMBSZ.
    pub memory_size: u32,
    /// How long each admin command takes.
    pub admin_ns: u64,
    /// It does not become ready.
    pub lame: bool,
    /// It does not become quiet.
    pub restless: bool,
    /// Commands that it has had in its admin queue, and in each I/O queue.
    pub commands: usize,
    pub by_queue: [usize; PAIRS - 1],
    pub flushes: usize,
    pub shutdowns: usize,
    /// Queues that it was told to forget.
    pub deleted: usize,
    pub submission_doorbells: usize,
    /// I/O queue pairs that it gives.
    pub pairs: u16,
    /// What it says about itself, its namespaces, and its namespace.
    pub identity: Vec<u8>,
    pub namespaces: Vec<u32>,
    pub namespace: Vec<u8>,
    pub medium: Vec<u8>,
    pub secondaries: Secondaries,
    configuration: u32,
    status: u32,
    attributes: u32,
    queues: [Pair; PAIRS],
    table: [u32; 4 * PAIRS],
}

#[derive(Clone, Copy, Default)]
struct Pair {
    submission: u64,
    completion: u64,
    size: u32,
    head: u32,
    tail: u32,
    phase: bool,
    vector: usize,
    /// The last command that it took in silence.
    kept: Option<u16>,
}

/// Configuration space of the controller.
pub fn function() -> FakeFunction {
    let function = FakeFunction::new(0x0010_1b36, 0x0108_0200, 0).with(0x34, 0x40);
    let control = 0x11 | (PAIRS as u32 - 1) << 16;
    function.with(0x40, control).writable(0x40, 0xc000_0000).with(0x44, TABLE as u32)
}

fn identity() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[4..72].fill(b' ');
    page[..2].copy_from_slice(&[0x36, 0x1b]);
    page[24..30].copy_from_slice(b"double");
    // Transfers of 64 KiB; entries of 64 and 16 bytes; 8 namespaces; dataset management; a volatile cache.
    (page[77], page[512], page[513], page[516], page[520], page[525]) = (4, 0x66, 0x44, 8, 4, 1);
    page
}

fn namespace() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..8].copy_from_slice(&BLOCKS.to_le_bytes());
    page[130] = 9;
    page
}

/// A machine with this controller in it.
pub fn bench() -> (Bench, Arc<Nvme>) {
    bench_of(function())
}

/// The same with another configuration space.
pub fn bench_of(function: FakeFunction) -> (Bench, Arc<Nvme>) {
    let bench = Bench::new(function);
    let state = State {
        behaviour: Behaviour::Honest,
        io: Behaviour::Honest,
        aborts: false,
        claims_to_abort: false,
        capabilities: CAPABILITIES,
        memory_size: 0,
        admin_ns: 0,
        lame: false,
        restless: false,
        commands: 0,
        by_queue: [0; PAIRS - 1],
        flushes: 0,
        shutdowns: 0,
        deleted: 0,
        submission_doorbells: 0,
        pairs: 8,
        identity: identity(),
        namespaces: vec![NAMESPACE, 5],
        namespace: namespace(),
        medium: vec![0; BLOCKS as usize * BLOCK],
        secondaries: Secondaries::new(vec![NAMESPACE, 5, 7, 9]),
        configuration: 0,
        status: 0,
        attributes: 0,
        queues: [Pair::default(); PAIRS],
        table: [0; 4 * PAIRS],
    };
    let host = Arc::downgrade(&bench.host);
    let (state, stalls) = (Mutex::new(state), AtomicBool::new(false));
    let device = Arc::new(Nvme { state, requester: bench.requester.clone(), host, stalls });
    bench.plug(device.clone());
    (bench, device)
}

fn list_of(namespaces: &[u32]) -> Vec<u8> {
    let mut page: Vec<u8> = namespaces.iter().flat_map(|id| id.to_le_bytes()).collect();
    page.resize(4096, 0);
    page
}

impl State {
    /// The function is reset.
    pub fn reset(&mut self) {
        (self.configuration, self.status) = (0, 0);
        self.secondaries.reset();
    }
}

/// What comes of a command: its status, and its result.
type Outcome = (u16, u32);

impl Nvme {
    /// Changes the controller.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    fn configure(&self, state: &mut State, value: u32) {
        let was_on = state.configuration & 1 != 0;
        state.configuration = value;
        if value & 1 == 0 {
            state.status = if state.restless { state.status } else { 0 };
            return;
        }
        assert_eq!(value & !0xc000, 0x0046_0001, "entries of 64 and 16 bytes, pages of 4 KiB");
        if value & 0xc000 != 0 {
            assert!(was_on && value & 0xc000 == 0x4000, "a normal shutdown");
            state.shutdowns += 1;
            state.status |= 8;
            return;
        }
        let Pair { submission, completion, .. } = state.queues[0];
        state.queues = [Pair::default(); PAIRS];
        let size = (state.attributes & 0xfff) + 1;
        state.queues[0] = Pair { submission, completion, size, phase: true, ..Pair::default() };
        state.status = (!state.lame).into();
    }

    /// Takes the commands of queue `queue` up to `tail`.
    fn run(&self, state: &mut State, queue: usize, tail: u32) {
        state.submission_doorbells += 1;
        let size = state.queues[queue].size;
        assert!(tail < size, "tail {tail} of queue {queue}, which has {size} entries");
        while state.status == 1 && state.queues[queue].head != tail {
            let at = state.queues[queue].submission + 64 * u64::from(state.queues[queue].head);
            let mut command = [0_u8; 64];
            let _ = self.requester.read(at, &mut command);
            state.queues[queue].head = (state.queues[queue].head + 1) % size;
            let behaviour = if queue == 0 { state.behaviour } else { state.io };
            match queue.checked_sub(1) {
                None => state.commands += 1,
                Some(index) => state.by_queue[index] += 1,
            }
            let id = u16::from_le_bytes([command[2], command[3]]);
            match behaviour {
                Behaviour::Silent => state.queues[queue].kept = Some(id),
                Behaviour::Dies => state.status |= 2,
                _ => {
                    let outcome = if queue == 0 {
                        self.administer(state, &command)
                    } else {
                        self.serve(state, &command)
                    };
                    self.finish(state, queue, id, behaviour, outcome);
                }
            }
        }
    }

    fn administer(&self, state: &mut State, command: &[u8; 64]) -> Outcome {
        if let Some(host) = self.host.upgrade() {
            host.advance(state.admin_ns);
        }
        let prp = u64::from_le_bytes(command[24..32].try_into().unwrap());
        let dword = |at: usize| u32::from_le_bytes(command[4 * at..4 * at + 4].try_into().unwrap());
        let (low, high) = (dword(10) as u16, (dword(10) >> 16) as u16);
        match command[0] {
            0x06 => self.identify(state, prp, dword(10), dword(1)),
            0x09 => {
                assert_eq!(dword(10), 7, "the number of queues");
                assert_eq!(dword(11) as u16, (dword(11) >> 16) as u16);
                let last = u32::from(state.pairs) - 1;
                return (0, last | last << 16);
            }
            0x05 => {
                assert_eq!(dword(11) & 0xffff, 3, "contiguous, with interrupts");
                let pair = Pair {
                    completion: prp,
                    phase: true,
                    vector: dword(11) as usize >> 16,
                    ..Pair::default()
                };
                state.queues[usize::from(low)] = pair;
            }
            0x01 => {
                assert_eq!(dword(11), 1 | u32::from(low) << 16, "contiguous, for its own completion queue");
                let pair = &mut state.queues[usize::from(low)];
                assert!(pair.completion != 0, "the completion queue comes first");
                (pair.submission, pair.size) = (prp, u32::from(high) + 1);
            }
            0x00 | 0x04 => {
                let pair = &mut state.queues[usize::from(low)];
                let exists = if command[0] == 0 { &mut pair.submission } else { &mut pair.completion };
                if core::mem::take(exists) == 0 {
                    return (0x101, 0);
                }
                state.deleted += 1;
            }
            0x1c => return (state.secondaries.manage(dword(10), dword(11)), 0),
            0x15 => {
                assert_eq!(dword(10), 0, "attach");
                let mut list = [0; 4];
                let _ = self.requester.read(prp, &mut list);
                return (state.secondaries.attach(dword(1), &list), 0);
            }
            0x08 => {
                let kept = state.queues[usize::from(low)].kept.take_if(|kept| state.aborts && *kept == high);
                let Some(id) = kept else { return (0, (!state.claims_to_abort).into()) };
                self.finish(state, low.into(), id, Behaviour::Honest, (7, 0));
            }
            opcode => panic!("admin command {opcode:#x}"),
        }
        (0, 0)
    }

    fn identify(&self, state: &State, to: u64, structure: u32, namespace: u32) {
        let page = match (structure, namespace) {
            (1, 0) => state.identity.clone(),
            (2, 0) => list_of(&state.namespaces),
            (0x10, 0) => list_of(&state.secondaries.namespaces),
            (0x12, namespace) => state.secondaries.attached(namespace),
            (0x14, 0) => state.secondaries.capabilities(),
            (0x15, 0) => state.secondaries.list(),
            (0, NAMESPACE) => state.namespace.clone(),
            other => panic!("identify {other:?}"),
        };
        // It does not care whether it gets through.
        let _ = self.requester.write(to, &page);
    }

    /// Does a command of the NVM command set.
    fn serve(&self, state: &mut State, command: &[u8; 64]) -> Outcome {
        let dword = |at: usize| u32::from_le_bytes(command[4 * at..4 * at + 4].try_into().unwrap());
        let pointer = |at: usize| u64::from(dword(at)) | u64::from(dword(at + 1)) << 32;
        assert_eq!(dword(1), NAMESPACE);
        match command[0] {
            0 => state.flushes += 1,
            opcode @ (1 | 2) => {
                let (first, bytes) =
                    (pointer(10) as usize * BLOCK, ((dword(12) & 0xffff) as usize + 1) * BLOCK);
                let mut done = 0;
                for (address, length) in self.pages(pointer(6), pointer(8), bytes) {
                    let part = &mut state.medium[first + done..first + done + length];
                    if opcode == 2 {
                        let _ = self.requester.write(address, part);
                    } else {
                        let mut data = vec![0; length];
                        let _ = self.requester.read(address, &mut data);
                        part.copy_from_slice(&data);
                    }
                    done += length;
                }
            }
            9 => {
                assert_eq!((dword(10), dword(11)), (0, 4), "one range to deallocate");
                let mut range = [0; 16];
                let _ = self.requester.read(pointer(6), &mut range);
                let blocks = u32::from_le_bytes(range[4..8].try_into().unwrap()) as usize;
                let first = u64::from_le_bytes(range[8..].try_into().unwrap()) as usize;
                state.medium[first * BLOCK..(first + blocks) * BLOCK].fill(0);
            }
            opcode => panic!("command {opcode:#x}"),
        }
        (0, 0)
    }

    /// Where the data of a command are: address and length of each part.
    fn pages(&self, first: u64, second: u64, bytes: usize) -> Vec<(u64, usize)> {
        let mut parts = vec![(first, bytes.min(4096 - first as usize % 4096))];
        let mut left = bytes - parts[0].1;
        let has_list = left > 4096;
        let mut entry = second;
        while left > 0 {
            let mut page = second.to_le_bytes();
            if has_list {
                assert_eq!((entry / 4096, entry % 8), (second / 4096, 0), "the list is in one page");
                let _ = self.requester.read(entry, &mut page);
                entry += 8;
            }
            let page = u64::from_le_bytes(page);
            assert_eq!(page % 4096, 0, "only the first page has an offset");
            parts.push((page, left.min(4096)));
            left -= left.min(4096);
        }
        parts
    }

    fn finish(
        &self,
        state: &mut State,
        queue: usize,
        mut id: u16,
        behaviour: Behaviour,
        (mut status, result): Outcome,
    ) {
        if behaviour == Behaviour::Strays {
            let _ = self.requester.write(0x66_6000, &[0xff; 64]);
        }
        let mut named = queue as u16;
        match behaviour {
            Behaviour::WrongId(wrong) => id = wrong,
            Behaviour::OtherQueue(other) => named = other,
            Behaviour::Status(code) => status = code,
            _ => {}
        }
        let pair = &mut state.queues[queue];
        let dwords = [
            result,
            0,
            u32::from(named) << 16 | pair.head,
            u32::from(id) | u32::from(pair.phase) << 16 | u32::from(status) << 17,
        ];
        let entry: Vec<u8> = dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        let _ = self.requester.write(pair.completion + 16 * u64::from(pair.tail), &entry);
        pair.tail = (pair.tail + 1) % pair.size;
        pair.phase ^= pair.tail == 0;
        let vector = pair.vector;
        self.raise(state, vector);
    }

    fn raise(&self, state: &State, vector: usize) {
        let Some(host) = self.host.upgrade() else { return };
        let on = host.space.read32(self.requester.address(), 0x40) & 0xc000_0000 == 0x8000_0000;
        let [low, high, data, control] = [0, 1, 2, 3].map(|dword| state.table[4 * vector + dword]);
        if on && host.is_bus_master() && control & 1 == 0 {
            let address = u64::from(low) | u64::from(high) << 32;
            host.deliver(MsiMessage { address, data });
        }
    }
}

impl Registers for Nvme {
    fn read(&self, offset: usize, width: usize) -> u64 {
        while offset == 0x1c && self.stalls.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        let state = self.state.lock().unwrap();
        match (offset, width) {
            (0x00, 8) => state.capabilities,
            (0x08, 4) => 0x0001_0400,
            (CONFIGURATION, 4) => state.configuration.into(),
            (0x1c, 4) => state.status.into(),
            (0x3c, 4) => state.memory_size.into(),
            (TABLE..BAR_BYTES, 4) => state.table[(offset - TABLE) / 4].into(),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        match (offset, width) {
            (CONFIGURATION, 4) => self.configure(&mut state, value as u32),
            (0x24, 4) => state.attributes = value as u32,
            (0x28, 8) => state.queues[0].submission = value,
            (0x30, 8) => state.queues[0].completion = value,
            (DOORBELLS..TABLE, 4) => {
                let (queue, is_completion) = ((offset - DOORBELLS) / 8, !offset.is_multiple_of(8));
                if !is_completion {
                    self.run(&mut state, queue, value as u32);
                }
            }
            (TABLE..BAR_BYTES, 4) => state.table[(offset - TABLE) / 4] = value as u32,
            _ => panic!("write to {offset:#x}"),
        }
    }
}
