//! Memory that a second domain shares does not come back before the grant is revoked.

use iommu::{DmaDomain, FromDevice, Mapping, PageBuffer};

fn granted(mapping: Mapping<PageBuffer, FromDevice>, domain: &DmaDomain) {
    let _grant = mapping.grant(domain, FromDevice);
    let _ = mapping.unmap();
}

fn main() {}
