//! What goes to a device is not read back.

use iommu::dma::{PageBuffer, PoolBuffer, Retired, ToDevice};

fn pooled(buffer: &PoolBuffer<ToDevice>, bytes: &mut [u8]) {
    buffer.copy_to(0, bytes);
}

fn retired(retired: &Retired<PageBuffer, ToDevice>, bytes: &mut [u8]) {
    retired.copy_to(0, bytes);
}

fn main() {}
