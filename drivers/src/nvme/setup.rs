//! From a controller to a disk: its namespace, and its I/O queues.

use iommu::Iova;

use nvme_spec::{Command, IDENTIFY_BYTES, Namespace, NamespaceError, bytes_at};

use super::{Controller, NvmeError, queue::Finished};

/// How long the controller may take to make all its I/O queues, or to forget them, however many there are.
pub const QUEUES_DEADLINE_NS: u64 = 10_000_000_000;

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

    /// Makes the queues of `pairs` known to the controller.
    pub fn create_pairs(&mut self, pairs: &[PairPlace]) -> Result<(), NvmeError> {
        let deadline_ns = self.deadline_ns(QUEUES_DEADLINE_NS);
        for &PairPlace { id, size, submission, completion } in pairs {
            let create = Command::create_completion_queue(id, size, completion.as_u64(), id);
            result_of(self.execute_by(create, deadline_ns)?)?;
            let create = Command::create_submission_queue(id, size, submission.as_u64());
            result_of(self.execute_by(create, deadline_ns)?)?;
        }
        Ok(())
    }

    /// Has the controller end what is in `pairs`, one way or the other, and forget their queues. If it does not, which
    /// is false, it may still be about to: it has to be turned off.
    pub fn delete_pairs(&mut self, pairs: &[PairPlace]) -> bool {
        let deadline_ns = self.deadline_ns(QUEUES_DEADLINE_NS);
        let mut does = |command| self.ask(command, deadline_ns).and_then(result_of).is_ok();
        pairs.iter().all(|place| {
            does(Command::delete_submission_queue(place.id))
                && does(Command::delete_completion_queue(place.id))
        })
    }

    /// Asks the controller to end command `id` of submission queue `queue`. True if it says that it has.
    pub fn abort(&mut self, queue: u16, id: u16) -> bool {
        self.do_admin(Command::abort(queue, id)).is_ok_and(|result| result & 1 == 0)
    }

    /// Does an admin command and returns its result. An error status is an error.
    pub(super) fn do_admin(&mut self, command: Command) -> Result<u32, NvmeError> {
        result_of(self.execute(command)?)
    }
}

fn result_of(finished: Finished<()>) -> Result<u32, NvmeError> {
    let Finished { status, result, .. } = finished;
    if status.is_success() { Ok(result) } else { Err(NvmeError::Status(status)) }
}
