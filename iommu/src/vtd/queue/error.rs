//! What goes wrong with invalidations.

use core::fmt;

use crate::{
    SourceId,
    dma::Stuck,
    vtd::spec::{Descriptor, QueueError, UnknownDescriptor},
};

/// Why an invalidation was not carried out. What it is about may still be cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidationError {
    /// The unit does not answer.
    Stuck(Stuck),
    /// A device did not invalidate its TLB, and must be stopped: it may still use what it was to forget. Everything
    /// else in the batch was carried out.
    DeviceTimeout {
        /// The device.
        source: SourceId,
        /// Other devices of the batch may not have done so either: all of them must be stopped.
        others: bool,
    },
    /// The unit has no such cache, or no means to invalidate it.
    Unsupported {
        /// Index of the unit.
        unit: usize,
        /// The cache.
        what: &'static str,
    },
}

impl fmt::Display for InvalidationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck(stuck) => stuck.fmt(f),
            Self::DeviceTimeout { source, others } => {
                write!(
                    f,
                    "device {source}{} did not invalidate its TLB",
                    if *others { " and others" } else { "" }
                )
            }
            Self::Unsupported { unit, what } => write!(f, "remapping unit {unit} cannot invalidate: {what}"),
        }
    }
}

impl core::error::Error for InvalidationError {}

impl From<Stuck> for InvalidationError {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck)
    }
}

/// An error of the queue that was dealt with, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueReport {
    /// The unit refused a descriptor (IQE).
    Refused {
        /// What lies in the queue at that place.
        descriptor: Result<Descriptor, UnknownDescriptor>,
        /// What the unit says about it.
        error: QueueError,
    },
    /// A device did not invalidate its TLB (ITE).
    DeviceTimeout {
        /// The device, as far as the unit says.
        source: SourceId,
    },
    /// A device completed an invalidation that nobody asked for (ICE).
    UnexpectedCompletion {
        /// The device, as far as the unit says.
        source: SourceId,
    },
}

impl fmt::Display for QueueReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { descriptor: Ok(descriptor), error } => {
                write!(f, "invalidation refused: {error:?}: {descriptor:?}")
            }
            Self::Refused { descriptor: Err(unknown), error } => {
                write!(f, "invalidation refused: {error:?}: {unknown}")
            }
            Self::DeviceTimeout { source } => write!(f, "device {source} did not invalidate its TLB"),
            Self::UnexpectedCompletion { source } => {
                write!(f, "device {source} completed an invalidation that nobody asked for")
            }
        }
    }
}
