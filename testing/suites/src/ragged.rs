//! Buffers that are not whole pages.

use alloc::{vec, vec::Vec};

use harness::{check, check_eq, test};
use iommu::{FromDevice, Iova, ToDevice};

use crate::{
    edu::BYTES,
    machine::{Machine, lacks},
};

const BUFFER_BYTES: usize = 256;

/// What lies in the buffers of others.
const OTHERS: u8 = 0x5a;

/// The page that `iova` lies in.
fn page_of(iova: Iova) -> Iova {
    Iova::new(iova.as_u64() & !0xfff)
}

test! {
    /// Buffers of several owners lie on the pages of one heap. A device gets one of them, reads and writes all that it
    /// can reach around it, and sees and changes nothing of the others.
    lacks = lacks::isolated_edu,
    fn a_device_sees_nothing_beside_a_buffer(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let mut heap: Vec<Vec<u8>> = (0..9).map(|_| vec![OTHERS; BUFFER_BYTES]).collect();
        let mut own = heap.swap_remove(4);
        own.fill(0xa5);
        let mapping = edu.dma.dma_map(own, ToDevice)?;
        edu.pull(page_of(mapping.iova()), BYTES)?;
        let seen = edu.contents()?;
        check!(!seen[..BYTES].contains(&OTHERS), "the device read what is beside the buffer");
        let first = (mapping.iova().as_u64() & 0xfff) as usize;
        let last = (first + BUFFER_BYTES).min(BYTES);
        check!(seen[first..last].iter().all(|&byte| byte == 0xa5), "the device did not read the buffer");
        let own = mapping.unmap()?;
        edu.load(1)?;
        let mapping = edu.dma.dma_map(own, FromDevice)?;
        edu.push(page_of(mapping.iova()), BYTES)?;
        edu.push(mapping.iova(), BUFFER_BYTES)?;
        let own = mapping.unmap()?;
        check_eq!(own[..], edu.contents()?[..BUFFER_BYTES]);
        for other in heap {
            check!(other.iter().all(|&byte| byte == OTHERS), "the device wrote beside the buffer");
        }
    }
}
