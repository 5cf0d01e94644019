//! What the device may use takes no more buffers.

use iommu::dma::{DmaError, PageBuffer, Reservation, ToDevice};

fn late(mut request: Reservation<PageBuffer, ToDevice>, page: PageBuffer) -> Result<(), DmaError> {
    let mapping = request.sync();
    request.link(page)?;
    drop(mapping);
    Ok(())
}

fn main() {}
