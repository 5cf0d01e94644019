//! Whom an interrupt entry of a function has to accept.
//!
//! Never more than the function's group: what the hardware cannot tell apart from it may raise its interrupts, nobody
//! else.

use super::{
    Function,
    hierarchy::Hierarchy,
    ids::{MAX_PHANTOM_BITS, aliases_behind},
};
use crate::interrupts::{IgnoredBits, Sender};

/// The sender of the interrupts of function `index`.
pub(super) fn of(hierarchy: &Hierarchy, index: usize) -> Sender {
    // The last bridge on the way up that puts in an id of its own decides what the unit sees.
    let behind = hierarchy.ancestors(index).filter_map(|bridge| behind_bridge(hierarchy, bridge)).last();
    behind.unwrap_or_else(|| by_itself(&hierarchy.functions()[index]))
}

/// What the requests from behind bridge `bridge` look like, if it does not leave their ids alone.
fn behind_bridge(hierarchy: &Hierarchy, bridge: usize) -> Option<Sender> {
    let bridge_ids = aliases_behind(hierarchy, bridge);
    let function = &hierarchy.functions()[bridge];
    let (secondary, subordinate) = function.buses()?;
    let own = function.address.source_id();
    match bridge_ids {
        [None, None] => None,
        [Some(id), None] | [None, Some(id)] if id == own => Some(Sender::Function(own)),
        // PCI-X keeps ids. All that is on these buses is one group.
        [Some(_), None] | [None, Some(_)] => Some(Sender::Buses { first: secondary, last: subordinate }),
        // It is at the end of a link: nothing else is on its bus.
        [Some(_), Some(_)] => Some(Sender::Buses { first: own.bus(), last: subordinate }),
    }
}

/// What a function sends when no bridge interferes.
fn by_itself(function: &Function) -> Sender {
    let source = function.address.source_id();
    let bits = function.phantom_bits.min(MAX_PHANTOM_BITS);
    let phantom = (1_u8 << MAX_PHANTOM_BITS) - (1 << (MAX_PHANTOM_BITS - bits));
    // An id of another device, which some send under, cannot be let in without letting that device in.
    let alias = function.alias_devfn.map_or(0, |alias| alias ^ function.address.devfn());
    let differing = phantom | if alias < 1 << MAX_PHANTOM_BITS { alias } else { 0 };
    match IgnoredBits::covering(differing) {
        Some(ignored) => Sender::Functions { source, ignored },
        None => Sender::Function(source),
    }
}
