//! A controller that has others under it: the physical function of an NVMe device, whose virtual functions are *secondary
//! controllers*.
//!
//! These can do nothing until the primary one has given them queues and interrupts and has said that they may be used, and that holds
//! until it is reset itself, or turned off. So whoever has the primary controller rules over all of them, and it is the kernel's as
//! long as they are on. It does nothing else meanwhile.

use alloc::sync::Arc;

use iommu::{DmaDevice, PageBuffer, ToDevice};
use nvme_spec::{Command, IDENTIFY_BYTES, Resource, Secondary, flexible, namespaces, secondaries};

use super::{Controller, NvmeError};
use crate::{host::Host, pci::reset_function};

/// Least queue pairs of a secondary controller: for admin commands, and for requests. As many interrupts go with them.
const LEAST: u16 = 2;

/// A controller that has secondary ones. Dropping it turns it off, and them with it.
pub struct Primary {
    controller: Controller,
    manages_namespaces: bool,
}

impl Primary {
    /// Takes `dma`'s function into use, which has no virtual functions now. What it shares with secondary controllers it leaves to
    /// them.
    ///
    /// # Errors
    /// It has none, or something it needs is not to be had. It is left without bus mastering.
    pub fn open(host: &Arc<dyn Host>, dma: DmaDevice) -> Result<Self, NvmeError> {
        let mut controller = Controller::open(host, dma.clone())?;
        let identity = controller.identify()?;
        if !identity.manages_secondaries() {
            return Err(NvmeError::NoSecondaries);
        }
        let page = controller.identify_with(Command::identify_primary)?;
        let page = page.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        if Resource::ALL.iter().any(|&resource| flexible(page, resource).of_primary > 0) {
            for resource in Resource::ALL {
                controller.do_admin(Command::give_up(resource))?;
            }
            // Only a reset of the function makes that so.
            drop(controller);
            reset_function(&**host, dma.function())?;
            controller = Controller::open(host, dma)?;
        }
        Ok(Self { controller, manages_namespaces: identity.manages_namespaces() })
    }

    /// Its DMA handle.
    #[must_use]
    pub fn dma(&self) -> &DmaDevice {
        self.controller.dma()
    }

    /// Has the first `count` virtual functions, which are on, work as controllers, each with an equal share of queues and
    /// interrupts. Each gets a namespace of those that are not the primary controller's, in their order, as far as there are any.
    ///
    /// # Errors
    /// See [`NvmeError`]. Some of them may work then.
    pub fn bring_online(&mut self, count: u16) -> Result<(), NvmeError> {
        let capabilities = self.controller.identify_with(Command::identify_primary)?;
        let capabilities = capabilities.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let list = self.controller.identify_with(Command::identify_secondaries)?;
        let list = list.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        for number in 1..=count {
            let secondary = secondaries(list).find(|secondary| secondary.number == number);
            let secondary = secondary.ok_or(NvmeError::NoSecondary { number })?;
            for resource in Resource::ALL {
                let share = flexible(capabilities, resource).share(count);
                if share < LEAST {
                    return Err(NvmeError::TooLittle { resource, share });
                }
                self.controller.do_admin(Command::give_to_secondary(secondary.id, resource, share))?;
            }
            self.controller.do_admin(Command::bring_online(secondary.id))?;
            self.attach_namespace(secondary)?;
        }
        Ok(())
    }

    /// Attaches the namespace of `secondary` to it, if there is one.
    fn attach_namespace(&mut self, secondary: Secondary) -> Result<(), NvmeError> {
        if !self.manages_namespaces {
            return Ok(());
        }
        let own = self.controller.identify_with(Command::identify_active_namespaces)?;
        let own = own.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let all = self.controller.identify_with(Command::identify_allocated_namespaces)?;
        let all = all.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let mut free = namespaces(all).filter(|&id| namespaces(own).all(|own| own != id));
        let Some(namespace) = free.nth(usize::from(secondary.number) - 1) else { return Ok(()) };
        let mut controllers = PageBuffer::zeroed(1).ok_or(NvmeError::OutOfMemory)?;
        controllers[..2].copy_from_slice(&1_u16.to_le_bytes());
        controllers[2..4].copy_from_slice(&secondary.id.to_le_bytes());
        let attach = |at| Command::attach_namespace(namespace, at);
        match self.controller.execute_with(controllers, ToDevice, attach) {
            Err(NvmeError::Status(status)) if status.is_attached_already() => Ok(()),
            result => result.map(drop),
        }
    }
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
