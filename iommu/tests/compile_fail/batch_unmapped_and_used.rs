//! A mapping that is in a batch is unmapped with it.

use iommu::dma::{DmaDevice, FromDevice, Mapping, PageBuffer};

fn reuse(device: &DmaDevice, mappings: Vec<Mapping<PageBuffer, FromDevice>>) -> iommu::Iova {
    let _ = device.unmap_batch(mappings);
    mappings[0].iova()
}

fn main() {}
