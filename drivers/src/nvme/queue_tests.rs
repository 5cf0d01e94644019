use core::cell::RefCell;
use std::{rc::Rc, vec, vec::Vec};

use nvme_spec::{Command, Completion};

use super::{super::memory::QueueMemory, PairError, QueuePair};

const SIZE: u16 = 5;

/// The controller's side of the queues.
#[derive(Clone)]
struct Memory(Rc<RefCell<Shared>>);

struct Shared {
    commands: Vec<Command>,
    completions: Vec<[u32; 4]>,
    next: u16,
    phase: bool,
}

impl Memory {
    fn new() -> Self {
        let size = usize::from(SIZE);
        let shared = Shared {
            commands: vec![Command::default(); size],
            completions: vec![[0; 4]; size],
            next: 0,
            phase: true,
        };
        Self(Rc::new(RefCell::new(shared)))
    }

    fn finish(&self, queue: u16, id: u16, status: u32) {
        let mut shared = self.0.borrow_mut();
        let slot = usize::from(shared.next);
        let tail = u32::from(id) | u32::from(shared.phase) << 16 | status << 17;
        shared.completions[slot] = [0x1234, 0, u32::from(queue) << 16, tail];
        shared.next += 1;
        if shared.next == SIZE {
            shared.next = 0;
            shared.phase = !shared.phase;
        }
    }
}

impl QueueMemory for Memory {
    fn write_command(&mut self, slot: u16, command: Command) {
        self.0.borrow_mut().commands[usize::from(slot)] = command;
    }

    fn read_completion(&self, slot: u16) -> Completion {
        Completion::decode(self.0.borrow().completions[usize::from(slot)])
    }

    fn clear(&mut self) {
        let fresh = Self::new();
        self.0.swap(&fresh.0);
    }
}

fn pair() -> (QueuePair<Memory, u32>, Memory) {
    let memory = Memory::new();
    (QueuePair::new(0, memory.clone(), SIZE).unwrap(), memory)
}

fn command() -> Command {
    Command::identify_controller(0x1000)
}

#[test]
fn commands_and_completions_wrap_with_their_phase() {
    let (mut pair, device) = pair();
    for round in 0..50 {
        let slot = usize::from(pair.tail());
        pair.submit(command(), round).unwrap();
        let id = device.0.borrow().commands[slot].id();
        assert_eq!(pair.take_finished(), Ok(None), "nothing is finished before the controller says so");
        device.finish(0, id, 0);
        let finished = pair.take_finished().unwrap().unwrap();
        assert_eq!((finished.token, finished.result, finished.status.is_success()), (round, 0x1234, true));
        assert_eq!(u32::from(pair.head()), (round + 1) % u32::from(SIZE));
    }
}

#[test]
fn a_full_queue_gives_the_token_back() {
    let (mut pair, device) = pair();
    for token in 0..4 {
        pair.submit(command(), token).unwrap();
    }
    assert_eq!(pair.submit(command(), 4), Err(4));
    device.finish(0, 2, 0);
    assert_eq!(pair.take_finished().unwrap().unwrap().token, 2);
    pair.submit(command(), 5).unwrap();
    assert_eq!(pair.tail(), 0);
}

#[test]
fn completions_that_cannot_be_are_refused() {
    for id in [1, SIZE, u16::MAX] {
        let (mut pair, device) = pair();
        pair.submit(command(), 0).unwrap();
        device.finish(0, id, 0);
        assert_eq!(pair.take_finished(), Err(PairError::NotInFlight { id }));
    }
    let (mut pair, device) = pair();
    pair.submit(command(), 0).unwrap();
    device.finish(3, 0, 0);
    assert_eq!(pair.take_finished(), Err(PairError::OtherQueue { queue: 3 }));
}

#[test]
fn an_error_status_is_told_apart() {
    let (mut pair, device) = pair();
    pair.submit(command(), 0).unwrap();
    // Type 1, code 0x0c, do not retry.
    device.finish(0, 0, 0x410c);
    let status = pair.take_finished().unwrap().unwrap().status;
    assert_eq!((status.is_success(), status.code()), (false, 0x10c));
}

#[test]
fn after_a_reset_all_is_as_new() {
    let (mut pair, device) = pair();
    for token in 0..3 {
        pair.submit(command(), token).unwrap();
    }
    device.finish(0, 1, 0);
    pair.take_finished().unwrap();
    pair.restart();
    assert_eq!((pair.tail(), pair.head(), pair.take_finished()), (0, 0, Ok(None)));
    for token in 0..4 {
        pair.submit(command(), token).unwrap();
    }
}
