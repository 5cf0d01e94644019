//! A buffer that went back to the device is out of the CPU's reach.

use iommu::dma::{Bidirectional, PageBuffer, Synced};

fn late(mut buffer: Synced<PageBuffer, Bidirectional>) {
    let _mapping = buffer.sync_for_device();
    buffer.copy_from(0, b"too late");
}

fn main() {}
