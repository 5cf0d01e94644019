//! Nobody learns an address of a reservation that is not synced.

use iommu::dma::{DeviceSegment, PageBuffer, Reservation, ToDevice};

fn describe(reservation: &Reservation<PageBuffer, ToDevice>) -> Option<DeviceSegment> {
    reservation.segments().next()
}

fn main() {}
