//! A mapping is unmapped once.

use iommu::dma::{FromDevice, Mapping, PageBuffer};

fn twice(mapping: Mapping<PageBuffer, FromDevice>) {
    let _ = mapping.unmap();
    let _ = mapping.unmap();
}

fn main() {}
