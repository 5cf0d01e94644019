//! Machines drawn at random, with the first seed that fails in the message.

use std::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use super::{
    super::{Acs, BridgeKind, Function, FunctionKind, Topology},
    oracle::Machine,
};
use crate::{
    PciAddress, SourceId,
    dmar::{
        Dmar,
        builder::{ScopeBytes, TableBytes},
    },
};

/// Machines of each kind that are drawn. Miri is a thousand times slower.
const SEEDS: u64 = if cfg!(miri) { 5 } else { 1000 };

/// The seeds of the machines whose groups are compared; `TOPOLOGY_SEED=N` draws one again.
fn seeds() -> core::ops::Range<u64> {
    match std::env::var("TOPOLOGY_SEED").ok().map(|seed| seed.parse().expect("a number")) {
        Some(seed) => seed..seed + 1,
        None => 0..if cfg!(miri) { SEEDS } else { 20 * SEEDS },
    }
}

/// xorshift64*: the same numbers from the same seed everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn bridge_kind(&mut self) -> BridgeKind {
        use BridgeKind::{Conventional, DownstreamPort, FromPci, RootPort, ToPci, UpstreamPort};
        [RootPort, UpstreamPort, DownstreamPort, ToPci, FromPci, Conventional][self.below(6) as usize]
    }

    fn acs(&mut self) -> Option<Acs> {
        let offered = if self.one_in(2) { Acs::ISOLATION } else { self.below(128) as u16 };
        match self.below(16) {
            0 => None,
            1 => Some(Acs { offered, enabled: offered & self.below(128) as u16 }),
            _ => Some(Acs { offered, enabled: offered }),
        }
    }
}

/// Draws a machine with possible bus numbers.
struct Draw {
    random: Random,
    functions: Vec<Function>,
    next_bus: u8,
    segment: u16,
}

/// The kinds of bridge that go well below one of `above`.
fn usual_below(above: Option<BridgeKind>, random: &mut Random) -> BridgeKind {
    match above {
        None => {
            [BridgeKind::RootPort, BridgeKind::RootPort, BridgeKind::Conventional][random.below(3) as usize]
        }
        Some(BridgeKind::UpstreamPort) => BridgeKind::DownstreamPort,
        Some(BridgeKind::RootPort | BridgeKind::DownstreamPort | BridgeKind::FromPci) => {
            [BridgeKind::UpstreamPort, BridgeKind::ToPci][random.below(2) as usize]
        }
        Some(BridgeKind::ToPci | BridgeKind::Conventional) => {
            [BridgeKind::Conventional, BridgeKind::FromPci][random.below(2) as usize]
        }
    }
}

impl Draw {
    fn machine(seed: u64) -> Vec<Function> {
        let random = Random::new(seed);
        let mut draw = Self { random, functions: Vec::new(), next_bus: 0, segment: 0 };
        for segment in 0..1 + draw.random.below(2) as u16 {
            (draw.segment, draw.next_bus) = (segment, 0);
            for _ in 0..1 + draw.random.below(2) {
                let bus = draw.next_bus;
                draw.next_bus += 1;
                draw.bus(bus, None, 0);
            }
        }
        draw.functions
    }

    fn bus(&mut self, bus: u8, above: Option<BridgeKind>, depth: u32) {
        let mut devices: BTreeSet<u8> =
            (0..1 + self.random.below(3)).map(|_| self.random.below(32) as u8).collect();
        if self.random.one_in(2) {
            devices = BTreeSet::from([0]);
        }
        for device in devices {
            let several = self.random.one_in(3);
            for function in (0..8).filter(|&function| function == 0 || several) {
                if function == 0 || self.random.one_in(3) {
                    self.function(bus, device << 3 | function, above, depth);
                }
            }
        }
    }

    fn function(&mut self, bus: u8, devfn: u8, above: Option<BridgeKind>, depth: u32) {
        let address = PciAddress::from_devfn(self.segment, bus, devfn);
        let mut function = Function { acs: self.random.acs(), ..Function::endpoint(address) };
        if self.random.one_in(12) {
            function.phantom_bits = self.random.below(4) as u8;
        }
        if self.random.one_in(12) {
            function.alias_devfn = Some(self.random.byte());
        }
        if depth < 5 && self.next_bus < 12 && self.random.one_in(2) {
            self.bridge(function, above, depth);
        } else {
            self.functions.push(function);
            if self.random.one_in(6) {
                self.virtual_functions(address);
            }
        }
    }

    fn bridge(&mut self, function: Function, above: Option<BridgeKind>, depth: u32) {
        let odd = self.random.one_in(8);
        let kind = if odd { self.random.bridge_kind() } else { usual_below(above, &mut self.random) };
        let secondary = self.next_bus;
        self.next_bus += 1;
        self.bus(secondary, Some(kind), depth + 1);
        let subordinate = self.next_bus - 1;
        self.functions
            .push(Function { kind: FunctionKind::Bridge { kind, secondary, subordinate }, ..function });
    }

    /// On a bus of their own, which no bridge has as its secondary bus.
    fn virtual_functions(&mut self, physical: PciAddress) {
        let bus = self.next_bus;
        self.next_bus += 1;
        for devfn in 0..self.random.below(4) as u8 {
            let address = PciAddress::from_devfn(self.segment, bus, devfn);
            self.functions.push(Function { physical: Some(physical), ..Function::endpoint(address) });
        }
    }
}

fn sorted(mut functions: Vec<Function>) -> Vec<Function> {
    functions.sort_by_key(|function| function.address);
    functions
}

/// How often the machines had what makes groups, and how the groups came out.
#[derive(Default)]
struct Seen {
    functions: usize,
    groups: usize,
    /// Of functions with a peculiarity those that are alone in their group, and those that are not.
    switch_ports_without_acs: [usize; 2],
    parts_of_a_device: [usize; 2],
    phantoms: [usize; 2],
    behind_to_pci: [usize; 2],
    behind_conventional: [usize; 2],
    virtual_functions: [usize; 2],
}

impl Seen {
    fn machine(&mut self, functions: &[Function], groups: &[BTreeSet<usize>]) {
        self.functions += functions.len();
        self.groups += groups.len();
        for group in groups {
            for function in group.iter().map(|&index| &functions[index]) {
                let place = function.address;
                let is_beside = |other: &Function| {
                    let other = other.address;
                    (other.bus, other.device()) == (place.bus, place.device()) && other != place
                };
                let is_behind = |kind: BridgeKind| {
                    functions.iter().any(|bridge| match bridge.kind {
                        FunctionKind::Bridge { kind: found, secondary, .. } => {
                            found == kind && (bridge.address.segment, secondary) == (place.segment, place.bus)
                        }
                        FunctionKind::Endpoint => false,
                    })
                };
                let is_port =
                    matches!(function.kind, FunctionKind::Bridge { kind: BridgeKind::DownstreamPort, .. });
                let is_together = usize::from(group.len() > 1);
                for (counts, applies) in [
                    (&mut self.switch_ports_without_acs, is_port && function.acs.is_none()),
                    (&mut self.parts_of_a_device, functions.iter().any(is_beside)),
                    (&mut self.phantoms, function.phantom_bits > 0),
                    (&mut self.behind_to_pci, is_behind(BridgeKind::ToPci)),
                    (&mut self.behind_conventional, is_behind(BridgeKind::Conventional)),
                    (&mut self.virtual_functions, function.physical.is_some()),
                ] {
                    counts[is_together] += usize::from(applies);
                }
            }
        }
    }

    /// The machines are neither trivial nor one lump.
    fn check(&self) {
        let Self { functions, groups, .. } = *self;
        assert!(functions > 20 * 20 * 1000, "{functions}");
        assert!((functions / 5..functions * 3 / 4).contains(&groups), "{groups} of {functions}");
        // Behind such a bridge nothing is ever alone.
        for [alone, together] in [self.behind_to_pci, self.behind_conventional, self.switch_ports_without_acs]
        {
            assert!(alone == 0 && together > 1000, "{alone}, {together}");
        }
        for [alone, together] in [self.parts_of_a_device, self.phantoms, self.virtual_functions] {
            assert!(alone > 1000 && together > 1000, "{alone}, {together}");
        }
    }
}

#[test]
fn parents_ids_and_groups_are_those_of_the_oracle() {
    let mut seen = Seen::default();
    for seed in seeds() {
        let functions = sorted(Draw::machine(seed));
        let topology = Topology::build(&functions, None).unwrap();
        let machine = Machine::new(&functions);
        assert_eq!(topology.functions(), functions, "seed {seed}");
        assert_eq!(topology.problems(), [], "seed {seed}");
        for (index, function) in functions.iter().enumerate() {
            let parent = machine.parent(index).map(|parent| &functions[parent]);
            assert_eq!(topology.parent(function.address), parent, "seed {seed}, {}", function.address);
            let ids = topology.requester_ids(function.address).iter();
            let ids: BTreeSet<u16> = ids.map(|id| id.requester).collect();
            assert_eq!(ids, machine.ids(index), "seed {seed}, {}", function.address);
        }
        let index =
            |function: &Function| functions.binary_search_by_key(&function.address, |f| f.address).unwrap();
        let groups: Vec<BTreeSet<usize>> =
            topology.groups().map(|group| group.functions().map(index).collect()).collect();
        assert_eq!(groups, machine.groups(), "seed {seed}; TOPOLOGY_SEED={seed} draws it again");
        seen.machine(&functions, &groups);
    }
    if seeds().end - seeds().start == 20 * SEEDS {
        seen.check();
    }
}

/// What must hold of any list of functions, possible or not.
fn check_invariants(topology: &Topology, seed: u64) {
    let mut seen: BTreeSet<PciAddress> = BTreeSet::new();
    let mut ids: BTreeSet<SourceId> = BTreeSet::new();
    for (number, group) in topology.groups().enumerate() {
        assert_eq!(group.number(), number);
        assert_ne!(group.functions().len(), 0, "seed {seed}: empty group");
        for function in group.functions() {
            assert!(seen.insert(function.address), "seed {seed}: {} in two groups", function.address);
            assert_eq!(topology.group(function.address).unwrap().number(), number);
            for id in topology.requester_ids(function.address) {
                assert!(group.sources().any(|source| source.id == *id), "seed {seed}: {id} missing");
            }
        }
        for source in group.sources() {
            assert!(ids.insert(source.id), "seed {seed}: {} of two groups", source.id);
            assert_eq!(topology.group_of_source(source.id).unwrap().number(), number);
        }
    }
    assert_eq!(seen.len(), topology.functions().len(), "seed {seed}");
}

#[test]
fn wild_bus_numbers_end_and_keep_the_invariants() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        // Few buses, so that bridges cross, loop and share.
        let buses = 2 + random.below(12);
        let mut functions = BTreeMap::new();
        for _ in 0..random.below(60) {
            let address = PciAddress::from_devfn(0, random.below(buses) as u8, random.byte());
            let mut function = Function { acs: random.acs(), ..Function::endpoint(address) };
            if random.one_in(2) {
                let (kind, secondary) = (random.bridge_kind(), random.below(buses) as u8);
                let subordinate = random.below(buses) as u8;
                function.kind = FunctionKind::Bridge { kind, secondary, subordinate };
            }
            if random.one_in(4) {
                function.physical = Some(PciAddress::from_devfn(0, random.below(buses) as u8, random.byte()));
            }
            function.phantom_bits = random.byte() % 8;
            functions.insert(address, function);
        }
        let functions: Vec<Function> = functions.into_values().collect();
        let topology = Topology::build(&functions, None).unwrap();
        check_invariants(&topology, seed);
    }
}

/// The path from the root bus to a function, as firmware writes it.
fn path(machine: &Machine<'_>, index: usize) -> (u8, Vec<(u8, u8)>) {
    let address = machine.functions[index].address;
    let hop = (address.device(), address.function());
    match machine.parent(index) {
        Some(parent) => {
            let (bus, mut path) = path(machine, parent);
            path.push(hop);
            (bus, path)
        }
        None => (address.bus, vec![hop]),
    }
}

#[test]
fn units_are_those_that_the_scopes_were_drawn_for() {
    for seed in 0..SEEDS / 2 {
        let functions = sorted(Draw::machine(seed));
        let machine = Machine::new(&functions);
        let mut random = Random::new(seed ^ 0xd3a1);
        let physical: Vec<usize> =
            (0..functions.len()).filter(|&i| functions[i].physical.is_none()).collect();

        // Four units of segment 0 with a few scopes each; then perhaps one for the rest.
        let (mut named, mut above) = (vec![None; functions.len()], vec![None; functions.len()]);
        let mut table = TableBytes::new();
        for unit in 0..4 {
            let mut scopes = Vec::new();
            for _ in 0..random.below(4) {
                let target = physical[random.below(physical.len() as u64) as usize];
                let claims = if random.one_in(2) { &mut named } else { &mut above };
                if functions[target].address.segment != 0 || claims[target].is_some() {
                    continue;
                }
                claims[target] = Some(unit);
                let (bus, hops) = path(&machine, target);
                let direct = random.one_in(4);
                let address = functions[target].address;
                let hops = if direct { vec![(address.device(), address.function())] } else { hops };
                let kind = if named[target] == Some(unit) && above[target] != Some(unit) { 1 } else { 2 };
                scopes.push(ScopeBytes::new(kind, 0, if direct { address.bus } else { bus }, &hops));
            }
            table = table.drhd(0x10_0000 + 0x1000 * unit as u64, 0, false, &scopes);
        }
        let all = random.one_in(2);
        if all {
            table = table.drhd(0x20_0000, 0, true, &[]);
        }

        let bytes = table.finish();
        let topology = Topology::build(&functions, Some(&Dmar::parse(&bytes).unwrap())).unwrap();
        for (index, function) in functions.iter().enumerate() {
            let subject = function.physical.map_or(index, |physical| {
                functions.iter().position(|other| other.address == physical).unwrap()
            });
            let mut expected = named[subject];
            let mut place = Some(subject);
            while let (None, Some(here)) = (expected, place) {
                expected = above[here];
                place = machine.parent(here);
            }
            if expected.is_none() && all && function.address.segment == 0 {
                expected = Some(4);
            }
            assert_eq!(topology.unit(function.address), expected, "seed {seed}, {}", function.address);
        }
    }
}

#[test]
fn a_full_segment_with_the_longest_chain_is_built() {
    let last_bus: u8 = if cfg!(miri) { 3 } else { 255 };
    let requesters = 0..=u16::from_be_bytes([last_bus, 255]);
    let functions: Vec<Function> = requesters
        .map(|requester| {
            let address = PciAddress::from_devfn(0, (requester >> 8) as u8, requester as u8);
            // A chain of bridges through all buses.
            if address.devfn() == 0 && address.bus < last_bus {
                Function::bridge(address, BridgeKind::Conventional, address.bus + 1, last_bus)
            } else {
                Function::endpoint(address)
            }
        })
        .collect();
    let topology = Topology::build(&functions, None).unwrap();
    let deepest = PciAddress::from_devfn(0, last_bus, 9);
    assert_eq!(topology.requester_ids(deepest).len(), usize::from(last_bus) + 1);
    assert_eq!(topology.group(deepest).unwrap().number(), 0);
}
