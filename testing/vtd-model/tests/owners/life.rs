//! One machine, its owners, and what they do.

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaDomain, DmaError, DomainError, FromDevice, Mapping, Options,
    PciAddress, ReleaseError, ToDevice, policy::Limits,
};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, Random};

use crate::pieces::{Held, Piece, Place, fits};

const PAGE: u64 = 4096;
const MOST_DOMAINS: usize = 4;
const MOST_PIECES: usize = 8;

/// A group that may change hands, by one of its functions.
struct Group {
    function: PciAddress,
    devices: Vec<Device>,
    handle: Option<DmaDevice>,
    /// The handle that it had before.
    old: Option<DmaDevice>,
    /// Number of the domain that it is in.
    domain: Option<u64>,
    /// In quarantine, and the domain that it was taken out of.
    quarantined: Option<Option<u64>>,
}

/// How often what happened.
#[derive(Default)]
pub struct Seen {
    assigned: usize,
    changed_hands: usize,
    refused_while_restless: usize,
    granted: usize,
    revoked: usize,
    destroyed: usize,
    probes: usize,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.assigned += other.assigned;
        self.changed_hands += other.changed_hands;
        self.refused_while_restless += other.refused_while_restless;
        self.granted += other.granted;
        self.revoked += other.revoked;
        self.destroyed += other.destroyed;
        self.probes += other.probes;
    }

    pub fn check(&self) {
        let Self { assigned, changed_hands, refused_while_restless, granted, revoked, destroyed, probes } =
            *self;
        let counts = [assigned, changed_hands, refused_while_restless, granted, revoked, destroyed];
        assert!(counts.iter().all(|&count| count > 50) && probes > 100_000, "{counts:?}, {probes}");
    }
}

pub struct Life {
    driven: Driven,
    groups: Vec<Group>,
    domains: Vec<DmaDomain>,
    pieces: Vec<Piece>,
    /// Buffers that were lent, by physical address.
    lent: Vec<u64>,
    ids_at_first: Vec<usize>,
    pub seen: Seen,
}

impl Life {
    pub fn begin(config: MachineConfig, options: Options) -> Self {
        let driven = Driven::start_with(config, options).expect("units that work");
        driven.iommu.set_fault_limits(Limits::none());
        let config = driven.machine.config();
        let is_endpoint = |address: &PciAddress| {
            config
                .functions
                .iter()
                .any(|function| function.address == *address && function.kind.buses().is_none())
        };
        let is_reserved = |group: &Vec<PciAddress>| {
            config.reserved.iter().any(|reserved| group.contains(&reserved.function))
        };
        let groups = driven.groups().into_iter().filter(|group| !is_reserved(group));
        let groups = groups.filter_map(|group| {
            let endpoints: Vec<PciAddress> = group.into_iter().filter(is_endpoint).collect();
            let devices = endpoints.iter().map(|&function| driven.device(function)).collect();
            let function = *endpoints.first()?;
            Some(Group { function, devices, handle: None, old: None, domain: None, quarantined: None })
        });
        let groups = groups.collect();
        let ids_at_first = ids(&driven);
        let (domains, pieces, lent) = (Vec::new(), Vec::new(), Vec::new());
        Self { driven, groups, domains, pieces, lent, ids_at_first, seen: Seen::default() }
    }

    pub fn step(&mut self, random: &mut Random, when: &str) {
        let (kind, a, b) = (random.below(20), random.bits(), random.bits());
        if self.groups.is_empty() {
            return;
        }
        let group = a as usize % self.groups.len();
        match kind {
            0 | 1 if self.domains.len() < MOST_DOMAINS => self.create(a, b, when),
            0..=4 => self.assign(group, b, when),
            5 | 6 => self.release(group, b, when),
            7 => self.quarantine(group, when),
            8 => self.destroy(b, when),
            9..=12 => self.map(group, b, when),
            13 | 14 => self.grant(a, b, when),
            15 => self.revoke(a, when),
            16 | 17 => self.unmap(a, when),
            18 => {
                if let Some(piece) = pick(&mut self.pieces, a) {
                    drop(piece.held.take());
                }
            }
            _ => self.reap(when),
        }
        self.check(when);
    }

    fn find(&self, number: u64) -> Option<&DmaDomain> {
        self.domains.iter().find(|domain| domain.number() == number)
    }

    /// How many groups left the domain and are not quiet.
    fn restless(&self, domain: u64) -> usize {
        self.groups.iter().filter(|group| group.quarantined == Some(Some(domain))).count()
    }

    /// What has to be said of anything new in the domain, and of anything that is to come back.
    fn refusals(&self, domain: u64) -> [Option<DmaError>; 2] {
        match (self.restless(domain), self.find(domain).is_some()) {
            (0, true) => [None, None],
            (0, false) => [Some(DmaError::Revoked), None],
            (_, true) => [Some(DmaError::Restless); 2],
            (_, false) => [Some(DmaError::Revoked); 2],
        }
    }

    fn create(&mut self, a: u64, b: u64, when: &str) {
        let some =
            self.groups.iter().enumerate().filter(|(index, _)| a >> index & 1 != 0 || b.is_multiple_of(2));
        let functions: Vec<PciAddress> = some.map(|(_, group)| group.function).collect();
        match self.driven.iommu.create_domain(&functions) {
            Ok(domain) => self.domains.push(domain),
            Err(DomainError::NoFunctions) if functions.is_empty() => {}
            Err(DomainError::Dma(DmaError::NoCommonFormat)) if functions.len() > 1 => {}
            Err(error) => panic!("{when}: {error}"),
        }
    }

    fn assign(&mut self, index: usize, b: u64, when: &str) {
        if self.domains.is_empty() {
            return;
        }
        let domain = self.domains[b as usize % self.domains.len()].clone();
        let Group { function, domain: before, quarantined, .. } = self.groups[index];
        let result = self.driven.iommu.assign(function, &domain, |function| {
            reset(&self.driven, function);
            true
        });
        match (result, before, quarantined) {
            (Ok(handle), None, None) => {
                let group = &mut self.groups[index];
                self.seen.assigned += 1;
                self.seen.changed_hands += usize::from(group.old.is_some());
                (group.handle, group.domain) = (Some(handle), Some(domain.number()));
            }
            (Err(ClaimError::Claimed { .. }), Some(_), None)
            | (Err(ClaimError::Quarantined { .. }), None, Some(_)) => {}
            // It is behind units that the domain was not made for.
            (Err(ClaimError::Domain(DmaError::NoCommonFormat)), None, None) => {}
            (result, ..) => {
                panic!("{when}: {function}, in {before:?}, {quarantined:?}: {:?}", result.map(drop))
            }
        }
    }

    /// By its handle or by its address. The old handle takes it from nobody.
    fn release(&mut self, index: usize, b: u64, when: &str) {
        let group = &self.groups[index];
        if let Some(old) = &group.old {
            let late = old.release(|_| panic!("{when}: another may have it"));
            assert_eq!(late, Err(ReleaseError::Over { function: group.function }), "{when}");
        }
        let quiet = |function| {
            self.attack(index, when);
            reset(&self.driven, function);
            true
        };
        let result = match (&group.handle, b % 2) {
            (Some(handle), 0) => handle.release(quiet),
            _ => self.driven.iommu.release(group.function, quiet),
        };
        result.unwrap_or_else(|error| panic!("{when}: {error}"));
        let group = &mut self.groups[index];
        group.old = group.handle.take().or(group.old.take());
        (group.domain, group.quarantined) = (None, None);
    }

    /// While it is reset a device reaches nothing that is anybody's.
    fn attack(&self, index: usize, when: &str) {
        for device in &self.groups[index].devices {
            self.driven.enable(device.address());
            for address in self.addresses() {
                if let Ok(physical) = device.probe(address, Access::Write) {
                    assert!(
                        !self.is_anybodys(physical),
                        "{when}: {device:?} reaches {address:#x} in a release"
                    );
                }
            }
            self.driven.disable(device.address());
        }
    }

    fn is_anybodys(&self, physical: u64) -> bool {
        self.pieces.iter().any(|piece| (piece.physical..piece.physical + piece.bytes).contains(&physical))
    }

    fn quarantine(&mut self, index: usize, when: &str) {
        let Group { function, domain, quarantined, .. } = self.groups[index];
        self.driven.iommu.quarantine(function).unwrap_or_else(|error| panic!("{when}: {error}"));
        if quarantined.is_none() {
            let group = &mut self.groups[index];
            (group.domain, group.quarantined) = (None, Some(domain));
        }
    }

    fn destroy(&mut self, b: u64, when: &str) {
        if self.domains.is_empty() {
            return;
        }
        let place = b as usize % self.domains.len();
        let number = self.domains[place].number();
        let groups = self.groups.iter().filter(|group| group.domain == Some(number)).count();
        let expected = if groups == 0 { Ok(()) } else { Err(DomainError::InUse { number, groups }) };
        assert_eq!(self.domains[place].destroy(), expected, "{when}");
        if groups == 0 {
            self.domains.swap_remove(place);
            self.seen.destroyed += 1;
        }
    }

    /// By the handle of a domain, or of a device, which may be one that its driver has lost.
    fn map(&mut self, index: usize, b: u64, when: &str) {
        if self.pieces.len() >= MOST_PIECES {
            return;
        }
        let pages = 1 + (b >> 8) as u32 % 3;
        let buffer = self.driven.machine.allocate_buffer(pages, 1).expect("memory");
        let (physical, bytes) = (buffer.physical(), u64::from(pages) * PAGE);
        let Group { handle, old, domain, quarantined, .. } = &self.groups[index];
        // What was taken out of a domain maps as little there as the others.
        let its = domain.or(quarantined.flatten());
        let (mapped, number) = match (handle, old, b % 4) {
            (Some(handle), _, 0 | 1) => (handle.dma_map(buffer, Bidirectional), its),
            (None, Some(old), 0) => {
                // Of a domain that goes on, an old handle maps for those that are there now.
                if let Ok(mapping) = old.dma_map(buffer, Bidirectional) {
                    assert_eq!(mapping.unmap().map(|buffer| buffer.physical()), Ok(physical), "{when}");
                }
                return;
            }
            _ if self.domains.is_empty() => return,
            _ => {
                let domain = &self.domains[(b >> 16) as usize % self.domains.len()];
                (domain.dma_map(buffer, Bidirectional), Some(domain.number()))
            }
        };
        let number = number.expect("its group is in a domain");
        match (mapped, self.refusals(number)[0]) {
            (Ok(mapping), None) => {
                let place = Place { domain: number, iova: mapping.iova().as_u64(), read: true, write: true };
                self.lent.push(physical);
                let held = Some(Held::Mapping(mapping));
                self.pieces.push(Piece { held, physical, bytes, place, granted: None });
            }
            (Err(rejected), Some(error)) if rejected.error == error => self.seen.refused_while_restless += 1,
            (mapped, expected) => {
                panic!("{when}: {:?}, not {expected:?}", mapped.map(drop).map_err(|rejected| rejected.error))
            }
        }
    }

    fn grant(&mut self, a: u64, b: u64, when: &str) {
        if self.domains.is_empty() {
            return;
        }
        let domain = self.domains[b as usize % self.domains.len()].clone();
        let refusal = self.refusals(domain.number())[0];
        let Some(piece) = pick(&mut self.pieces, a) else { return };
        let mapping = match piece.held.take() {
            Some(Held::Mapping(mapping)) => mapping,
            other => {
                piece.held = other;
                return;
            }
        };
        let (read, write) = [(true, true), (true, false), (false, true)][(b >> 32) as usize % 3];
        let granted = match (read, write) {
            (true, true) => mapping.grant(&domain, Bidirectional),
            (true, false) => mapping.grant(&domain, ToDevice),
            _ => mapping.grant(&domain, FromDevice),
        };
        match (granted, refusal) {
            (Ok(grant), None) => {
                let iova = grant.iova().as_u64();
                piece.granted = Some(Place { domain: domain.number(), iova, read, write });
                piece.held = Some(Held::Grant(grant));
                self.seen.granted += 1;
            }
            (Err(rejected), Some(error)) if rejected.error == error => {
                let mapping: Mapping<ModelBuffer, _> = rejected.buffer.expect("it was not seen");
                piece.held = Some(Held::Mapping(mapping));
            }
            (granted, expected) => {
                panic!("{when}: {:?}, not {expected:?}", granted.map(drop).map_err(|r| r.error))
            }
        }
    }

    fn revoke(&mut self, a: u64, when: &str) {
        let Some(piece) = pick(&mut self.pieces, a) else { return };
        let grant = match piece.held.take() {
            Some(Held::Grant(grant)) => grant,
            other => {
                piece.held = other;
                return;
            }
        };
        let Some(Place { domain, .. }) = piece.granted else { unreachable!("it is granted") };
        match grant.revoke() {
            Ok(mapping) => {
                (piece.held, piece.granted) = (Some(Held::Mapping(mapping)), None);
                assert_eq!(self.refusals(domain)[1], None, "{when}");
                self.seen.revoked += 1;
            }
            Err(error) => assert_eq!(Some(error), self.refusals(domain)[1], "{when}"),
        }
    }

    fn unmap(&mut self, a: u64, when: &str) {
        let count = self.pieces.len();
        let Some(piece) = pick(&mut self.pieces, a) else { return };
        let mapping = match piece.held.take() {
            Some(Held::Mapping(mapping)) => mapping,
            other => {
                piece.held = other;
                return;
            }
        };
        let domain = piece.place.domain;
        match mapping.unmap() {
            Ok(buffer) => {
                assert_eq!(buffer.physical(), piece.physical, "{when}");
                assert_eq!(self.refusals(domain)[1], None, "{when}");
                self.pieces.swap_remove(a as usize % count);
            }
            Err(error) => assert_eq!(Some(error), self.refusals(domain)[1], "{when}"),
        }
    }

    /// The reaper and the others run. What was dropped, and is in domains that all are quiet, is gone.
    fn reap(&mut self, when: &str) {
        self.driven.iommu.reap();
        self.driven.pump();
        let restless: Vec<u64> = self.groups.iter().filter_map(|group| group.quarantined.flatten()).collect();
        let machine = &self.driven.machine;
        self.pieces.retain(|piece| {
            let stays = piece.held.is_some() || restless.iter().any(|&domain| piece.is_in(domain));
            assert_eq!(machine.is_lent(piece.physical), stays, "{when}: {:#x}", piece.physical);
            stays
        });
    }

    /// Every address that means something to anybody.
    fn addresses(&self) -> Vec<u64> {
        let ends = |piece: &Piece| {
            let bytes = piece.bytes;
            piece.places().flat_map(move |Place { iova, .. }| [iova, iova + bytes - 8]).collect::<Vec<_>>()
        };
        self.pieces.iter().flat_map(ends).collect()
    }

    fn check(&mut self, when: &str) {
        for piece in &self.pieces {
            assert!(self.driven.machine.is_lent(piece.physical) || piece.held.is_none(), "{when}");
        }
        for group in &self.groups {
            for device in &group.devices {
                self.driven.enable(device.address());
                for address in self.addresses() {
                    self.seen.probes += 1;
                    let got = [Access::Read, Access::Write].map(|access| device.probe(address, access).ok());
                    // A scratch page is nobody's memory.
                    let fits = match group.quarantined {
                        Some(_) => !got.iter().flatten().any(|&physical| self.is_anybodys(physical)),
                        None => fits(&self.pieces, group.domain, address, got),
                    };
                    assert!(
                        fits,
                        "{when}: {device:?} at {address:#x} reaches {got:x?} in {:?}",
                        group.domain
                    );
                }
            }
        }
        let complaints = self.driven.machine.take_complaints();
        assert!(complaints.is_empty(), "{when}: {complaints:#?}");
    }

    /// Everything comes back. Returns how many table pages are in use then.
    pub fn end(&mut self, when: &str) -> usize {
        self.pieces.iter_mut().for_each(|piece| drop(piece.held.take()));
        for index in 0..self.groups.len() {
            if self.groups[index].domain.is_some() || self.groups[index].quarantined.is_some() {
                self.release(index, 0, when);
            }
        }
        while !self.domains.is_empty() {
            self.destroy(0, when);
        }
        self.reap(when);
        self.check(when);
        self.groups.iter_mut().for_each(|group| drop(group.old.take()));
        assert_eq!((self.pieces.len(), self.driven.iommu.live_mappings()), (0, 0), "{when}");
        let lent = self.lent.drain(..).find(|&physical| self.driven.machine.is_lent(physical));
        assert_eq!(lent, None, "{when}");
        assert_eq!(ids(&self.driven), self.ids_at_first, "{when}: domain ids");
        self.driven.machine.audit();
        self.driven.machine.live_table_pages()
    }
}

/// Domain ids in use, by unit.
fn ids(driven: &Driven) -> Vec<usize> {
    driven.units().iter().map(|unit| unit.domains).collect()
}

fn reset(driven: &Driven, function: PciAddress) {
    driven.device(function).reset();
}

fn pick(pieces: &mut [Piece], number: u64) -> Option<&mut Piece> {
    let count = pieces.len();
    pieces.get_mut(number as usize % count.max(1))
}
