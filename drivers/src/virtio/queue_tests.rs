use core::cell::RefCell;
use std::{collections::VecDeque, rc::Rc, vec, vec::Vec};

use iommu::Iova;

use super::{
    super::rings::{Descriptor, RingMemory, UsedElement},
    Finished, QueueError, Segment, SplitQueue,
};

const SIZE: u16 = 8;

/// Rings as the device sees them.
#[derive(Default)]
struct Shared {
    descriptors: Vec<Descriptor>,
    available: Vec<u16>,
    available_index: u16,
    used: Vec<(u32, u32)>,
    used_index: u16,
    seen: u16,
    indirect_limit: u16,
    tables: Vec<Vec<Descriptor>>,
    available_event: u16,
    used_event: u16,
}

/// Address of the indirect table of head 0; one page each.
const TABLES: u64 = 0x100_0000;

#[derive(Clone)]
struct Memory(Rc<RefCell<Shared>>);

impl RingMemory for Memory {
    fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        self.0.borrow_mut().descriptors[usize::from(index)] = descriptor;
    }

    fn write_available(&mut self, slot: u16, head: u16) {
        self.0.borrow_mut().available[usize::from(slot)] = head;
    }

    fn publish_available(&mut self, index: u16) {
        self.0.borrow_mut().available_index = index;
    }

    fn used_index(&self) -> u16 {
        self.0.borrow().used_index
    }

    fn used_element(&self, slot: u16) -> UsedElement {
        let (head, bytes) = self.0.borrow().used[usize::from(slot)];
        UsedElement { head, bytes }
    }

    fn wants_notification(&self) -> bool {
        true
    }

    fn indirect_limit(&self) -> u16 {
        self.0.borrow().indirect_limit
    }

    fn write_indirect(&mut self, head: u16, position: u16, descriptor: Descriptor) -> Iova {
        self.0.borrow_mut().tables[usize::from(head)][usize::from(position)] = descriptor;
        Iova::new(TABLES + 4096 * u64::from(head))
    }

    fn available_event(&self) -> u16 {
        self.0.borrow().available_event
    }

    fn set_used_event(&mut self, index: u16) {
        self.0.borrow_mut().used_event = index;
    }

    fn clear(&mut self) {
        let fresh = Device::rings();
        *self.0.borrow_mut() = fresh;
    }
}

/// Address, length and flags of a segment as the device sees it.
type Seen = (u64, u32, u16);

/// The device's side.
#[derive(Clone)]
struct Device(Rc<RefCell<Shared>>);

impl Device {
    fn rings() -> Shared {
        let size = usize::from(SIZE);
        Shared {
            descriptors: vec![Descriptor::default(); size],
            available: vec![0; size],
            used: vec![(0, 0); size],
            tables: vec![vec![Descriptor::default(); 4]; size],
            ..Shared::default()
        }
    }

    /// The next chain: its head and segments.
    fn fetch(&self) -> Option<(u16, Vec<Seen>)> {
        let mut rings = self.0.borrow_mut();
        if rings.seen == rings.available_index {
            return None;
        }
        let head = rings.available[usize::from(rings.seen % SIZE)];
        rings.seen = rings.seen.wrapping_add(1);
        let (mut index, mut chain) = (head, Vec::new());
        loop {
            let descriptor = rings.descriptors[usize::from(index)];
            chain.push((descriptor.address, descriptor.bytes, descriptor.flags & Descriptor::WRITE));
            assert!(chain.len() <= usize::from(SIZE), "chain loops");
            if descriptor.flags & Descriptor::NEXT == 0 {
                return Some((head, chain));
            }
            index = descriptor.next;
        }
    }

    fn finish(&self, head: u32, bytes: u32) {
        let mut rings = self.0.borrow_mut();
        let slot = usize::from(rings.used_index % SIZE);
        rings.used[slot] = (head, bytes);
        rings.used_index = rings.used_index.wrapping_add(1);
    }
}

fn queue() -> (SplitQueue<Memory, u64>, Device) {
    let rings = Rc::new(RefCell::new(Device::rings()));
    (SplitQueue::new(Memory(rings.clone()), SIZE).unwrap(), Device(rings))
}

fn read(address: u64, bytes: u32) -> Segment {
    Segment { iova: Iova::new(address), bytes, writable: false }
}

fn write(address: u64, bytes: u32) -> Segment {
    Segment { writable: true, ..read(address, bytes) }
}

#[test]
fn a_chain_arrives_as_it_was_submitted() {
    let (mut queue, device) = queue();
    let head = queue.add(&[read(0x1000, 16), write(0x2000, 4096), write(0x3000, 1)], 7).unwrap();
    let chain = vec![(0x1000, 16, 0), (0x2000, 4096, 2), (0x3000, 1, 2)];
    assert_eq!(device.fetch(), Some((head, chain)));
    assert_eq!(queue.take_finished(), Ok(None));
    device.finish(head.into(), 4097);
    assert_eq!(queue.take_finished(), Ok(Some(Finished { token: 7, head, bytes: 4097 })));
    assert_eq!((queue.take_finished(), queue.in_flight()), (Ok(None), 0));
}

#[test]
fn a_chain_that_does_not_fit_is_given_back() {
    let (mut queue, device) = queue();
    let three = [read(0, 1), read(0, 1), read(0, 1)];
    queue.add(&three, 1).unwrap();
    queue.add(&three, 2).unwrap();
    assert_eq!((queue.next_head(3), queue.add(&three, 3)), (None, Err(3)));
    let head = queue.next_head(2).unwrap();
    assert_eq!(queue.add(&three[..2], 4), Ok(head));
    assert_eq!(queue.add(&[], 5), Err(5));
    // Nothing of the refused ones reached the device.
    assert_eq!(std::iter::from_fn(|| device.fetch()).count(), 3);
}

#[test]
fn many_chains_out_of_order_wrap_around() {
    let (mut queue, device) = queue();
    let (mut with_device, mut expected, mut next) = (VecDeque::new(), VecDeque::new(), 0_u64);
    // A fixed sequence that submits and finishes in changing order, far beyond 16 bits of index.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let length = 1 + (random >> 33) as usize % 3;
        if random >> 40 & 1 == 0
            && let Some(head) = queue.next_head(length as u16)
        {
            let segments: Vec<_> = (0..length).map(|at| write(next * 16 + at as u64, 8)).collect();
            assert_eq!(queue.add(&segments, next), Ok(head));
            let (fetched, chain) = device.fetch().unwrap();
            assert_eq!(fetched, head);
            assert!(chain.iter().zip(&segments).all(|(seen, sent)| seen.0 == sent.iova.as_u64()));
            with_device.push_back((head, next));
            next += 1;
        } else if !with_device.is_empty() {
            let chosen = (random >> 50) as usize % with_device.len();
            let (head, token) = with_device.remove(chosen).unwrap();
            device.finish(head.into(), 8);
            expected.push_back(token);
        }
        if random >> 41 & 1 == 0 {
            while let Some(finished) = queue.take_finished().unwrap() {
                assert_eq!(Some(finished.token), expected.pop_front());
            }
        }
    }
    assert!(next > 70_000);
}

#[test]
fn an_index_that_jumps_is_refused() {
    let (mut queue, device) = queue();
    queue.add(&[write(0, 1)], 1).unwrap();
    device.finish(0, 0);
    device.finish(0, 0);
    let jumped = QueueError::IndexJumped { seen: 0, index: 2, in_flight: 1 };
    assert_eq!(queue.take_finished(), Err(jumped));
    device.0.borrow_mut().used_index = u16::MAX;
    assert!(matches!(queue.take_finished(), Err(QueueError::IndexJumped { index: u16::MAX, .. })));
    assert_eq!(queue.in_flight(), 1);
}

#[test]
fn a_head_that_is_not_in_flight_is_refused() {
    for head in [1, u32::from(SIZE), 0x1_0000, u32::MAX] {
        let (mut queue, device) = queue();
        queue.add(&[write(0, 1), write(0, 1)], 1).unwrap();
        device.finish(head, 0);
        assert_eq!(queue.take_finished(), Err(QueueError::NotInFlight { head }));
        assert_eq!((queue.in_flight(), queue.take_back()), (1, Some(1)));
    }
}

#[test]
fn a_chain_is_not_finished_twice() {
    let (mut queue, device) = queue();
    let head = queue.add(&[write(0, 1)], 1).unwrap();
    queue.add(&[write(0, 1)], 2).unwrap();
    device.finish(head.into(), 0);
    device.finish(head.into(), 0);
    assert_eq!(queue.take_finished().unwrap().unwrap().token, 1);
    assert_eq!(queue.take_finished(), Err(QueueError::NotInFlight { head: head.into() }));
}

#[test]
fn more_bytes_than_writable_are_refused() {
    let (mut queue, device) = queue();
    let head = queue.add(&[read(0, 100), write(0, 10)], 1).unwrap();
    device.finish(head.into(), 11);
    assert_eq!(queue.take_finished(), Err(QueueError::TooLong { bytes: 11, writable: 10 }));
    assert_eq!(queue.in_flight(), 1);
}

#[test]
fn what_a_device_does_to_the_descriptors_changes_nothing() {
    let (mut queue, device) = queue();
    let head = queue.add(&[write(0, 8), write(0, 8)], 1).unwrap();
    for descriptor in &mut device.0.borrow_mut().descriptors {
        *descriptor = Descriptor { address: u64::MAX, bytes: u32::MAX, flags: u16::MAX, next: u16::MAX };
    }
    device.finish(head.into(), 16);
    assert_eq!(queue.take_finished().unwrap().unwrap().token, 1);
    for token in 0..u64::from(SIZE) {
        queue.add(&[write(0, 1)], token).unwrap();
    }
    assert_eq!(queue.next_head(1), None);
}

#[test]
fn after_a_reset_all_is_as_new() {
    let (mut queue, device) = queue();
    for token in 0..4 {
        queue.add(&[write(0, 1), write(0, 1)], token).unwrap();
    }
    device.finish(0, 0);
    queue.take_finished().unwrap().unwrap();
    let mut back: Vec<_> = std::iter::from_fn(|| queue.take_back()).collect();
    back.sort_unstable();
    assert_eq!((back, queue.in_flight()), (vec![1, 2, 3], 0));
    queue.restart();
    assert_eq!(queue.take_finished(), Ok(None));
    let head = queue.add(&[write(0x5000, 1)], 9).unwrap();
    assert_eq!(device.fetch(), Some((head, vec![(0x5000, 1, 2)])));
    assert!(queue.next_head(SIZE - 1).is_some());
}

#[test]
fn a_chain_in_an_indirect_table_takes_one_descriptor() {
    let (mut queue, device) = queue();
    device.0.borrow_mut().indirect_limit = 4;
    let chain = [read(0x1000, 16), write(0x2000, 4096), write(0x3000, 1)];
    for token in 0..u64::from(SIZE) {
        let head = queue.add(&chain, token).unwrap();
        let table = TABLES + 4096 * u64::from(head);
        assert_eq!(device.fetch(), Some((head, vec![(table, 3 * 16, 0)])));
        let rings = device.0.borrow();
        assert_eq!(rings.descriptors[usize::from(head)].flags, Descriptor::INDIRECT);
        let descriptor = |address, bytes, flags, next| Descriptor { address, bytes, flags, next };
        let wanted =
            [descriptor(0x1000, 16, 1, 1), descriptor(0x2000, 4096, 3, 2), descriptor(0x3000, 1, 2, 3)];
        assert_eq!(rings.tables[usize::from(head)][..3], wanted);
    }
    assert_eq!(queue.add(&chain, 99), Err(99));
    device.finish(3, 4098);
    assert_eq!(queue.take_finished(), Err(QueueError::TooLong { bytes: 4098, writable: 4097 }));
    // One segment needs no table, and five have no room in one.
    let (mut queue, device) = self::queue();
    device.0.borrow_mut().indirect_limit = 4;
    queue.add(&chain[..1], 1).unwrap();
    assert_eq!(device.fetch().unwrap().1, [(0x1000, 16, 0)]);
    queue.add(&[read(0, 1); 5], 2).unwrap();
    assert_eq!(device.fetch().unwrap().1.len(), 5);
}

#[test]
fn with_event_index_the_device_is_told_when_its_index_is_passed() {
    let (queue, device) = queue();
    let mut queue = queue.with_event_index(true);
    let told = |queue: &mut SplitQueue<Memory, u64>, chains: u16| {
        for _ in 0..chains {
            let head = queue.add(&[read(0, 1)], 0).unwrap();
            device.finish(head.into(), 0);
            queue.take_finished().unwrap().unwrap();
        }
        queue.wants_notification()
    };
    assert!(told(&mut queue, 1), "the first");
    assert!(!told(&mut queue, 1), "the device has named no later index");
    device.0.borrow_mut().available_event = 4;
    assert!(!told(&mut queue, 2));
    assert!(told(&mut queue, 3), "from 4 to 7");
    assert!(!told(&mut queue, 1));
    // Around the end of 16 bits.
    device.0.borrow_mut().available_event = 0xffff;
    for _ in 8..0xffff_u16 {
        assert!(!told(&mut queue, 1));
    }
    assert!(told(&mut queue, 1));
    assert!(!told(&mut queue, 1));
}

#[test]
fn a_chain_that_is_finished_while_the_interrupt_is_armed_is_not_missed() {
    let (queue, device) = queue();
    let mut queue = queue.with_event_index(true);
    let head = queue.add(&[read(0, 1)], 1).unwrap();
    assert!(!queue.rearm());
    assert_eq!(device.0.borrow().used_event, 0);
    device.finish(head.into(), 0);
    assert!(queue.rearm(), "it was finished before the index was written");
    queue.take_finished().unwrap().unwrap();
    assert!(!queue.rearm());
    assert_eq!(device.0.borrow().used_event, 1);
}
