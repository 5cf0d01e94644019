//! What the owner's devices only read nobody writes.

use iommu::{Bidirectional, DmaDomain, Mapping, PageBuffer, ToDevice};

fn granted(mapping: Mapping<PageBuffer, ToDevice>, domain: &DmaDomain) {
    let _ = mapping.grant(domain, Bidirectional);
}

fn main() {}
