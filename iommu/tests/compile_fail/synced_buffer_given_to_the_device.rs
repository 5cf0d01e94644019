//! While the CPU has a buffer there is no address for the device.

use iommu::dma::{Bidirectional, PageBuffer, Synced};

fn post(buffer: &Synced<PageBuffer, Bidirectional>, post: impl Fn(iommu::Iova)) {
    post(buffer.iova());
}

fn main() {}
