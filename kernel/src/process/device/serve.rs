//! A block device that a process makes of its device. Requests and their data are copied between it and the kernel, in
//! its own thread.

use alloc::sync::{Arc, Weak};

use abi::{BlockOffer, BlockOperation, BlockOutcome, BlockRequest, Error};
use drivers::block::{
    BlockError, BlockInfo, Kind,
    served::{CompleteError, Offer, Order, ServeError, Server, Service},
};

use super::Given;
use crate::process::{Process, space::Space};

/// The process, as its block device sees it.
struct Serving(Weak<Process>);

impl Server for Serving {
    fn wake(&self) {
        if let Some(process) = self.0.upgrade() {
            process.changed.wake_all();
        }
    }

    fn end(&self) {
        if let Some(process) = self.0.upgrade() {
            process.kill();
        }
    }
}

impl Given {
    /// Makes the block device that the process describes at `address`, or has it take requests again.
    pub fn serve(&mut self, address: u64, space: &Space, process: &Arc<Process>) -> Result<u64, Error> {
        if !self.is_for_disk {
            return Err(Error::NotAllowed);
        }
        let offer = offer_of(BlockOffer::decode(space.read_words(address)?), process.name)?;
        if let Some(service) = &self.service {
            if service.offer() != offer || !service.is_to_reset() {
                return Err(Error::InUse);
            }
            service.restart();
            return Ok(0);
        }
        let server = Arc::new(Serving(Arc::downgrade(process)));
        let service = Service::new(&self.giver.host, self.dma.clone(), offer, server);
        let service = service.map_err(|error| match error {
            ServeError::Nonsense => Error::BadLength,
            ServeError::OutOfMemory | ServeError::Spawn(_) => Error::OutOfMemory,
        })?;
        let device = service.device();
        self.service = Some(service);
        self.giver.disks.put(device.clone());
        if self.is_lost() {
            // Whoever took it may have looked for its disk before.
            drop(self.giver.disks.remove(self.function()));
        }
        process.disk.call_once(|| device);
        process.changed.wake_all();
        Ok(0)
    }

    /// Hands a request over.
    pub fn take_request(&mut self, to: u64, data: u64, space: &mut Space) -> Result<u64, Error> {
        let service = self.service.as_mut().ok_or(Error::NotServing)?;
        let give = |order: &Order, bytes: &[u8]| {
            space.write(data, bytes)?;
            space.write_words(to, &request_of(order).encode())
        };
        service.take(give).map(u64::from)
    }

    /// Takes it that the request `id` ended so.
    pub fn complete_request(
        &mut self,
        id: u64,
        outcome: u64,
        code: u64,
        data: u64,
        space: &Space,
    ) -> Result<u64, Error> {
        let service = self.service.as_mut().ok_or(Error::NotServing)?;
        let result = match BlockOutcome::from_number(outcome).ok_or(Error::NoSuchOutcome)? {
            BlockOutcome::Done => Ok(()),
            BlockOutcome::Medium => Err(BlockError::Medium(code as u16)),
            BlockOutcome::Unsupported => Err(BlockError::Unsupported(code as u16)),
            BlockOutcome::Failed => Err(BlockError::Device(code as u16)),
        };
        let completed = service.complete(id, result, |buffer| space.read(data, buffer));
        completed.map(|()| 0).map_err(|error| match error {
            CompleteError::NoSuchRequest => Error::NoSuchRequest,
            CompleteError::Data(error) => error,
        })
    }
}

fn offer_of(offer: BlockOffer, driver: &'static str) -> Result<Offer, Error> {
    let BlockOffer { block_bytes, blocks, blocks_per_request, blocks_per_deallocation, depth, .. } = offer;
    let number = |value: u64| u32::try_from(value).map_err(|_| Error::BadLength);
    let info = BlockInfo {
        driver,
        block_bytes: number(block_bytes)?,
        blocks,
        blocks_per_request: number(blocks_per_request)?,
        blocks_per_deallocation: number(blocks_per_deallocation)?,
        read_only: offer.is_read_only,
    };
    let depth = usize::try_from(depth).map_err(|_| Error::BadLength)?;
    Ok(Offer { info, flushes: offer.flushes, depth })
}

fn request_of(order: &Order) -> BlockRequest {
    let operation = match order.kind {
        Kind::Read => BlockOperation::Read,
        Kind::Write => BlockOperation::Write,
        Kind::Flush => BlockOperation::Flush,
        Kind::Deallocate => BlockOperation::Deallocate,
    };
    let at = order.at.map_or(0, |at| at.as_u64());
    BlockRequest {
        id: order.id,
        operation,
        first: order.extent.first,
        blocks: order.extent.blocks.into(),
        at,
    }
}
