//! What makes the admin queue a fast attacker. It is safe because what the controller can reach is up to the IOMMU; it
//! exists to show that, in tests and in the shell.

use iommu::Iova;

use super::{Command, Controller, NvmeError, Status, controller::COMMAND_DEADLINE_NS};

impl Controller {
    /// Has the controller write its Identify page, 4 KiB, to `iova`, an address of the caller's choice at the start of
    /// a page, and returns what it says about that: usually success, whatever the IOMMU made of it.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn write_at(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        Ok(self.execute(Command::identify_controller(iova.as_u64()))?.status)
    }

    /// As [`write_at`](Self::write_at), but has the controller read 8 bytes from `iova`: its clock. Bits 47:0 come back
    /// by [`timestamp_to`](Self::timestamp_to), a little later than they were.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn read_at(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        Ok(self.execute(Command::set_timestamp(iova.as_u64()))?.status)
    }

    /// Has the controller write its clock, 8 bytes, to `iova`.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn timestamp_to(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        Ok(self.execute(Command::get_timestamp(iova.as_u64()))?.status)
    }

    /// Keeps the admin queue full of commands that write 4 KiB to `iova`, until `count` were sent or the controller
    /// does not answer any more, which is no error here. Returns how many it has finished. See
    /// [`write_at`](Self::write_at).
    ///
    /// # Errors
    /// It broke the protocol of its queue, or could not be reset after that or its silence.
    pub fn flood(&mut self, iova: Iova, count: usize) -> Result<usize, NvmeError> {
        let (mut sent, mut done) = (0, 0);
        while done < count {
            let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
            while sent < count && admin.submit(Command::identify_controller(iova.as_u64()), ()).is_ok() {
                sent += 1;
            }
            self.doorbells.submission_tail.write(admin.tail().into());
            match self.await_completion(self.deadline_ns(COMMAND_DEADLINE_NS)) {
                Ok(_) => done += 1,
                Err(error) => {
                    self.reset_after(error)?;
                    return if error == NvmeError::TimedOut { Ok(done) } else { Err(error) };
                }
            }
        }
        Ok(done)
    }
}
