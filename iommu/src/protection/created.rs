//! Domains that were created by themselves, for groups that come and go.

use alloc::vec::Vec;

use super::Protection;
use crate::{
    PciAddress, Platform,
    arc::TryArc,
    backend::UnitSet,
    dma::{DmaError, DomainError, SharedTable},
    domain::{Domain, Kind},
    platform::LockClass,
    sync::IrqLock,
    vtd::Vtd,
};

type AnyDomain<P> = TryArc<Domain<Vtd<P>>>;

/// Those that exist, by number, lowest first.
pub(super) struct CreatedDomains<P: Platform>(IrqLock<Vec<AnyDomain<P>>>);

impl<P: Platform> CreatedDomains<P> {
    pub fn new() -> Self {
        Self(IrqLock::new(LockClass::Domains, Vec::new()))
    }
}

impl<P: Platform> Protection<P> {
    /// A domain that all units which see `functions` can walk.
    pub(super) fn create(&self, functions: &[PciAddress]) -> Result<AnyDomain<P>, DomainError> {
        let units = self.units_of(functions)?;
        self.keep(self.maker.make(units, Kind::Assigned)?)
    }

    /// A domain in which all units that see `functions` walk `table`.
    pub(super) fn share(
        &self,
        functions: &[PciAddress],
        table: SharedTable,
    ) -> Result<AnyDomain<P>, DomainError> {
        let units = self.units_of(functions)?;
        self.keep(self.maker.share(units, table)?)
    }

    /// The units that see `functions`.
    fn units_of(&self, functions: &[PciAddress]) -> Result<UnitSet, DomainError> {
        let mut units = UnitSet::default();
        for &function in functions {
            let group = self.shared.group(function).ok_or(DomainError::UnknownFunction { function })?;
            units = group.layout().sources.iter().fold(units, |units, &(_, unit)| units.with(unit));
        }
        if functions.is_empty() {
            return Err(DomainError::NoFunctions);
        }
        Ok(units)
    }

    /// Puts a new domain into the list.
    fn keep(&self, domain: AnyDomain<P>) -> Result<AnyDomain<P>, DomainError> {
        let mut domains = self.created.0.lock(&*self.shared.platform);
        domains.try_reserve(1).map_err(|_| DmaError::OutOfMemory)?;
        // Numbers are given before the lock is taken.
        let place = domains.partition_point(|other| other.number() < domain.number());
        domains.insert(place, domain.clone());
        Ok(domain)
    }

    /// The domain with this number.
    pub(super) fn created(&self, number: u64) -> Option<AnyDomain<P>> {
        let domains = self.created.0.lock(&*self.shared.platform);
        let place = domains.binary_search_by_key(&number, |domain| domain.number()).ok()?;
        domains.get(place).cloned()
    }

    /// Ends the domain with this number.
    pub(super) fn destroy(&self, number: u64) -> Result<(), DomainError> {
        let domain = self.created(number).ok_or(DomainError::Unknown { number })?;
        domain.close().map_err(|groups| DomainError::InUse { number, groups })?;
        let mut domains = self.created.0.lock(&*self.shared.platform);
        let place = domains.binary_search_by_key(&number, |domain| domain.number());
        let removed = place.ok().map(|place| domains.remove(place));
        // What was in the list goes after the lock.
        drop(domains);
        removed.map(drop).ok_or(DomainError::Unknown { number })
    }

    /// Does `work` with each of them, without a lock held.
    pub(super) fn each_created(&self, mut work: impl FnMut(&AnyDomain<P>)) {
        let mut next = 0;
        while let Some(domain) = self.created_from(next) {
            work(&domain);
            next = domain.number() + 1;
        }
    }

    /// The first whose number is `number` or above.
    fn created_from(&self, number: u64) -> Option<AnyDomain<P>> {
        let domains = self.created.0.lock(&*self.shared.platform);
        domains.get(domains.partition_point(|domain| domain.number() < number)).cloned()
    }
}
