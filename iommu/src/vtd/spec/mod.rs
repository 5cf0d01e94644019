//! VT-d's registers, table entries, descriptors and records, as values: no memory is touched here.
//!
//! Bit numbers are those of the VT-d specification, revisions 3.x to 5.0. Each field is pinned to its bits by a
//! constant assertion beside the type. Names follow the newer texts: *second stage* is what older ones call second
//! level.

#![forbid(unsafe_code)]

/// Pins fields of a bit field to the bits that they occupy in the specification.
macro_rules! pin_bits {
    ($name:ty: $($setter:ident($value:expr) = $bits:expr),+ $(,)?) => {
        $(const _: () = assert!(<$name>::new().$setter($value).into_bits() == $bits);)+
    };
}

mod address;
mod capability;
mod context;
mod descriptor;
mod descriptor_decode;
mod events;
mod fault_record;
mod global;
mod interrupt;
mod invalidation;
mod message;
mod reason;
pub mod register;
mod root;
mod scalable;

pub use address::DomainId;
pub use capability::{Capabilities, ExtendedCapabilities};
pub use context::{AddressWidth, ContextEntry, ContextState, TranslationType};
pub use descriptor::{
    Completion, Descriptor, DeviceTlbScope, FunctionMask, Granularity, RawDescriptor, Wait,
};
pub use descriptor_decode::UnknownDescriptor;
pub use events::{EventAddress, EventControl, EventData, EventUpperAddress, FaultStatus};
pub use events::{FaultAddress, FaultControl, FaultData, FaultUpperAddress, PageRequestControl};
pub use fault_record::{FaultRecord, FaultRecordHigh, FaultRecordLow, FaultRecordSource};
pub use global::{
    GlobalCommand, GlobalStatus, ProtectedMemoryEnable, RootTableAddress, TranslationTable, Version,
};
pub use interrupt::{
    DeliveryMode, DestinationMode, InterruptEntry, InterruptTableAddress, SourceQualifier, SourceValidation,
};
pub use invalidation::{
    ContextCommand, InvalidateAddress, InvalidationCompletionStatus, IotlbCommand, QueueAddress, QueueError,
    QueueErrorRecord, QueueHead, QueueTail,
};
pub use message::{IoapicEntry, message};
pub use reason::FaultReason;
pub use root::RootEntry;
pub use scalable::{
    FirstStagePointer, PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry,
};
