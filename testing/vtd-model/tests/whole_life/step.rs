//! One step of a life, with numbers that are given a meaning when it runs: any list of steps can be run.

use vtd_model::Random;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Claim,
    Map,
    MapAt,
    MapBelow,
    Unmap,
    UnmapAll,
    Drop,
    Reap,
    Transfer,
    Posted,
    Stray,
    StrayOfFree,
    Storm,
    Faults,
    AllocateCoherent,
    DropCoherent,
    TouchCoherent,
    Shortage,
    Pause,
    QueueTrouble,
    Interrupt,
    SlowDevice,
    SilentDevice,
    Release,
    ResetFails,
    Quarantine,
    FaultsTooMuch,
    MapThroughOldHandle,
    MapList,
    MapRagged,
    UnmapBatch,
    Retire,
    Redeem,
    MakePool,
    UsePool,
    DropPool,
    AllocateInterrupts,
    RouteInterrupt,
    RaiseInterrupt,
    ReleaseInterrupts,
    LateStatuses,
    Unplug,
    Plug,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub kind: Kind,
    pub a: u64,
    pub b: u64,
    pub c: u64,
}

/// How often each kind comes, in parts of their sum.
const WEIGHTS: [(Kind, u64); 43] = [
    (Kind::Claim, 50),
    (Kind::Map, 220),
    (Kind::MapAt, 60),
    (Kind::MapBelow, 30),
    (Kind::Unmap, 240),
    (Kind::UnmapAll, 2),
    (Kind::Drop, 30),
    (Kind::Reap, 30),
    (Kind::Transfer, 120),
    (Kind::Posted, 60),
    (Kind::Stray, 40),
    (Kind::StrayOfFree, 10),
    (Kind::Storm, 2),
    (Kind::Faults, 30),
    (Kind::AllocateCoherent, 15),
    (Kind::DropCoherent, 15),
    (Kind::TouchCoherent, 20),
    (Kind::Shortage, 10),
    (Kind::Pause, 20),
    (Kind::QueueTrouble, 10),
    (Kind::Interrupt, 10),
    (Kind::SlowDevice, 4),
    (Kind::SilentDevice, 1),
    (Kind::Release, 8),
    (Kind::ResetFails, 2),
    (Kind::Quarantine, 2),
    (Kind::FaultsTooMuch, 2),
    (Kind::MapThroughOldHandle, 10),
    (Kind::MapList, 30),
    (Kind::MapRagged, 40),
    (Kind::UnmapBatch, 6),
    (Kind::Retire, 60),
    (Kind::Redeem, 60),
    (Kind::MakePool, 6),
    (Kind::UsePool, 20),
    (Kind::DropPool, 6),
    (Kind::AllocateInterrupts, 15),
    (Kind::RouteInterrupt, 25),
    (Kind::RaiseInterrupt, 25),
    (Kind::ReleaseInterrupts, 12),
    (Kind::LateStatuses, 10),
    (Kind::Unplug, 5),
    (Kind::Plug, 12),
];

impl Step {
    pub fn random(random: &mut Random) -> Self {
        let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut place = random.below(total);
        let mut kind = Kind::Claim;
        for (candidate, weight) in WEIGHTS {
            if place < weight {
                kind = candidate;
                break;
            }
            place -= weight;
        }
        Self { kind, a: random.bits(), b: random.bits(), c: random.bits() }
    }
}
