//! From a controller to a disk: its namespace, and its I/O queues.

use iommu::Iova;

use nvme_spec::{Command, IDENTIFY_BYTES, Namespace, NamespaceError, bytes_at};

use super::{Controller, NvmeError};

/// Where an I/O queue pair is. Its MSI-X entry has its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PairPlace {
    /// Number of both queues, from 1 on.
    pub id: u16,
    /// Entries of each.
    pub size: u16,
    pub submission: Iova,
    pub completion: Iova,
}

impl Controller {
    /// The first active namespace; there may be up to `highest`.
    pub fn first_namespace(&mut self, highest: u32) -> Result<Namespace, NvmeError> {
        let list = self.identify_with(Command::identify_active_namespaces)?;
        let list = list.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        let id = u32::from_le_bytes(bytes_at(list, 0));
        if id == 0 {
            return Err(NvmeError::NoNamespace);
        }
        if id > highest {
            return Err(NvmeError::Namespace(NamespaceError::Id { id, highest }));
        }
        let page = self.identify_with(|to| Command::identify_namespace(id, to))?;
        let page = page.first_chunk::<IDENTIFY_BYTES>().ok_or(NvmeError::OutOfMemory)?;
        Namespace::decode(id, page).map_err(NvmeError::Namespace)
    }

    /// Asks for `wanted` I/O queue pairs, at least 1, and returns how many there are: at most that.
    pub fn set_queue_count(&mut self, wanted: u16) -> Result<u16, NvmeError> {
        let result = self.do_admin(Command::set_queue_count(wanted))?;
        // Submission queues in the low half, completion queues in the high one, both as one less.
        let given = (result as u16).min((result >> 16) as u16).saturating_add(1);
        Ok(given.min(wanted))
    }

    /// Makes the queues of a pair known to the controller.
    pub fn create_pair(&mut self, place: PairPlace) -> Result<(), NvmeError> {
        let PairPlace { id, size, submission, completion } = place;
        self.do_admin(Command::create_completion_queue(id, size, completion.as_u64(), id))?;
        self.do_admin(Command::create_submission_queue(id, size, submission.as_u64()))?;
        Ok(())
    }

    /// Has the controller end what is in a pair, one way or the other, and forget its queues. False if it does not.
    pub fn delete_pair(&mut self, place: PairPlace) -> bool {
        self.do_admin(Command::delete_submission_queue(place.id)).is_ok()
            && self.do_admin(Command::delete_completion_queue(place.id)).is_ok()
    }

    /// Asks the controller to end command `id` of submission queue `queue`. True if it says that it has.
    pub fn abort(&mut self, queue: u16, id: u16) -> bool {
        self.do_admin(Command::abort(queue, id)).is_ok_and(|result| result & 1 == 0)
    }

    /// Does an admin command and returns its result. An error status is an error.
    pub(super) fn do_admin(&mut self, command: Command) -> Result<u32, NvmeError> {
        let finished = self.execute(command)?;
        if finished.status.is_success() {
            Ok(finished.result)
        } else {
            Err(NvmeError::Status(finished.status))
        }
    }
}
