//! PCI: which functions there are, and what a driver does with its own.
//!
//! [`enumerate`] walks configuration space once and describes every [`Function`] without changing anything. A driver
//! opens its function as a [`Device`], which sizes and maps BARs, finds capabilities and switches memory decoding and
//! bus mastering; [`Msi`] and [`Msix`] own the interrupts that they deliver.
//!
//! Configuration space is the device's word: capability lists are bounded, offsets and sizes are checked, and all ones
//! (no device, or one that went away) is an answer like any other.

mod bar;
mod capability;
mod config;
mod device;
#[cfg(test)]
mod device_tests;
mod enumerate;
mod express;
#[cfg(test)]
pub mod fake;
mod function;
#[cfg(test)]
mod interrupt_tests;
mod lendable;
mod msi;
mod msix;
mod names;
mod reset;
mod resources;
mod slot;
mod sriov;

pub use bar::{BARS, Bar, BarError, BarKind, Bars};
pub use capability::{Capabilities, Capability, ExtendedCapabilities};
pub use config::{Config, ConfigSpace};
pub use device::Device;
pub use enumerate::{BusRange, enumerate};
pub use express::PortType;
pub use function::{Bridge, Class, Function, Id, Layout};
pub use lendable::{Contents, LendError, Lendable};
pub use msi::{Msi, MsiError};
pub use msix::{Msix, MsixError};
pub use names::{class_name, device_name};
pub use reset::{ResetError, reset_bus, reset_by_power, reset_function};
pub use resources::{
    Apertures, Claim, Claimant, Claims, Misplaced, Places, Ranges, ResourceError, Window, assign,
    assign_unconfigured, number_buses, number_unconfigured, place_virtual, unconfigure,
};
pub use slot::{Changes, Slot, SlotError};
pub use sriov::{Sriov, SriovError, virtual_functions};
