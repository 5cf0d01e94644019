//! The end of a group whose functions belong to another one from now on.

use super::{ClaimError, DomainMaker, Group};
use crate::{PciAddress, backend::Backend, protection::HotplugError};

impl<B: Backend> Group<B> {
    /// Whether nobody gets the group any more.
    pub fn is_retired(&self, platform: &B::Platform) -> bool {
        self.state.lock(platform).retired
    }

    /// Ends the group, which then reaches nothing, if nobody has it. One that has ended already is no error.
    pub fn retire(&self, maker: &DomainMaker<B>) -> Result<(), HotplugError> {
        let platform = &**maker.backend.platform();
        let Some(&function) = self.layout.functions.first() else { return Ok(()) };
        match self.begin(maker, function) {
            Err(ClaimError::Unknown { .. }) => return Ok(()),
            Err(_) => return Err(HotplugError::InUse { function }),
            Ok(_) => {}
        }
        let result = self.check_free(platform, function).and_then(|()| Ok(self.block_reserved(platform)?));
        self.end(maker).retired = result.is_ok();
        result
    }

    /// Undoes [`retire`](Self::retire).
    pub fn revive(&self, maker: &DomainMaker<B>) {
        self.state.lock(&**maker.backend.platform()).retired = false;
        if let Err(error) = self.map_reserved(maker) {
            log::error!("reserved memory of {:?}: {error}", self.layout.functions);
        }
    }

    fn check_free(&self, platform: &B::Platform, function: PciAddress) -> Result<(), HotplugError> {
        let state = self.state.lock(platform);
        let is_free = state.claimed.is_empty() && !state.quarantined;
        if is_free { Ok(()) } else { Err(HotplugError::InUse { function }) }
    }
}
