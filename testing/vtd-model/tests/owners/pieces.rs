//! What is mapped, and for whom.

use iommu::{Bidirectional, Grant, Mapping};
use vtd_model::ModelBuffer;

/// Memory in a domain, and perhaps in a second one.
pub struct Piece {
    /// `None` once it was dropped, or its return was refused: the reaper has it.
    pub held: Option<Held>,
    pub physical: u64,
    pub bytes: u64,
    pub place: Place,
    pub granted: Option<Place>,
}

pub enum Held {
    Mapping(Mapping<ModelBuffer, Bidirectional>),
    Grant(Grant<ModelBuffer, Bidirectional>),
}

/// Where it is in a domain, and what it is there for.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Number of the domain.
    pub domain: u64,
    pub iova: u64,
    pub read: bool,
    pub write: bool,
}

/// What an address of a domain leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// This memory, if it may be read, and if it may be written.
    Memory { physical: u64, read: bool, write: bool },
    /// The same, or nothing: the reaper may have been there or not.
    Fading { physical: u64, read: bool, write: bool },
}

impl Piece {
    pub fn places(&self) -> impl Iterator<Item = Place> {
        [Some(self.place), self.granted].into_iter().flatten()
    }

    pub fn is_in(&self, domain: u64) -> bool {
        self.places().any(|place| place.domain == domain)
    }

    fn expected(&self, domain: u64, address: u64) -> Option<Expected> {
        let holds = |place: &Place| {
            place.domain == domain && (place.iova..place.iova + self.bytes).contains(&address)
        };
        let Place { iova, read, write, .. } = self.places().find(holds)?;
        let physical = self.physical + (address - iova);
        Some(match self.held {
            Some(_) => Expected::Memory { physical, read, write },
            None => Expected::Fading { physical, read, write },
        })
    }
}

/// Whether a device in `domain` may reach what it got at `address`, for a read and for a write.
pub fn fits(pieces: &[Piece], domain: Option<u64>, address: u64, got: [Option<u64>; 2]) -> bool {
    let found = || pieces.iter().filter_map(|piece| piece.expected(domain?, address));
    let rights =
        |physical: u64, read: bool, write: bool| [read.then_some(physical), write.then_some(physical)];
    // Where something fades the reaper may have been, and somebody else may be by now.
    let memory = found().find_map(|expected| match expected {
        Expected::Memory { physical, read, write } => Some(rights(physical, read, write)),
        Expected::Fading { .. } => None,
    });
    memory.map_or_else(
        || {
            got == [None; 2]
                || found().any(|expected| match expected {
                    Expected::Fading { physical, read, write } => {
                        let most = rights(physical, read, write);
                        got.iter().zip(most).all(|(&got, most)| got.is_none() || got == most)
                    }
                    Expected::Memory { .. } => false,
                })
        },
        |memory| got == memory,
    )
}
