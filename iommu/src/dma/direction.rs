//! Directions of a transfer, as types: they decide the permissions of the mapping.

mod sealed {
    pub trait Sealed {}
}

/// What a device may do with mapped memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

/// The direction of a transfer. The three implementations are all there are.
///
/// # Examples
/// ```no_run
/// use iommu::{DmaBuffer, DmaDevice, DmaError, Mapping, dma::Direction};
///
/// /// Code that moves data either way says so by type.
/// fn map<B: DmaBuffer, D: Direction>(device: &DmaDevice, buffer: B, way: D) -> Result<Mapping<B, D>, DmaError> {
///     assert!(D::ACCESS.read || D::ACCESS.write);
///     Ok(device.dma_map(buffer, way)?)
/// }
/// ```
pub trait Direction: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Permissions that the device gets.
    const ACCESS: Access;
}

/// Directions in which the device reads.
pub trait DeviceReads: Direction {}

/// Directions in which the device writes.
pub trait DeviceWrites: Direction {}

/// Directions that allow nothing beyond `D`: what is lent in direction `D` may be passed on in them.
pub trait Within<D: Direction>: Direction {}

/// The device reads what the CPU wrote; it cannot write.
#[derive(Clone, Copy, Debug)]
pub struct ToDevice;

/// The device writes; it cannot read, unless a first stage translates, which has no entry for writes alone: see
/// [`UnitReport::first_stage`](crate::dump::UnitReport::first_stage). (A read of length zero moves nothing; units with
/// CAP.ZLR let it pass.)
#[derive(Clone, Copy, Debug)]
pub struct FromDevice;

/// The device reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Bidirectional;

impl sealed::Sealed for ToDevice {}
impl sealed::Sealed for FromDevice {}
impl sealed::Sealed for Bidirectional {}

impl Direction for ToDevice {
    const ACCESS: Access = Access { read: true, write: false };
}

impl Direction for FromDevice {
    const ACCESS: Access = Access { read: false, write: true };
}

impl Direction for Bidirectional {
    const ACCESS: Access = Access { read: true, write: true };
}

impl DeviceReads for ToDevice {}
impl DeviceReads for Bidirectional {}
impl DeviceWrites for FromDevice {}
impl DeviceWrites for Bidirectional {}

impl<D: Direction> Within<D> for D {}
impl Within<Bidirectional> for ToDevice {}
impl Within<Bidirectional> for FromDevice {}
