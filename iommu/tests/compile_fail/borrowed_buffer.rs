//! A borrow, of a stack for instance, may end before a transfer does.

use iommu::dma::{DmaDevice, FromDevice};

fn receive(device: &DmaDevice) {
    let mut bytes = [0_u8; 64];
    let _ = device.dma_map(&mut bytes[..], FromDevice);
}

fn main() {}
