//! The server's end of a block device: what it offers, the requests that it takes, and how they ended.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use iommu::DmaDevice;

use super::{
    CompleteError, DEPTH_MAX, Offer, Order, Phase, REQUEST_BYTES_MAX, ServeError, Served, Server, State,
};
use crate::{
    block::{BlockDevice, BlockError},
    faults::{Doubt, FaultWatch},
    host::Host,
    lock::Lock,
};

/// The server's end of it. Dropping it is the end of the device.
pub struct Service(pub(super) Arc<Served>);

impl Service {
    /// A device on which `server` offers `offer`, by the function of `dma`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn new(
        host: &Arc<dyn Host>,
        dma: DmaDevice,
        offer: Offer,
        server: Arc<dyn Server>,
    ) -> Result<Self, ServeError> {
        let Offer { info, depth, .. } = offer;
        let is_block = (512..=4096).contains(&info.block_bytes) && info.block_bytes.is_power_of_two();
        let is_medium = info.blocks > 0 && info.blocks.checked_mul(info.block_bytes.into()).is_some();
        let is_request = (1..=REQUEST_BYTES_MAX / u64::from(info.block_bytes.max(1)))
            .contains(&info.blocks_per_request.into());
        if !is_block || !is_medium || !is_request || !(1..=DEPTH_MAX).contains(&depth) {
            return Err(ServeError::Nonsense);
        }
        let mut pending = Vec::new();
        pending.try_reserve_exact(depth).map_err(|_| ServeError::OutOfMemory)?;
        let state = State {
            phase: Phase::Running,
            pending,
            moving: 0,
            last_id: 0,
            failures: 0,
            failed_with: BlockError::Gone,
            next_look_ns: u64::MAX,
        };
        let served = Arc::new(Served {
            host: host.clone(),
            offer,
            server,
            faults: FaultWatch::default(),
            state: Lock::new(host.clone(), state),
            look: host.event(),
            ended: host.event(),
            resets: AtomicU64::new(0),
            dma,
        });
        served.faults.check(&served.dma);
        let keeper = served.clone();
        host.spawn("served", Box::new(move || keeper.keep())).map_err(ServeError::Spawn)?;
        Ok(Self(served))
    }

    /// The device for its callers.
    #[must_use]
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.0.clone()
    }

    /// What is offered.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.0.offer
    }

    /// Whether there is a request to take.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        let state = self.0.state.lock();
        state.pending.iter().any(|pending| pending.failures == state.failures && !pending.is_taken)
    }

    /// Whether the device is to be reset, and [`restart`](Self::restart)ed then.
    #[must_use]
    pub fn is_to_reset(&self) -> bool {
        matches!(self.0.state.lock().phase, Phase::Resetting { .. })
    }

    /// The server has reset its device, and takes requests again.
    pub fn restart(&self) {
        let mut state = self.0.state.lock();
        if let Phase::Resetting { .. } = state.phase {
            state.phase = Phase::Running;
            drop(state);
            self.0.resets.fetch_add(1, Ordering::Release);
        }
    }

    /// Gives the server a request that it has not, by `give`, with the data if they are to be written. False if there
    /// is none.
    ///
    /// # Errors
    /// What `give` says: the request waits as before.
    pub fn take<E>(&mut self, give: impl FnOnce(&Order, &[u8]) -> Result<(), E>) -> Result<bool, E> {
        let served = &self.0;
        let Some(mut pending) = served.pull(|pending| !pending.is_taken) else {
            return Ok(false);
        };
        pending.faults = served.faults.last();
        let given = give(&pending.order(), pending.to_write(&served.offer.info));
        pending.is_taken = given.is_ok();
        served.put_back(pending);
        given.map(|()| true)
    }

    /// The server says how request `id` ended; what it has read comes by `fetch`.
    ///
    /// # Errors
    /// See [`CompleteError`].
    pub fn complete<E>(
        &mut self,
        id: u64,
        result: Result<(), BlockError>,
        fetch: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), CompleteError<E>> {
        let served = &self.0;
        let pulled = served.pull(|pending| pending.is_taken && pending.id == id);
        let mut pending = pulled.ok_or(CompleteError::NoSuchRequest)?;
        if result.is_ok() {
            let fetched = match pending.for_filling(&served.offer.info) {
                [] => Ok(()),
                buffer => fetch(buffer),
            };
            if let Err(error) = fetched {
                served.put_back(pending);
                return Err(CompleteError::Data(error));
            }
        }
        let result = match Doubt::of(pending.faults, served.faults.check(&served.dma)) {
            Doubt::None => result,
            Doubt::Repeat if pending.deadline_ns > served.host.now_ns() => {
                pending.is_taken = false;
                served.put_back(pending);
                served.server.wake();
                return Ok(());
            }
            Doubt::Repeat | Doubt::Blocked => Err(BlockError::Blocked),
        };
        served.state.lock().moving -= 1;
        pending.finish(result);
        Ok(())
    }

    /// Fails what there is, and takes nothing more.
    pub fn stop(&self) {
        self.0.fail(Phase::Gone, BlockError::Gone);
        self.0.look.signal();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        self.0.ended.signal();
    }
}
