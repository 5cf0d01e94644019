//! What an entry says.

use super::RouteError;
use crate::{
    SourceId,
    vtd::spec::{InterruptEntry, SourceQualifier, SourceValidation},
};

/// Who may use an entry. There is no way to say anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// The function with this requester id. For an I/O APIC or a timer, the id is what its device scope says.
    Function(SourceId),
    /// The function, whatever the bits of its function number that `ignored` names.
    Functions {
        /// The function.
        source: SourceId,
        /// Which bits are not compared.
        ignored: SourceQualifier,
    },
    /// Any function of these buses, inclusive: devices behind a bridge that puts other ids into their requests.
    Buses {
        /// First bus.
        first: u8,
        /// Last bus.
        last: u8,
    },
}

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
        if !extended && self.apic > 0xff {
            return Err(RouteError::Destination { apic: self.apic });
        }
        if self.vector < FIRST_VECTOR {
            return Err(RouteError::Vector { vector: self.vector });
        }
        let (validation, qualifier, source) = match self.sender {
            Sender::Function(source) => (SourceValidation::Requester, SourceQualifier::All, source.requester),
            Sender::Functions { source, ignored } => (SourceValidation::Requester, ignored, source.requester),
            Sender::Buses { first, last } => {
                (SourceValidation::BusRange, SourceQualifier::All, u16::from_be_bytes([first, last]))
            }
        };
        Ok(InterruptEntry::new()
            .with_present(true)
            .with_vector(self.vector)
            .with_apic(self.apic, extended)
            .with_level_triggered(self.level_triggered)
            .with_source(source)
            .with_qualifier(qualifier)
            .with_validation(validation))
    }
}
