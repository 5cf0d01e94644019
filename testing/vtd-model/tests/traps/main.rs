//! One test for each trap that drivers of this hardware are known to have fallen into.

#[path = "../by_hand/mod.rs"]
mod by_hand;
mod caches;
mod faults;
mod interrupts;
mod machines;
mod queue;
#[path = "../unit/mod.rs"]
mod unit;

use driven::Driven;
use vtd_model::{MachineConfig, ModelBuffer};

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

/// Makes one device of `driven` a bus master with a handle.
fn claim(driven: &Driven, index: usize) -> (iommu::DmaDevice, vtd_model::Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}
