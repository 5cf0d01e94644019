//! A buffer is the device's while it is mapped.

use iommu::dma::{DmaDevice, FromDevice, PageBuffer};

fn peek(device: &DmaDevice, buffer: PageBuffer) -> u8 {
    let _mapping = device.dma_map(buffer, FromDevice);
    buffer[0]
}

fn main() {}
