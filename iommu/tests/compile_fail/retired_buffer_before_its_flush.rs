//! The buffer of a mapping that was given up comes after the flush.

use iommu::dma::{FromDevice, PageBuffer, Retired};

fn reuse(retired: Retired<PageBuffer, FromDevice>) -> PageBuffer {
    retired.buffer
}

fn main() {}
