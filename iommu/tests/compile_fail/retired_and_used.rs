//! A mapping that is given up has no address any more.

use iommu::dma::{FromDevice, Mapping, PageBuffer};

fn reuse(mapping: Mapping<PageBuffer, FromDevice>, post: impl Fn(iommu::Iova)) {
    let _retired = mapping.retire();
    post(mapping.iova());
}

fn main() {}
