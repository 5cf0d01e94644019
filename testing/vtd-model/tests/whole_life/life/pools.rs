//! Pools: buffers that a device reaches for as long as the pool lives, taken or not.

use iommu::{Bidirectional, DmaError, Pool, PoolBuffer};

use super::{
    Life, PAGE,
    memory::{Standing, Touched},
};
use crate::{
    oracle::{Mapped, State},
    step::Step,
};

pub(super) struct LivePool {
    pub function: usize,
    pub standing: Standing,
    pool: Pool<Bidirectional>,
    taken: Vec<PoolBuffer<Bidirectional>>,
    /// Addresses of its pages.
    pages: Vec<u64>,
}

impl Life {
    pub(super) fn make_pool(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(function) = self.pick_claimed(step.a) else { return Ok(None) };
        let (bytes, count) = (1 + step.b as usize % 6_000, 1 + step.c as usize % 40);
        let handle = self.functions[function].handle.clone().expect("claimed");
        handle.set_address_bits(64);
        let pool = match handle.dma_pool(bytes, count, Bidirectional) {
            Ok(pool) => pool,
            Err(DmaError::OutOfMemory) if self.short_of_memory => {
                // Those runs that it got are on their way back.
                self.reap();
                return Ok(None);
            }
            Err(error) => return Err(format!("a pool of {count} times {bytes}: {error}")),
        };
        let mut taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let mut pages: Vec<u64> = taken.iter().flat_map(pages_of).collect();
        pages.sort_unstable();
        pages.dedup();
        let group = self.functions[function].group;
        for &page in &pages {
            let mapped = Mapped { bytes: PAGE, physical: None, read: true, write: true, state: State::InUse };
            let inserted = self.groups[group].oracle.insert(page, mapped);
            inserted.map_err(|other| format!("a pool at {page:#x} overlaps {other:#x}"))?;
        }
        if taken.len() != count {
            return Err(format!("{} of {count} buffers", taken.len()));
        }
        let touched = Some((group, pages[0], PAGE));
        taken.truncate(count / 2);
        self.pools.push(LivePool { function, standing: Standing::InUse, pool, taken, pages });
        Ok(touched)
    }

    /// A buffer is taken, used by CPU and device, and kept or given back.
    pub(super) fn use_pool(&mut self, step: &Step) -> Result<Touched, String> {
        if self.pools.is_empty() {
            return Ok(None);
        }
        let at = step.a as usize % self.pools.len();
        let LivePool { function, standing, pool, taken, .. } = &mut self.pools[at];
        let Some(mut buffer) = pool.take() else {
            if taken.len() != pool.capacity() {
                return Err(format!(
                    "{} of {} buffers are taken, and none is free",
                    taken.len(),
                    pool.capacity()
                ));
            }
            taken.truncate(step.b as usize % taken.len());
            return Ok(None);
        };
        let mut data: Vec<u8> = (0..buffer.len()).map(|index| (step.c as usize + index) as u8).collect();
        let mut seen = vec![0; data.len()];
        let iova = buffer.iova().as_u64();
        buffer.copy_from(0, &data);
        if *standing == Standing::InUse {
            let hardware = &self.functions[*function].hardware;
            hardware.read(iova, &mut seen).map_err(|error| format!("a pool's {iova:#x}: {error:?}"))?;
            if seen != data {
                return Err(format!("the device does not see what is in the pool at {iova:#x}"));
            }
            data.iter_mut().for_each(|byte| *byte = !*byte);
            hardware.write(iova, &data).map_err(|error| format!("a pool's {iova:#x}: {error:?}"))?;
        }
        buffer.copy_to(0, &mut seen);
        if seen != data {
            return Err(format!("the pool at {iova:#x} does not hold what was written"));
        }
        if step.b & 1 != 0 {
            taken.push(buffer);
        }
        Ok(None)
    }

    pub(super) fn drop_pool(&mut self, index: usize) -> Touched {
        let LivePool { function, standing, pool, taken, pages } = self.pools.swap_remove(index);
        let group = self.functions[function].group;
        // The last buffer keeps the pool alive.
        drop(pool);
        drop(taken);
        if standing != Standing::InUse {
            return None;
        }
        pages.iter().for_each(|&page| self.groups[group].oracle.set_state(page, State::Dropped));
        Some((group, pages[0], PAGE))
    }
}

/// The pages that a buffer lies in.
fn pages_of(buffer: &PoolBuffer<Bidirectional>) -> impl Iterator<Item = u64> + use<> {
    let (first, end) = (buffer.iova().as_u64(), buffer.iova().as_u64() + buffer.len() as u64);
    (first / PAGE..end.div_ceil(PAGE)).map(|page| page * PAGE)
}
