//! What an entry says.

use super::RouteError;
use crate::{
    SourceId,
    interrupts::{IgnoredBits, Sender},
    vtd::spec::{InterruptEntry, SourceQualifier, SourceValidation},
};

/// Where an interrupt goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Who may raise it.
    pub sender: Sender,
    /// The vector, 16 to 255.
    pub vector: u8,
    /// Id of the local APIC that gets it.
    pub apic: u32,
    /// It is level-triggered.
    pub level_triggered: bool,
}

/// Vectors below are the CPU's own, and local APICs refuse them.
const FIRST_VECTOR: u8 = 16;

impl Route {
    /// The entry, in a table whose destinations have 32 bits or, unless `extended`, 8.
    pub(super) fn entry(&self, extended: bool) -> Result<InterruptEntry, RouteError> {
        // All ones is no CPU but all of them.
        let broadcast = if extended { u32::MAX } else { u8::MAX.into() };
        if self.apic >= broadcast {
            return Err(RouteError::Destination { apic: self.apic });
        }
        if self.vector < FIRST_VECTOR {
            return Err(RouteError::Vector { vector: self.vector });
        }
        Ok(sender_fields(self.sender)
            .with_present(true)
            .with_vector(self.vector)
            .with_apic(self.apic, extended)
            .with_level_triggered(self.level_triggered))
    }
}

/// An entry that is not present and says who may use it. All of that is in its high word, and nothing else.
pub(super) fn sender_fields(sender: Sender) -> InterruptEntry {
    let (validation, qualifier, source) = match sender {
        Sender::Function(source) => (SourceValidation::Requester, SourceQualifier::All, source.requester),
        Sender::Functions { source, ignored } => {
            (SourceValidation::Requester, qualifier(ignored), source.requester)
        }
        Sender::Buses { first, last } => {
            (SourceValidation::BusRange, SourceQualifier::All, u16::from_be_bytes([first, last]))
        }
    };
    InterruptEntry::new().with_source(source).with_qualifier(qualifier).with_validation(validation)
}

const fn qualifier(ignored: IgnoredBits) -> SourceQualifier {
    match ignored {
        IgnoredBits::Bit2 => SourceQualifier::IgnoreBit2,
        IgnoredBits::Bits21 => SourceQualifier::IgnoreBits21,
        IgnoredBits::Bits210 => SourceQualifier::IgnoreFunction,
    }
}

/// Who may use `entry` of a unit of `segment`; `None` if that is not checked.
pub(crate) fn sender_of(entry: InterruptEntry, segment: u16) -> Option<Sender> {
    let source = SourceId { segment, requester: entry.source() };
    match entry.validation() {
        SourceValidation::Requester => Some(match entry.qualifier() {
            SourceQualifier::All => Sender::Function(source),
            SourceQualifier::IgnoreBit2 => Sender::Functions { source, ignored: IgnoredBits::Bit2 },
            SourceQualifier::IgnoreBits21 => Sender::Functions { source, ignored: IgnoredBits::Bits21 },
            SourceQualifier::IgnoreFunction => Sender::Functions { source, ignored: IgnoredBits::Bits210 },
        }),
        SourceValidation::BusRange => {
            let [first, last] = entry.source().to_be_bytes();
            Some(Sender::Buses { first, last })
        }
        SourceValidation::None | SourceValidation::Reserved => None,
    }
}
