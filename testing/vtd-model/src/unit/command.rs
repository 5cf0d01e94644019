//! Global commands, protected memory, and invalidation by registers.

use super::{SCALABLE, TABLE_MODE, Unit, global, invalidation::Drains};
use crate::{
    complaints::Rule,
    context_cache::ContextScope,
    entries::bits,
    iotlb::{IotlbScope, Stage, Tag},
    world::World,
};

/// Bits of GCMD that do something once and read back otherwise.
const ONE_SHOT: u32 = global::ROOT | global::WRITE_BUFFER | global::INTERRUPT_TABLE;
/// Bits of GCMD that stay.
const STICKY: u32 =
    global::TRANSLATION | global::FAULT_LOG | global::QUEUE | global::INTERRUPTS | global::COMPATIBILITY;

/// What is under way, each until some time.
#[derive(Debug, Default)]
pub(super) struct Commands {
    global: Option<(u64, u32)>,
    context: Option<u64>,
    iotlb: Option<u64>,
    protection: Option<(u64, bool)>,
    /// The registers CCMD, IOTLB and IVA as they read.
    pub context_register: u64,
    pub iotlb_register: u64,
    pub address_register: u64,
}

const NEVER: u64 = u64::MAX;

impl Unit {
    fn due(&self, world: &World) -> u64 {
        world.now_ns + self.config.command_ns
    }

    /// Carries out what is due.
    pub(super) fn advance_commands(&mut self, world: &mut World) {
        let now = world.now_ns;
        if let Some((due, value)) = self.commands.global
            && due <= now
        {
            self.commands.global = None;
            self.carry_out(world, value);
        }
        if self.commands.context.is_some_and(|due| due <= now) {
            self.commands.context = None;
            self.finish_context_command(world);
        }
        if self.commands.iotlb.is_some_and(|due| due <= now) {
            self.commands.iotlb = None;
            self.finish_iotlb_command(world);
        }
        if let Some((due, on)) = self.commands.protection
            && due <= now
        {
            self.commands.protection = None;
            self.protection = on;
        }
    }

    pub(super) fn write_global_command(&mut self, world: &mut World, value: u32) {
        let broken = self.misbehaviour.deaf_to != 0;
        if self.commands.global.is_some() && !broken {
            self.complain(world, Rule::CommandWhileBusy, format!("GCMD {value:#x}"));
        }
        if value & !(STICKY | ONE_SHOT) != 0 {
            self.complain(world, Rule::ReservedBits, format!("GCMD {value:#x}"));
        }
        let changed = (value ^ self.status) & STICKY | value & ONE_SHOT;
        if changed.count_ones() > 1 {
            let text = format!("GCMD {value:#010x} changes {changed:#010x} with GSTS {:#010x}", self.status);
            self.complain(world, Rule::OneCommandAtATime, text);
        }
        self.check_command_order(world, value, changed);
        self.status &= !(value & (global::ROOT | global::INTERRUPT_TABLE));
        if value & global::WRITE_BUFFER != 0 && self.config.write_buffer {
            self.status |= global::WRITE_BUFFER;
        }
        let deaf = changed & self.misbehaviour.deaf_to != 0;
        let due = if deaf { NEVER } else { self.due(world) };
        self.commands.global = Some((due, value));
        self.advance_commands(world);
    }

    fn check_command_order(&self, world: &World, value: u32, changed: u32) {
        let turned_on = |bit| value & changed & bit != 0;
        let mut wrong = None;
        if turned_on(global::TRANSLATION) && !self.has_root() {
            wrong = Some("translation on without a root table");
        }
        if turned_on(global::TRANSLATION) && self.is_scalable() && !self.has_wide_queue() {
            wrong = Some("scalable mode without a queue of wide descriptors");
        }
        if turned_on(global::QUEUE) && !self.config.queued {
            wrong = Some("queue on, but there is none");
        }
        if turned_on(global::TRANSLATION) && self.page_event.control() >> 31 == 0 {
            wrong = Some("translation on while events of page requests go where firmware wanted them");
        }
        if value & global::FAULT_LOG != 0 {
            wrong = Some("an advanced fault log, which nobody reads");
        }
        let remapping = global::INTERRUPTS | global::INTERRUPT_TABLE | global::COMPATIBILITY;
        if turned_on(remapping) && !self.config.interrupt_remapping {
            wrong = Some("interrupt remapping, but there is none");
        }
        if turned_on(global::INTERRUPTS)
            && (!self.is_on(global::INTERRUPT_TABLE) || !self.is_on(global::QUEUE))
        {
            wrong = Some("interrupt remapping on without table or queue");
        }
        if let Some(text) = wrong {
            self.complain(world, Rule::CommandOrder, text);
        }
    }

    fn carry_out(&mut self, world: &mut World, value: u32) {
        let changed = (value ^ self.status) & STICKY;
        if value & global::ROOT != 0 {
            self.latch_root(world);
        }
        if value & global::INTERRUPT_TABLE != 0 {
            self.latch_interrupt_table(world);
        }
        if value & global::WRITE_BUFFER != 0 {
            self.drain_write_buffer(world);
            self.status &= !global::WRITE_BUFFER;
        }
        if changed & global::QUEUE != 0 {
            self.switch_queue(world, value & global::QUEUE != 0);
        }
        if changed & global::TRANSLATION != 0 && (self.config.sagaw != 0 || self.config.first_stage) {
            self.forget_handshakes();
            self.status ^= global::TRANSLATION;
            self.check_contexts(world);
        }
        if changed & global::FAULT_LOG != 0 && self.config.advanced_fault_log {
            self.status ^= global::FAULT_LOG;
            self.faults.to_log = self.is_on(global::FAULT_LOG);
        }
        if changed & global::INTERRUPTS != 0 && self.config.interrupt_remapping {
            self.handshakes.forget_interrupts();
            self.status ^= global::INTERRUPTS;
        }
        if changed & global::COMPATIBILITY != 0 && self.config.interrupt_remapping {
            self.status ^= global::COMPATIBILITY;
        }
    }

    fn latch_root(&mut self, world: &World) {
        let mode = if self.config.scalable { self.root_address & TABLE_MODE } else { 0 };
        if self.root_address & bits(11, 0) != mode || mode & !SCALABLE != 0 {
            self.complain(world, Rule::ReservedBits, format!("RTADDR {:#x}", self.root_address));
        }
        if self.translates() && (self.root ^ self.root_address) & TABLE_MODE != 0 {
            self.complain(world, Rule::CommandOrder, "another root-table mode while translation is on");
        }
        self.root = self.root_address;
        self.status |= global::ROOT;
        self.forget_handshakes();
        if self.config.esrtps {
            self.forget_translations();
        }
    }

    fn latch_interrupt_table(&mut self, world: &World) {
        if self.interrupt_address & bits(10, 4) != 0 || self.extended_requested() && !self.config.eim {
            self.complain(world, Rule::ReservedBits, format!("IRTA {:#x}", self.interrupt_address));
        }
        self.interrupt_table = self.interrupt_address;
        self.status |= global::INTERRUPT_TABLE;
        self.handshakes.forget_interrupts();
        if self.config.esirtps {
            self.forget_interrupt_entries();
        }
    }

    fn switch_queue(&mut self, world: &mut World, on: bool) {
        if on && self.config.queued {
            self.turn_queue_on(world);
            self.status |= global::QUEUE;
        } else if !on && !self.misbehaviour.queue_stays_on {
            self.turn_queue_off(world);
            self.status &= !global::QUEUE;
        }
    }

    pub(super) fn write_protection(&mut self, world: &World, value: u32) {
        if self.commands.protection.is_some() {
            self.complain(world, Rule::CommandWhileBusy, "PMEN");
        }
        self.commands.protection = Some((self.due(world), value >> 31 != 0));
    }

    /// Whether an invalidation may be asked for by registers now.
    fn admit_register_invalidation(&self, world: &World, name: &str, busy: bool) -> bool {
        if busy && !self.misbehaviour.registers_stalled {
            self.complain(world, Rule::CommandWhileBusy, name);
        }
        let forbidden = self.is_on(global::QUEUE) || self.config.version >> 4 >= 6;
        if forbidden {
            self.complain(world, Rule::RegisterInvalidationForbidden, name);
        }
        !forbidden && !self.misbehaviour.registers_stalled
    }

    pub(super) fn write_context_command(&mut self, world: &mut World, value: u64) {
        const START: u64 = 1 << 63;
        self.commands.context_register = value;
        if value & START == 0 {
            return;
        }
        if value & bits(58, 34) != 0 {
            self.complain(world, Rule::ReservedBits, format!("CCMD {value:#x}"));
        }
        let busy = self.commands.context.is_some();
        let admitted = self.admit_register_invalidation(world, "CCMD", busy);
        self.commands.context = Some(if admitted { self.due(world) } else { NEVER });
        self.advance_commands(world);
    }

    fn finish_context_command(&mut self, world: &mut World) {
        let value = self.commands.context_register;
        let domain = (value & 0xffff) as u16;
        let source = (value >> 16) as u16;
        let scope = match value >> 61 & 3 {
            1 => Some(ContextScope::Global),
            2 => Some(ContextScope::Domain(domain)),
            3 => Some(ContextScope::Device { domain, source, function_mask: (value >> 32 & 3) as u8 }),
            _ => None,
        };
        let scope = scope.filter(|_| !self.misbehaviour.registers_refuse);
        if let Some(scope) = scope {
            self.invalidate_contexts(world, scope);
        } else if !self.misbehaviour.registers_refuse {
            self.complain(world, Rule::BadInvalidation, format!("CCMD {value:#x}"));
        }
        let done = if scope.is_some() { value >> 61 & 3 } else { 0 };
        self.commands.context_register = value & bits(58, 0) | value & bits(62, 61) | done << 59;
    }

    pub(super) fn write_iotlb_command(&mut self, world: &mut World, value: u64) {
        const START: u64 = 1 << 63;
        self.commands.iotlb_register = value;
        if value & START == 0 {
            return;
        }
        if value & (1 << 62 | 1 << 59 | bits(56, 50) | bits(31, 0)) != 0 {
            self.complain(world, Rule::ReservedBits, format!("IOTLB {value:#x}"));
        }
        let busy = self.commands.iotlb.is_some();
        let admitted = self.admit_register_invalidation(world, "IOTLB", busy);
        self.commands.iotlb = Some(if admitted { self.due(world) } else { NEVER });
        self.advance_commands(world);
    }

    fn finish_iotlb_command(&mut self, world: &mut World) {
        let value = self.commands.iotlb_register;
        let tag = Tag::second((value >> 32) as u16);
        let scope = match value >> 60 & 3 {
            1 => Some(IotlbScope::Global),
            2 => Some(IotlbScope::Domain(tag)),
            3 => {
                let address = self.commands.address_register;
                self.page_scope(world, tag, address)
            }
            _ => None,
        };
        let scope = scope.filter(|_| !self.misbehaviour.registers_refuse);
        if let Some(scope) = scope {
            let drains = Drains { writes: value >> 48 & 1 != 0, reads: value >> 49 & 1 != 0 };
            self.invalidate_iotlb(world, scope, drains);
        } else if !self.misbehaviour.registers_refuse {
            self.complain(world, Rule::BadInvalidation, format!("IOTLB {value:#x}"));
        }
        let done = if scope.is_some() { value >> 60 & 3 } else { 0 };
        self.commands.iotlb_register = value & !(1 << 63 | bits(58, 57)) | done << 57;
    }

    /// The pages of an invalidation: address in 63:12, IH in 6, address mask in 5:0. `None` if it cannot be done. Those
    /// of the first stage may be as many as in its largest leaf, whatever the unit reports.
    pub(super) fn page_scope(&self, world: &World, tag: Tag, raw: u64) -> Option<IotlbScope> {
        let (mask, first) = ((raw & 0x3f) as u8, raw >> 12);
        let pages = 1_u64 << mask;
        let highest = match tag.stage {
            Stage::First => Some(18),
            Stage::Second => self.config.page_selective,
        };
        let possible = highest.is_some_and(|highest| mask <= highest);
        if !possible || first & (pages - 1) != 0 || raw & bits(11, 7) != 0 {
            let text = format!("pages {first:#x} with mask {mask} ({highest:?})");
            self.complain(world, Rule::BadInvalidation, text);
        }
        let leaves_only = raw >> 6 & 1 != 0;
        possible.then_some(IotlbScope::Pages {
            tag,
            first: first & !(pages - 1),
            last: first | (pages - 1),
            leaves_only,
        })
    }

    /// Notes a domain id that the unit does not have.
    pub(super) fn check_domain(&self, world: &World, domain: u16) {
        if u32::from(domain) >= self.config.domain_ids() {
            self.complain(world, Rule::DomainId, format!("domain {domain} of {}", self.config.domain_ids()));
        }
    }
}
