//! A controller that has others under it: the physical function of an NVMe device, whose virtual functions are
//! *secondary controllers*.
//!
//! These can do nothing until the primary one has given them queues and interrupts and has said that they may be used,
//! and that holds until it is reset itself, or turned off. So whoever has the primary controller rules over all of
//! them, and it is the kernel's as long as they are on. It does nothing else meanwhile.

use alloc::{sync::Arc, vec::Vec};

use iommu::{DmaDevice, PageBuffer, ToDevice};
use nvme_spec::{Command, IDENTIFY_BYTES, Resource, controllers, flexible, namespaces, secondaries};

use super::{Controller, NvmeError};
use crate::{
    host::Host,
    pci::{Function, reset_function},
};

/// Least queue pairs of a secondary controller: for admin commands, and for requests. As many interrupts go with them.
const LEAST: u16 = 2;

/// Most namespaces that are asked whose they are: each is a command, which may take its time.
const NAMESPACES_MAX: usize = 256;

/// A controller that has secondary ones. Dropping it turns it off, and them with it.
pub struct Primary {
    controller: Controller,
    manages_namespaces: bool,
}

impl Primary {
    /// Takes `function`, whose DMA handle is `dma`, into use, which has no virtual functions now. What it shares with
    /// secondary controllers it leaves to them.
    ///
    /// # Errors
    /// It has none, or something it needs is not to be had. It is left without bus mastering.
    pub fn open(host: &Arc<dyn Host>, dma: DmaDevice, function: &Function) -> Result<Self, NvmeError> {
        let mut controller = Controller::open(host, dma.clone(), function)?;
        let identity = controller.identify()?;
        if !identity.manages_secondaries() {
            return Err(NvmeError::NoSecondaries);
        }
        let page = controller.identify_with(Command::identify_primary)?;
        let page = page.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let of_primary = |&resource: &Resource| flexible(page, resource).is_some_and(|it| it.of_primary > 0);
        if Resource::ALL.iter().any(of_primary) {
            for resource in Resource::ALL.into_iter().filter(|resource| flexible(page, *resource).is_some()) {
                controller.do_admin(Command::give_up(resource))?;
            }
            // Only a reset of the function makes that so.
            drop(controller);
            if dma.was_taken_back() {
                return Err(NvmeError::Gone);
            }
            reset_function(&**host, dma.function())?;
            controller = Controller::open(host, dma, function)?;
        }
        Ok(Self { controller, manages_namespaces: identity.manages_namespaces() })
    }

    /// Its DMA handle.
    #[must_use]
    pub fn dma(&self) -> &DmaDevice {
        self.controller.dma()
    }

    /// Has the first `count` virtual functions, which are on, work as controllers, each with an equal share of queues
    /// and interrupts. Each has a namespace that is attached to no other controller afterwards, as far as there are
    /// any.
    ///
    /// # Errors
    /// See [`NvmeError`]. Some of them may work then.
    pub fn bring_online(&mut self, count: u16) -> Result<(), NvmeError> {
        let capabilities = self.controller.identify_with(Command::identify_primary)?;
        let capabilities = capabilities.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let list = self.controller.identify_with(Command::identify_secondaries)?;
        let list = list.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let mut free = self.free_namespaces()?;
        for number in 1..=count {
            let secondary = secondaries(list).find(|secondary| secondary.number == number);
            let secondary = secondary.ok_or(NvmeError::NoSecondary { number })?;
            for resource in Resource::ALL {
                let Some(flexible) = flexible(capabilities, resource) else { continue };
                let share = flexible.share(count);
                if share < LEAST {
                    return Err(NvmeError::TooLittle { resource, share });
                }
                self.controller.do_admin(Command::give_to_secondary(secondary.id, resource, share))?;
            }
            self.controller.do_admin(Command::bring_online(secondary.id))?;
            self.attach_namespace(secondary.id, &mut free)?;
        }
        Ok(())
    }

    /// The namespaces that are attached to no controller, or to one other alone, in their order. The first
    /// [`NAMESPACES_MAX`] are looked at.
    fn free_namespaces(&mut self) -> Result<Vec<Free>, NvmeError> {
        let mut free = Vec::new();
        if !self.manages_namespaces {
            return Ok(free);
        }
        let own = self.controller.identify_with(Command::identify_active_namespaces)?;
        let own = own.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let all = self.controller.identify_with(Command::identify_allocated_namespaces)?;
        let all = all.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let others = namespaces(all).filter(|&id| namespaces(own).all(|own| own != id));
        for namespace in others.take(NAMESPACES_MAX) {
            let attached = |to| Command::identify_attached_controllers(namespace, to);
            let attached = self.controller.identify_with(attached)?;
            let attached = attached.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
            let mut attached = controllers(attached);
            let of = attached.next();
            if attached.next().is_none() {
                free.try_reserve(1).map_err(|_| NvmeError::OutOfMemory)?;
                free.push(Free { namespace, of });
            }
        }
        Ok(free)
    }

    /// Attaches the first namespace that nobody has to `secondary`, unless it has one alone, as far as there is any.
    fn attach_namespace(&mut self, secondary: u16, free: &mut [Free]) -> Result<(), NvmeError> {
        if free.iter().any(|free| free.of == Some(secondary)) {
            return Ok(());
        }
        let Some(free) = free.iter_mut().find(|free| free.of.is_none()) else { return Ok(()) };
        let mut controllers = PageBuffer::zeroed(1).ok_or(NvmeError::OutOfMemory)?;
        controllers[..2].copy_from_slice(&1_u16.to_le_bytes());
        controllers[2..4].copy_from_slice(&secondary.to_le_bytes());
        let attach = |at| Command::attach_namespace(free.namespace, at);
        self.controller.execute_with(controllers, ToDevice, attach)?;
        free.of = Some(secondary);
        Ok(())
    }
}

/// A namespace that can be one secondary controller's alone.
struct Free {
    namespace: u32,
    /// Whose it is already.
    of: Option<u16>,
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
