//! The unit: offsets and bits are written down here once more, as numbers.

use std::{
    boxed::Box,
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

use mm::PhysAddr;

use super::FakeMemory;
use crate::vtd::spec::{Completion, Descriptor, RawDescriptor};

const CAP: usize = 0x08;
const ECAP: usize = 0x10;
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const CCMD: usize = 0x28;
const FSTS: usize = 0x34;
const PMEN: usize = 0x64;
const IQH: usize = 0x80;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
const IQERCD: usize = 0xb0;

const ONE_SHOT: u32 = 1 << 30 | 1 << 29 | 1 << 27 | 1 << 24;
const STICKY: u32 = 1 << 31 | 1 << 28 | 1 << 26 | 1 << 25 | 1 << 23;
const IQE: u32 = 1 << 4;
const ICE: u32 = 1 << 5;
const ITE: u32 = 1 << 6;

/// Bytes of register space.
const BYTES: usize = 0x6000;

/// What the unit did, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Executed {
    /// GCMD was written.
    Command(u32),
    /// A register was written.
    Register { offset: usize, value: u64 },
    /// The tail was written, in entries.
    Doorbell(usize),
    /// A descriptor was carried out.
    Descriptor(Descriptor),
    /// CCMD or IOTLB was carried out; for IOTLB, with the address register.
    ByRegister { command: u64, address: u64 },
}

type Refuses = Box<dyn FnMut(Descriptor) -> bool + Send>;
type OnClear = Box<dyn FnMut(&mut RecordWriter<'_>, usize) + Send>;
type BeforeStatus = Box<dyn FnOnce(&mut RecordWriter<'_>) + Send>;

/// How the unit behaves.
#[derive(Default)]
pub struct Manner {
    /// Bits of GCMD that it does not act on.
    pub ignores: u32,
    /// Every register reads as all ones.
    pub gone: bool,
    /// Descriptors wait in the queue until [`FakeUnit::run`].
    pub lazy: bool,
    /// Of the descriptors that wait, one is carried out each time that this has passed.
    pub pace_ns: Option<u64>,
    /// Nothing in the queue is carried out any more.
    pub frozen: bool,
    /// Which descriptors it refuses with IQE.
    pub refuses: Option<Refuses>,
    /// Devices that do not answer, by requester id; the waits behind their invalidations stay open.
    pub silent: Vec<u16>,
    /// After how long a device that does not answer becomes an ITE.
    pub gives_up_ns: Option<u64>,
    /// IQERCD does not say which device.
    pub conceals_source: bool,
    /// IQERCD names this device instead.
    pub blames: Option<u16>,
    /// CCMD and IOTLB never finish.
    pub busy: bool,
    /// CCMD and IOTLB refuse granularities above this one (1 global, 2 domain, 3 selective).
    pub coarsest: Option<u64>,
    /// IQH reads as this.
    pub head: Option<u64>,
    /// What happens when fault record `index` has been cleared.
    pub on_clear: Option<OnClear>,
    /// What happens right before bits of FSTS are cleared.
    pub before_status: Option<BeforeStatus>,
}

/// A device invalidation that was not answered.
struct Unanswered {
    source: u16,
    /// When that was first noticed.
    since_ns: Option<u64>,
    /// Address and value of the waits behind it, which stay open.
    waits: Vec<(u64, u32)>,
}

struct State {
    bytes: Vec<u8>,
    manner: Manner,
    log: Vec<Executed>,
    head: usize,
    tail: usize,
    /// A descriptor was refused: nothing more is fetched before the tail is written again.
    wants_tail: bool,
    unanswered: Option<Unanswered>,
    /// Waits that the unit dropped, to be completed late by a test.
    dropped: Vec<(u64, u32)>,
    /// When a descriptor was last carried out at the unit's pace.
    paced_at_ns: u64,
}

pub struct FakeUnit {
    memory: Arc<FakeMemory>,
    state: Mutex<State>,
}

/// Writes fault records behind the driver's back.
pub struct RecordWriter<'a>(&'a mut State);

impl RecordWriter<'_> {
    /// Fills record `index`, and sets FRI if nothing was pending.
    pub fn fill(&mut self, index: usize, bits: u128) {
        let at = self.0.record(index);
        if self.0.pending() == 0 {
            let status = self.0.get32(FSTS) & !0xff00 | (index as u32) << 8;
            self.0.put32(FSTS, status);
        }
        self.0.bytes[at..at + 16].copy_from_slice(&(bits | 1 << 127).to_le_bytes());
    }

    pub fn overflow(&mut self) {
        let status = self.0.get32(FSTS) | 1;
        self.0.put32(FSTS, status);
    }
}

impl FakeUnit {
    pub fn new(memory: Arc<FakeMemory>, cap: u64, ecap: u64) -> Self {
        let mut state = State {
            bytes: vec![0; BYTES],
            manner: Manner::default(),
            log: Vec::new(),
            head: 0,
            tail: 0,
            wants_tail: false,
            unanswered: None,
            dropped: Vec::new(),
            paced_at_ns: 0,
        };
        state.put32(0, 0x10);
        state.put64(CAP, cap);
        state.put64(ECAP, ecap);
        state.put32(0x38, 1 << 31);
        state.put32(0xa0, 1 << 31);
        Self { memory, state: Mutex::new(state) }
    }

    pub fn behave(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.state.lock().unwrap().manner);
    }

    /// What the unit did since this was last asked.
    pub fn take_log(&self) -> Vec<Executed> {
        core::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// What the unit did since then, which stays in its log.
    #[cfg(loom)]
    pub fn log(&self) -> Vec<Executed> {
        self.state.lock().unwrap().log.clone()
    }

    /// The descriptors among that.
    pub fn take_descriptors(&self) -> Vec<Descriptor> {
        let descriptor = |event| match event {
            Executed::Descriptor(descriptor) => Some(descriptor),
            _ => None,
        };
        self.take_log().into_iter().filter_map(descriptor).collect()
    }

    /// Sets a register without side effects: what firmware did.
    pub fn preset32(&self, offset: usize, value: u32) {
        self.state.lock().unwrap().put32(offset, value);
    }

    /// Leaves a queue on that lies in the page `first`, with `count` descriptors that the unit has not carried out.
    pub fn preset_queue(&self, first: PhysAddr, count: usize) {
        let mut state = self.state.lock().unwrap();
        let status = state.get32(GSTS) | 1 << 26;
        state.put32(GSTS, status);
        state.put64(IQA, first.as_u64());
        state.tail = count;
    }

    pub fn peek32(&self, offset: usize) -> u32 {
        self.state.lock().unwrap().get32(offset)
    }

    pub fn peek64(&self, offset: usize) -> u64 {
        self.state.lock().unwrap().get64(offset)
    }

    /// Carries out up to `count` descriptors that wait.
    pub fn run(&self, count: usize) {
        self.state.lock().unwrap().run(&self.memory, count);
    }

    pub fn records(&self, write: impl FnOnce(&mut RecordWriter<'_>)) {
        write(&mut RecordWriter(&mut self.state.lock().unwrap()));
    }

    /// Sets an error bit of FSTS as hardware does.
    pub fn raise_completion_error(&self, source: u16) {
        let mut state = self.state.lock().unwrap();
        let status = state.get32(FSTS) | ICE;
        state.put32(FSTS, status);
        state.put64(IQERCD, u64::from(source) << 48);
    }

    /// A device that did not answer becomes an ITE.
    pub fn give_up_on_device(&self) {
        self.state.lock().unwrap().give_up();
    }

    /// Writes the status of every wait that was dropped, after all.
    pub fn complete_late(&self) {
        let mut state = self.state.lock().unwrap();
        let open = state.unanswered.take().map(|unanswered| unanswered.waits).unwrap_or_default();
        let dropped = core::mem::take(&mut state.dropped);
        for (address, value) in open.into_iter().chain(dropped) {
            self.memory.write32(address, value);
        }
    }

    pub(super) fn time_passes(&self, now_ns: u64) {
        let Ok(mut state) = self.state.try_lock() else { return };
        if state.manner.pace_ns.is_some_and(|pace| now_ns - state.paced_at_ns >= pace) {
            state.paced_at_ns = now_ns;
            state.run(&self.memory, 1);
        }
        let Some(limit) = state.manner.gives_up_ns else { return };
        let Some(unanswered) = &mut state.unanswered else { return };
        if now_ns - *unanswered.since_ns.get_or_insert(now_ns) > limit {
            state.give_up();
        }
    }

    pub(super) fn read32(&self, offset: usize) -> u32 {
        let state = self.state.lock().unwrap();
        assert!(is_dword(&state, offset), "32-bit read of a 64-bit register at {offset:#x}");
        assert_ne!(offset, GCMD, "GCMD was read");
        if state.manner.gone {
            return u32::MAX;
        }
        match offset {
            FSTS => state.get32(FSTS) | state.pending(),
            _ => state.get32(offset),
        }
    }

    pub(super) fn read64(&self, offset: usize) -> u64 {
        let state = self.state.lock().unwrap();
        assert!(is_qword(&state, offset), "64-bit read of a 32-bit register at {offset:#x}");
        if state.manner.gone {
            return u64::MAX;
        }
        match offset {
            IQH => state.manner.head.unwrap_or((state.head * 16) as u64),
            IQT => (state.tail * 16) as u64,
            _ => state.get64(offset),
        }
    }

    pub(super) fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock().unwrap();
        assert!(is_dword(&state, offset), "32-bit write to a 64-bit register at {offset:#x}");
        if state.manner.gone {
            return;
        }
        if let Some(index) = state.record_of(offset) {
            assert_eq!(offset % 16, 12, "a read-only part of a fault record was written");
            if value & 1 << 31 != 0 {
                let cleared = state.get32(offset) & !(1 << 31);
                state.put32(offset, cleared);
                if let Some(mut hook) = state.manner.on_clear.take() {
                    hook(&mut RecordWriter(&mut state), index);
                    state.manner.on_clear = Some(hook);
                }
            }
            return;
        }
        match offset {
            GCMD => state.command(value),
            FSTS => {
                if let Some(hook) = state.manner.before_status.take() {
                    hook(&mut RecordWriter(&mut state));
                }
                let log = if state.get64(CAP) & 1 << 3 == 0 { 0 } else { 0b1100 };
                assert_eq!(value & 0b1100 & !log, 0, "there is no advanced fault log");
                let left = state.get32(FSTS) & !(value & (1 | log | IQE | ICE | ITE));
                state.put32(FSTS, left);
                state.run_if_eager(&self.memory);
            }
            PMEN => {
                state.log.push(Executed::Register { offset, value: value.into() });
                state.put32(PMEN, value & 1 << 31 | value >> 31);
            }
            _ => {
                state.log.push(Executed::Register { offset, value: value.into() });
                state.put32(offset, value);
            }
        }
    }

    pub(super) fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        assert!(is_qword(&state, offset), "64-bit write to a 32-bit register at {offset:#x}");
        if state.manner.gone {
            return;
        }
        let invalidate = state.invalidate_area();
        if offset == IQT {
            return state.doorbell(&self.memory, value);
        }
        state.put64(offset, value);
        if offset == CCMD {
            state.by_register(offset, value, 61, 59);
        } else if offset == invalidate + 8 {
            state.by_register(offset, value, 60, 57);
        } else {
            assert!(
                offset != IQA || state.get32(GSTS) & 1 << 26 == 0,
                "IQA was written while the queue is on"
            );
            state.log.push(Executed::Register { offset, value });
        }
    }
}

/// Registers that are 64 bits wide; everything else is 32.
fn is_qword(state: &State, offset: usize) -> bool {
    let invalidate = state.invalidate_area();
    let listed = [CAP, ECAP, 0x20, CCMD, IQH, IQT, IQA, IQERCD, 0xb8, invalidate, invalidate + 8];
    // Of a fault record, the low half is read at once.
    listed.contains(&offset) || (state.record_of(offset).is_some() && offset.is_multiple_of(16))
}

fn is_dword(state: &State, offset: usize) -> bool {
    if state.record_of(offset).is_some() {
        return offset % 16 >= 8;
    }
    !is_qword(state, offset) && !is_qword(state, offset & !7)
}

impl State {
    fn get32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().unwrap())
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn get64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }

    fn put64(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn invalidate_area(&self) -> usize {
        (self.get64(ECAP) >> 8 & 0x3ff) as usize * 16
    }

    fn record(&self, index: usize) -> usize {
        (self.get64(CAP) >> 24 & 0x3ff) as usize * 16 + index * 16
    }

    fn records(&self) -> usize {
        (self.get64(CAP) >> 40 & 0xff) as usize + 1
    }

    fn record_of(&self, offset: usize) -> Option<usize> {
        (self.record(0)..self.record(self.records()))
            .contains(&offset)
            .then(|| (offset - self.record(0)) / 16)
    }

    /// PPF: some F bit is set.
    fn pending(&self) -> u32 {
        let any = (0..self.records()).any(|index| self.get32(self.record(index) + 12) & 1 << 31 != 0);
        u32::from(any) << 1
    }

    fn command(&mut self, value: u32) {
        self.log.push(Executed::Command(value));
        let status = self.get32(GSTS);
        let changed = (value & STICKY) ^ (status & STICKY);
        assert!(
            (value & ONE_SHOT).count_ones() + changed.count_ones() <= 1,
            "GCMD {value:#x} at GSTS {status:#x}"
        );
        assert_eq!(value & !(STICKY | ONE_SHOT), 0, "reserved bits of GCMD");
        // Like QEMU's, it turns no queue off that it has not come to the end of.
        let unfinished = if self.head == self.tail { 0 } else { status & 1 << 26 };
        let acted = !(self.manner.ignores | unfinished);
        let sticky = status & !(changed & acted) | value & changed & acted;
        let set = value & (1 << 30 | 1 << 24) & acted;
        // A write-buffer flush that is acted on is over at once.
        let busy = value & 1 << 27 & !acted;
        if changed & acted & 1 << 26 != 0 {
            (self.head, self.tail) = (0, self.tail);
        }
        self.put32(GSTS, sticky | set | busy);
    }

    fn by_register(&mut self, offset: usize, command: u64, granularity_bit: u32, actual_bit: u32) {
        assert_eq!(self.get32(GSTS) & 1 << 26, 0, "invalidation by register while the queue is on");
        assert_ne!(command >> 63, 0);
        if self.manner.busy {
            return;
        }
        let wanted = command >> granularity_bit & 3;
        let actual = if wanted > self.manner.coarsest.unwrap_or(3) { 0 } else { wanted };
        self.put64(offset, command & !(1 << 63) | actual << actual_bit);
        if actual != 0 {
            let address = if offset == CCMD { 0 } else { self.get64(offset - 8) };
            self.log.push(Executed::ByRegister { command, address });
        }
    }

    fn entries(&self) -> usize {
        256 << (self.get64(IQA) & 7)
    }

    fn doorbell(&mut self, memory: &FakeMemory, value: u64) {
        assert_eq!(value & !0x7_fff0, 0, "reserved bits of the tail");
        let tail = value as usize / 16;
        if self.get32(GSTS) & 1 << 26 != 0 {
            assert!(tail < self.entries(), "tail {tail} beyond the queue");
            self.log.push(Executed::Doorbell(tail));
        }
        self.tail = tail;
        self.wants_tail = false;
        self.run_if_eager(memory);
    }

    fn run_if_eager(&mut self, memory: &FakeMemory) {
        if !self.manner.lazy {
            self.run(memory, usize::MAX);
        }
    }

    fn run(&mut self, memory: &FakeMemory, count: usize) {
        if self.get32(GSTS) & 1 << 26 == 0 || self.manner.frozen {
            return;
        }
        for _ in 0..count {
            if self.head == self.tail || self.wants_tail || self.get32(FSTS) & (IQE | ITE) != 0 {
                return;
            }
            let at = (self.get64(IQA) & !0xfff) + self.head as u64 * 16;
            let load = |at| memory.word(at).load(std::sync::atomic::Ordering::SeqCst);
            let raw = RawDescriptor::from_halves(load(at), load(at + 8));
            let descriptor = raw.decode().unwrap_or_else(|unknown| panic!("{unknown}"));
            if self.manner.refuses.as_mut().is_some_and(|refuses| refuses(descriptor)) {
                let status = self.get32(FSTS) | IQE;
                self.put32(FSTS, status);
                self.put64(IQERCD, 4);
                self.wants_tail = true;
                return;
            }
            self.head = (self.head + 1) % self.entries();
            self.execute(memory, descriptor);
        }
    }

    fn execute(&mut self, memory: &FakeMemory, descriptor: Descriptor) {
        self.log.push(Executed::Descriptor(descriptor));
        match descriptor {
            Descriptor::DeviceTlb { source, .. } if self.manner.silent.contains(&source) => {
                self.unanswered.get_or_insert(Unanswered { source, since_ns: None, waits: Vec::new() });
            }
            Descriptor::Wait(wait) => {
                let Completion::Status { address, value } = wait.completion else { return };
                match &mut self.unanswered {
                    Some(unanswered) => unanswered.waits.push((address.as_u64(), value)),
                    None => memory.write32(address.as_u64(), value),
                }
            }
            _ => {}
        }
    }

    /// ITE: the open waits are dropped.
    fn give_up(&mut self) {
        let Some(Unanswered { source, waits, .. }) = self.unanswered.take() else { return };
        self.dropped.extend(waits);
        let status = self.get32(FSTS) | ITE;
        self.put32(FSTS, status);
        let source = self.manner.blames.unwrap_or(source);
        let source = if self.manner.conceals_source { 0 } else { u64::from(source) };
        self.put64(IQERCD, source << 32);
    }
}
