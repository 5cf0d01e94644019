//! The interrupt-remapping table.

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::{address::frame, register::register};

/// IRTA: where the interrupt-remapping table lies; taken over at
/// [`GlobalCommand::set_interrupt_table`](super::GlobalCommand::set_interrupt_table).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptTableAddress {
    /// S: 2^(S+1) entries.
    #[bits(4)]
    pub size: u8,
    #[bits(7)]
    __: u8,
    /// EIME: destinations have 32 bits. Only if ECAP.EIM.
    pub extended: bool,
    /// Page number of the table.
    #[bits(52)]
    pub frame: u64,
}
register!(InterruptTableAddress: u64 @ 0x0b8, ReadWrite);
pin_bits!(InterruptTableAddress:
    with_size(0xf) = 0xf,
    with_extended(true) = 1 << 11,
    with_frame((1 << 52) - 1) = !0xfff,
);

impl InterruptTableAddress {
    /// A table of 2^`order` entries (1 to 16) at `address`, which is page-aligned.
    #[must_use]
    pub const fn at(address: PhysAddr, order: u8, extended: bool) -> Self {
        Self::new().with_frame(frame(address)).with_size(order - 1).with_extended(extended)
    }
}

/// Declares an enumeration for a bit field; a value without a name is read as the last one.
macro_rules! field_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $bits:literal),+ ; $other:ident = $rest:literal }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$value_doc])* $value = $bits,)+
            /// Reserved.
            $other = $rest,
        }

        impl $name {
            const fn into_bits(self) -> u8 {
                self as u8
            }

            const fn from_bits(bits: u8) -> Self {
                match bits {
                    $($bits => Self::$value,)+
                    _ => Self::$other,
                }
            }
        }
    };
}

/// DM: what a destination means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DestinationMode {
    /// One local APIC by its id.
    Physical = 0,
    /// A set of local APICs.
    Logical = 1,
}

impl DestinationMode {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        if bits == 0 { Self::Physical } else { Self::Logical }
    }
}

field_values! {
    /// DLM: how the interrupt is delivered.
    DeliveryMode {
        /// The vector, to the destination.
        Fixed = 0,
        /// The vector, to the destination of the lowest priority.
        LowestPriority = 1,
        /// System management interrupt.
        SystemManagement = 2,
        /// Non-maskable interrupt.
        NonMaskable = 4,
        /// INIT.
        Init = 5,
        /// As from an 8259.
        External = 7;
        Reserved = 3
    }
}

field_values! {
    /// SVT: how the sender of an interrupt is checked.
    SourceValidation {
        /// Not at all.
        None = 0,
        /// The requester id, as far as [`SourceQualifier`] says.
        Requester = 1,
        /// The bus number lies between the two halves of the source field, inclusive.
        BusRange = 2;
        Reserved = 3
    }
}

field_values! {
    /// SQ: which bits of the requester id are compared.
    SourceQualifier {
        /// All 16.
        All = 0,
        /// All but bit 2.
        IgnoreBit2 = 1,
        /// All but bits 2:1.
        IgnoreBits21 = 2;
        IgnoreFunction = 3
    }
}

/// IRTE in remapped format, 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InterruptEntry {
    /// P.
    pub present: bool,
    /// FPD: faults found after this entry was read are not recorded.
    pub fault_reporting_disabled: bool,
    /// DM.
    #[bits(1, default = DestinationMode::Physical)]
    pub destination_mode: DestinationMode,
    /// RH: a logical destination goes to one of the set.
    pub redirection_hint: bool,
    /// TM: level-triggered.
    pub level_triggered: bool,
    /// DLM.
    #[bits(3, default = DeliveryMode::Fixed)]
    pub delivery: DeliveryMode,
    /// Free for software.
    #[bits(4)]
    pub software: u8,
    #[bits(3)]
    __: u8,
    /// IM: the entry is in posted format, and this layout does not describe it.
    pub posted: bool,
    /// Vector.
    pub vector: u8,
    __: u8,
    /// Destination as it is stored: see [`with_apic`](Self::with_apic).
    pub raw_destination: u32,
    /// SID.
    pub source: u16,
    /// SQ.
    #[bits(2, default = SourceQualifier::All)]
    pub qualifier: SourceQualifier,
    /// SVT.
    #[bits(2, default = SourceValidation::None)]
    pub validation: SourceValidation,
    #[bits(44)]
    __: u64,
}
pin_bits!(InterruptEntry:
    with_present(true) = 1,
    with_fault_reporting_disabled(true) = 1 << 1,
    with_destination_mode(DestinationMode::Logical) = 1 << 2,
    with_redirection_hint(true) = 1 << 3,
    with_level_triggered(true) = 1 << 4,
    with_delivery(DeliveryMode::External) = 7 << 5,
    with_software(0xf) = 0xf << 8,
    with_posted(true) = 1 << 15,
    with_vector(0xff) = 0xff << 16,
    with_raw_destination(u32::MAX) = 0xffff_ffff << 32,
    with_source(0xffff) = 0xffff << 64,
    with_qualifier(SourceQualifier::IgnoreBit2) = 1 << 80,
    with_qualifier(SourceQualifier::IgnoreFunction) = 3 << 80,
    with_validation(SourceValidation::Requester) = 1 << 82,
    with_validation(SourceValidation::BusRange) = 2 << 82,
);

impl InterruptEntry {
    /// Sends to the local APIC `apic`: 32 bits of id in extended interrupt mode, else 8 bits that lie in 47:40.
    #[must_use]
    pub const fn with_apic(self, apic: u32, extended: bool) -> Self {
        self.with_raw_destination(if extended { apic } else { (apic & 0xff) << 8 })
    }

    /// Id of the local APIC that it sends to, in a table whose destinations have 32 bits or, unless `extended`, 8.
    #[must_use]
    pub const fn apic(self, extended: bool) -> u32 {
        if extended { self.raw_destination() } else { self.raw_destination() >> 8 & 0xff }
    }
}
