//! The handle through which a driver's device reaches memory.

use alloc::vec::Vec;
use core::fmt;

use mm::PAGE_BYTES;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Coherent, Direction, DmaBuffer, DmaError, Mapping, PageBuffer, Pool, Rejected, Reservation, ScatterList,
    ScatterMapping, SegmentLimits, Unmapped,
    limits::Limits,
    space::{Placement, Space},
    tenure::Tenure,
};
use crate::{
    Iova, PciAddress,
    arc::{Room, TryArc},
};

/// One claimed PCI function, as its driver holds it. Clones are the same device.
///
/// # Examples
/// ```no_run
/// use iommu::{DmaDevice, DmaError, Iommu, PciAddress, ToDevice};
///
/// /// A driver claims its function, maps what the device is to read, and takes it back when the device is done.
/// fn send(iommu: &Iommu, function: PciAddress, transfer: impl Fn(u64, usize)) -> Result<(), Box<dyn std::error::Error>> {
///     let device: DmaDevice = iommu.claim(function)?;
///     let mapping = device.dma_map(vec![7_u8; 100], ToDevice)?;
///     transfer(mapping.iova().as_u64(), mapping.len());
///     let bytes: Vec<u8> = mapping.unmap()?;
///     assert_eq!(bytes.len(), 100);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct DmaDevice {
    pub(super) shared: TryArc<Shared>,
}

/// What the clones of a [`DmaDevice`] share.
pub(crate) struct Shared {
    function: PciAddress,
    space: TryArc<dyn Space>,
    pub(super) tenure: TryArc<dyn Tenure>,
    limits: Limits,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.space.let_go();
    }
}

impl DmaDevice {
    pub(crate) fn new(
        room: Room<Shared>,
        function: PciAddress,
        space: TryArc<dyn Space>,
        tenure: TryArc<dyn Tenure>,
    ) -> Self {
        Self { shared: room.fill(Shared { function, space, tenure, limits: Limits::none() }) }
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> PciAddress {
        self.shared.function
    }

    /// States how many address bits the device can send (32 for a device with 32-bit descriptors). Mappings made from
    /// now on lie below. All 64 until it is called.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, DmaError, PageBuffer, ToDevice};
    ///
    /// /// Of a device whose descriptors hold 32 bits of address.
    /// fn first_page(device: &DmaDevice, page: PageBuffer) -> Result<u32, DmaError> {
    ///     device.set_address_bits(32);
    ///     let mapping = device.dma_map(page, ToDevice)?;
    ///     Ok(mapping.iova().as_u64() as u32)
    /// }
    /// ```
    pub fn set_address_bits(&self, bits: u32) {
        let last = 1_u64.checked_shl(bits).map_or(u64::MAX, |limit| limit - 1);
        self.shared.limits.set_last(last);
    }

    /// States what one entry of the device's lists can describe. A buffer that is mapped from now on, and one of a
    /// pool, is one run within the limits, or refused; a list is cut into such runs by [`ScatterMapping::segments`].
    /// Coherent memory is where lists are, and in none. No limits until it is called.
    ///
    /// # Panics
    /// If there is nothing that fits: no bytes, or a boundary that is neither 0 nor a power of two of at least 4 KiB.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, dma::SegmentLimits};
    ///
    /// /// Of a controller whose descriptors hold 16 bits of length, and no address that carries into bit 32.
    /// fn state_limits(device: &DmaDevice) {
    ///     device.set_address_bits(64);
    ///     device.set_segment_limits(SegmentLimits { max_bytes: 0xf000, boundary: 1 << 32 });
    /// }
    /// ```
    pub fn set_segment_limits(&self, limits: SegmentLimits) {
        let SegmentLimits { max_bytes, boundary } = limits;
        assert!(max_bytes > 0 && (boundary == 0 || boundary >= PAGE_BYTES && boundary.is_power_of_two()));
        let max_bytes = if boundary == 0 { max_bytes } else { max_bytes.min(boundary) };
        self.shared.limits.set_segment(SegmentLimits { max_bytes, boundary });
    }

    /// Lends `buffer`, of any length and alignment, to the device in direction `D`.
    ///
    /// The device reaches the buffer's bytes and none beside them. Whole pages are mapped where they are; what is left
    /// at the two ends is copied to a page of its own each, and back by [`unmap`](Mapping::unmap) if the device may
    /// write. Buffers of whole pages cost no copy: [`PageBuffer`](super::PageBuffer) always is.
    ///
    /// # Errors
    /// The buffer comes back in [`Rejected`], together with the reason.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::dma::{DmaDevice, DmaError, FromDevice, PageBuffer};
    ///
    /// fn receive(device: &DmaDevice, start: impl Fn(iommu::Iova, usize)) -> Result<PageBuffer, DmaError> {
    ///     let buffer = PageBuffer::zeroed(1).ok_or(DmaError::OutOfMemory)?;
    ///     let mapping = device.dma_map(buffer, FromDevice)?;
    ///     start(mapping.iova(), mapping.len());
    ///     mapping.unmap()
    /// }
    /// ```
    #[track_caller]
    pub fn dma_map<B: DmaBuffer, D: Direction>(
        &self,
        buffer: B,
        _direction: D,
    ) -> Result<Mapping<B, D>, Rejected<B>> {
        let limits = &self.shared.limits;
        Mapping::new(&self.shared.space, buffer, limits.whole(), limits.longest())
    }

    /// As [`dma_map`](Self::dma_map), at an IOVA of the caller's choice: for protocols that fix addresses, for owners
    /// that lay out the address space of their domain, and tests. It has the buffer's offset in its page.
    ///
    /// # Errors
    /// [`DmaError::TooLong`] is said of the longest run from there, up to the next multiple of a boundary. Also
    /// [`DmaError::IovaTaken`], [`DmaError::IovaReserved`], [`DmaError::IovaBeyond`] and [`DmaError::IovaUnaligned`].
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, DmaError, FromDevice, Iova, PageBuffer};
    ///
    /// /// For a device that writes to one address, whatever it is told.
    /// fn mailbox(device: &DmaDevice) -> Result<PageBuffer, DmaError> {
    ///     let page = PageBuffer::zeroed(1).ok_or(DmaError::OutOfMemory)?;
    ///     let mapping = device.dma_map_at(page, FromDevice, Iova::new(0x1000_0000))?;
    ///     mapping.unmap()
    /// }
    /// ```
    #[track_caller]
    pub fn dma_map_at<B: DmaBuffer, D: Direction>(
        &self,
        buffer: B,
        _direction: D,
        iova: Iova,
    ) -> Result<Mapping<B, D>, Rejected<B>> {
        let limits = &self.shared.limits;
        Mapping::new(&self.shared.space, buffer, limits.at(iova), limits.segment().longest_from(iova))
    }

    /// An array of `count` elements, zeroed, that the CPU and the device share until it is dropped.
    ///
    /// # Errors
    /// [`DmaError::BadLength`] for a count of zero, and the errors of [`dma_map`](Self::dma_map).
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Coherent, DmaDevice, DmaError};
    ///
    /// /// A ring of 256 entries of 8 bytes; `tell` writes its address to the device.
    /// fn ring(device: &DmaDevice, tell: impl Fn(u64)) -> Result<Coherent<u64>, DmaError> {
    ///     let mut ring = device.alloc_coherent::<u64>(256)?;
    ///     ring.write(0, 1);
    ///     tell(ring.iova().as_u64());
    ///     Ok(ring)
    /// }
    /// ```
    #[track_caller]
    pub fn alloc_coherent<T: FromBytes + IntoBytes + Copy>(
        &self,
        count: usize,
    ) -> Result<Coherent<T>, DmaError> {
        Coherent::new(self, count, self.shared.limits.anywhere())
    }

    /// Lends all buffers of `list` to the device in direction `D`, in one range of addresses, with one flush where the
    /// hardware asks for any.
    ///
    /// # Errors
    /// As [`dma_map`](Self::dma_map), for all of them; [`DmaError::BadLength`] for an empty list.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::dma::{DmaDevice, DmaError, PageBuffer, ScatterList, ToDevice};
    ///
    /// fn send(
    ///     device: &DmaDevice,
    ///     list: ScatterList<PageBuffer>,
    ///     mut describe: impl FnMut(iommu::Iova, u64),
    ///     transfer: impl Fn(),
    /// ) -> Result<ScatterList<PageBuffer>, DmaError> {
    ///     let mapping = device.dma_map_sg(list, ToDevice)?;
    ///     mapping.segments().for_each(|segment| describe(segment.iova, segment.bytes));
    ///     transfer();
    ///     mapping.unmap()
    /// }
    /// ```
    #[track_caller]
    pub fn dma_map_sg<B: DmaBuffer, D: Direction>(
        &self,
        list: ScatterList<B>,
        _direction: D,
    ) -> Result<ScatterMapping<B, D>, Rejected<ScatterList<B>>> {
        let limits = &self.shared.limits;
        ScatterMapping::new(&self.shared.space, list, limits.anywhere(), limits.segment())
    }

    /// A range of addresses of `bytes` bytes, made whole pages, for buffers that the driver comes to one by one, with
    /// room for `pieces` of them: see [`Reservation`]. Each takes the pages that it touches.
    ///
    /// # Errors
    /// [`DmaError::BadLength`] for no bytes, or more than there can be; [`DmaError::NoIova`];
    /// [`DmaError::OutOfMemory`]; and what says that nothing can be mapped for the device any more.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, DmaError, PageBuffer, ToDevice};
    ///
    /// fn two(device: &DmaDevice, first: PageBuffer, second: PageBuffer) -> Result<(), DmaError> {
    ///     let mut request = device.dma_reserve(2, first.len() + second.len(), ToDevice)?;
    ///     request.link(first)?;
    ///     request.link(second)?;
    ///     let mapping = request.sync();
    ///     mapping.unmap().map(drop)
    /// }
    /// ```
    pub fn dma_reserve<B: DmaBuffer, D: Direction>(
        &self,
        pieces: usize,
        bytes: usize,
        _direction: D,
    ) -> Result<Reservation<B, D>, DmaError> {
        let limits = &self.shared.limits;
        Reservation::new(&self.shared.space, pieces, bytes, limits.anywhere(), limits.segment())
    }

    /// Takes many buffers back for one doorbell and one wait. When this returns, no unit can translate an address of
    /// any of them. Takes nothing from the heap.
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`], with the same consequences for all buffers.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::dma::{DmaDevice, DmaError, FromDevice, Mapping, PageBuffer};
    ///
    /// fn completed(
    ///     device: &DmaDevice,
    ///     mappings: Vec<Mapping<PageBuffer, FromDevice>>,
    ///     deliver: impl FnMut(PageBuffer),
    /// ) -> Result<(), DmaError> {
    ///     device.unmap_batch(mappings)?.for_each(deliver);
    ///     Ok(())
    /// }
    /// ```
    pub fn unmap_batch<B: DmaBuffer, D: Direction>(
        &self,
        mappings: Vec<Mapping<B, D>>,
    ) -> Result<Unmapped<B, D>, DmaError> {
        Unmapped::new(mappings)
    }

    /// `count` buffers of `bytes` bytes each, zeroed, that the device can reach in direction `D` until the pool is
    /// gone: for devices that move many small pieces, such as packets.
    ///
    /// # Errors
    /// [`DmaError::BadLength`] for no buffers, buffers of no bytes, or more than there can be, and the errors of
    /// [`dma_map`](Self::dma_map).
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, DmaError, ToDevice};
    ///
    /// /// Packets of up to 2 KiB: no map and no unmap for each.
    /// fn queue(device: &DmaDevice, packet: &[u8], post: impl Fn(u64, usize)) -> Result<(), DmaError> {
    ///     let pool = device.dma_pool(2048, 256, ToDevice)?;
    ///     let mut buffer = pool.take().ok_or(DmaError::OutOfMemory)?;
    ///     buffer.copy_from(0, packet);
    ///     post(buffer.iova().as_u64(), packet.len());
    ///     Ok(())
    /// }
    /// ```
    #[track_caller]
    pub fn dma_pool<D: Direction>(
        &self,
        bytes: usize,
        count: usize,
        _direction: D,
    ) -> Result<Pool<D>, DmaError> {
        Pool::new(self, bytes, count, self.shared.limits.whole())
    }

    /// Maps pages that the device is not told of as one entry of a list.
    #[track_caller]
    pub(super) fn map_pages<D: Direction>(
        &self,
        pages: PageBuffer,
        placement: Placement,
    ) -> Result<Mapping<PageBuffer, D>, DmaError> {
        let mapping = Mapping::new(&self.shared.space, pages, placement, u64::MAX);
        mapping.map_err(|Rejected { error, .. }| error)
    }

    /// Longest run that the device can describe, in bytes.
    pub(super) fn longest_segment(&self) -> u64 {
        self.shared.limits.longest()
    }
}

impl fmt::Debug for DmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DmaDevice").field(&self.function()).finish()
    }
}
