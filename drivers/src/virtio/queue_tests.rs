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
}

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
