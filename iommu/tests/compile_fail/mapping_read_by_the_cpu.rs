//! A mapping has no way to its memory.

use iommu::dma::{FromDevice, Mapping, PageBuffer};

fn peek(mapping: &Mapping<PageBuffer, FromDevice>, bytes: &mut [u8]) {
    mapping.copy_to(0, bytes);
}

fn main() {}
