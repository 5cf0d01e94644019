//! A host kernel and one unit of registers for the unit tests of this folder.
//!
//! The unit obeys, refuses, dawdles or dies as a test asks; it panics when the driver does what hardware leaves
//! undefined. It caches nothing: what must be invalidated when is proved elsewhere, against a full model.

mod memory;
mod platform;
mod registers;

pub(crate) use memory::FakeMemory;
pub(crate) use platform::FakePlatform;
pub(crate) use registers::{Executed, FakeUnit, Manner};

/// All units of `platform`'s machine, which has one, up and translating; interrupts are not remapped.
#[cfg(loom)]
pub(crate) fn units_up(platform: &std::sync::Arc<FakePlatform>) -> std::sync::Arc<super::Vtd<FakePlatform>> {
    use super::{Discovered, InterruptControllers, Vtd};
    use crate::{
        Options,
        dmar::{Dmar, builder::TableBytes},
    };

    let table = TableBytes::new().drhd(0xfed9_0000, 0, true, &[]).finish();
    let dmar = Dmar::parse(&table).unwrap();
    let controllers = InterruptControllers { io_apics: &[], x2apic: false };
    let options = Options { interrupt_remapping: false, ..Options::default() };
    let found = Discovered::find(&**platform, &dmar).unwrap();
    let vtd = Vtd::bring_up(platform.clone(), found, &dmar, &controllers, options).unwrap();
    vtd.enable_translation().unwrap();
    std::sync::Arc::new(vtd)
}
