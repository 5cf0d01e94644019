//! From a device's request to memory, through every cache.

use super::{Unit, global};
use crate::{
    entries::{Binding, TranslationType},
    faults::Fault,
    iotlb::{Lookup, Stage, Translation},
    reason::Reason,
    world::World,
};

/// What a device wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
    /// A read of no bytes, used as a flush.
    ZeroLengthRead,
}

/// What the address of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressType {
    /// An ordinary request.
    Untranslated = 0,
    /// A device asks for a translation (ATS).
    TranslationRequest = 1,
    /// A device uses what it got.
    Translated = 2,
}

/// One request, within one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub source: u16,
    pub address: u64,
    pub access: Access,
    pub address_type: AddressType,
    /// Look, and leave no fault record behind.
    pub silent: bool,
}

/// Why a request did not get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// The unit blocked it.
    Fault(Reason),
    /// The address is one where writes are interrupts.
    InterruptRange,
    /// Protected memory.
    Protected,
    /// The function does not master the bus.
    NotBusMaster,
    /// The device's own request for a translation was refused.
    NoTranslation,
    /// There is no memory, or none that a device should ever reach.
    NoMemory,
}

/// A refusal, and whether the entry that was used mutes the record.
pub(super) struct Refusal {
    pub reason: Reason,
    pub muted: bool,
}

pub(crate) fn is_interrupt_range(address: u64) -> bool {
    address >> 20 == 0xfee
}

impl Unit {
    /// Translates a request and records the fault if there is one.
    pub fn request(&mut self, world: &mut World, request: &Request) -> Result<Translation, Denied> {
        if !self.translates() {
            return Ok(identity(request.address));
        }
        if is_interrupt_range(request.address) && request.address_type != AddressType::Translated {
            return Err(Denied::InterruptRange);
        }
        self.translate(world, request).map_err(|refusal| {
            let quiet_request =
                request.address_type == AddressType::TranslationRequest && refusal.reason.is_no_right();
            let muted = refusal.muted && refusal.reason.can_be_muted();
            if !request.silent && !muted && !quiet_request {
                self.record_fault(
                    world,
                    &Fault {
                        source: request.source,
                        information: request.address,
                        reason: refusal.reason,
                        read: request.access != Access::Write,
                        address_type: request.address_type as u8,
                    },
                );
            }
            Denied::Fault(refusal.reason)
        })
    }

    pub fn record_fault(&mut self, world: &mut World, fault: &Fault) {
        if self.faults.record(fault, &mut world.random) {
            let message = self.fault_event.raise();
            Self::send(world, message);
        }
    }

    fn translate(&mut self, world: &mut World, request: &Request) -> Result<Translation, Refusal> {
        let binding = self.binding(world, request.source)?;
        let Binding { muted, scalable, stage, .. } = binding;
        self.translate_in(world, &binding, request).map_err(|reason| {
            let reason = if scalable { reason.in_scalable_mode(stage) } else { reason };
            Refusal { reason, muted }
        })
    }

    fn translate_in(
        &mut self,
        world: &mut World,
        binding: &Binding,
        request: &Request,
    ) -> Result<Translation, Reason> {
        let kind = binding.kind;
        if request.address_type != AddressType::Untranslated && kind != TranslationType::DeviceTlb {
            return Err(Reason::RequestBlocked);
        }
        if request.address_type == AddressType::Translated {
            return Ok(identity(request.address));
        }
        self.check_address(binding, request.address)?;
        if kind != TranslationType::PassThrough && self.newcomers.contains(&request.source) {
            return Err(match (binding.stage, request.access) {
                (Stage::First, _) => Reason::FirstStageNotPresent,
                (Stage::Second, Access::Write) => Reason::NoWrite,
                (Stage::Second, _) => Reason::NoRead,
            });
        }
        let tag = binding.tag();
        if let Some(found) = self.iotlb.lookup(tag, request.address) {
            if !world.drops() {
                return self.use_cached(found, request.access);
            }
            self.iotlb.drop_entry(tag, request.address);
        }
        let found = match kind {
            // Hardware may keep pass-through addresses in the IOTLB like any others.
            TranslationType::PassThrough => identity(request.address),
            _ => self.walk(world, binding, request.address, request.access)?,
        };
        self.iotlb.insert(tag, request.address, found);
        Ok(found)
    }

    /// Whether a table of this shape can translate `address` at all.
    fn check_address(&self, binding: &Binding, address: u64) -> Result<(), Reason> {
        let most = u32::from(self.config.mgaw);
        let canonical = most.min(47);
        let width = most.min(30 + 9 * u32::from(binding.width));
        match binding.stage {
            Stage::First if !matches!(address as i64 >> canonical, 0 | -1) => Err(Reason::NotCanonical),
            Stage::Second if address.unbounded_shr(width) != 0 => Err(Reason::AddressTooLarge),
            Stage::First | Stage::Second => Ok(()),
        }
    }

    fn use_cached(&self, found: Lookup, access: Access) -> Result<Translation, Reason> {
        let refused = if access == Access::Write { Reason::NoWrite } else { Reason::NoRead };
        match found {
            Lookup::Hit(translation) if self.allows(access, translation.read, translation.write) => {
                Ok(translation)
            }
            Lookup::Hit(_) | Lookup::NotPresent => Err(refused),
        }
    }

    pub(super) fn allows(&self, access: Access, read: bool, write: bool) -> bool {
        match access {
            Access::Read => read,
            Access::Write => write,
            Access::ZeroLengthRead => read || self.config.zero_length_reads && write,
        }
    }

    /// Whether protected memory keeps devices away from the address.
    pub fn is_protected(&self, physical: u64) -> bool {
        let [low_base, low_limit, high_base, high_limit] = self.protected;
        self.protection
            && (self.config.protected_low && (low_base..=low_limit | 0x1f_ffff).contains(&physical)
                || self.config.protected_high && (high_base..=high_limit | 0x1f_ffff).contains(&physical))
    }

    /// Whether the root table has been set, so that walking makes sense.
    pub(super) fn has_root(&self) -> bool {
        self.is_on(global::ROOT)
    }
}

fn identity(address: u64) -> Translation {
    Translation { physical: address & !0xfff, page_shift: 12, read: true, write: true, pass_through: true }
}
