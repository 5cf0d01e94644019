//! Each cache of the model keeps its entries until exactly the right invalidation.

#[path = "../by_hand/mod.rs"]
mod by_hand;
mod device_tlbs;
mod interrupts;
mod requests;
mod stores;
mod translations;

use vtd_model::MachineConfig;

const IOVA: u64 = 0x12_3456_7000;

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}
