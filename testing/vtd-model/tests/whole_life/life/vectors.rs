//! Interrupts that are asked for, routed, raised by those who may and by others, moved and given up.

use iommu::{
    dump::{InterruptReport, Visitor},
    interrupts::{Destination, InterruptError, MAX_MESSAGES, MessageInterrupts, MessageSource},
    platform::MsiMessage,
    vtd::RouteError,
};
use vtd_model::{FunctionKind, InterruptOutcome};

use super::{Function, Life};
use crate::step::Step;

/// Messages of interrupts that are not there any more, of which so many are kept.
const KEPT_MESSAGES: usize = 32;

pub(super) struct LiveInterrupts {
    pub function: usize,
    handle: MessageInterrupts,
    routes: Vec<Option<(Destination, MsiMessage)>>,
    /// They were taken from their owner, with their function: routed or not.
    is_muted: bool,
}

impl LiveInterrupts {
    pub(super) fn mute(&mut self) {
        self.is_muted = true;
    }
}

#[derive(Default)]
struct Entries(usize);

impl Visitor for Entries {
    fn interrupt(&mut self, _interrupt: &InterruptReport) {
        self.0 += 1;
    }
}

impl Life {
    pub(super) fn allocate_interrupts(&mut self, step: &Step) -> Result<(), String> {
        const MOST: usize = 24;
        let Some(function) = self.pick_claimed(step.a) else { return Ok(()) };
        if self.interrupts.len() == MOST {
            return self.release_interrupts(step);
        }
        let count = 1 << (step.b % (1 + u64::from(MAX_MESSAGES.trailing_zeros())));
        let source = MessageSource::Function(self.functions[function].address);
        let handle = self.driven.iommu.message_interrupts(source, count);
        let handle = handle.map_err(|error| format!("{count} interrupts of {source:?}: {error}"))?;
        let routes = vec![None; count.into()];
        self.interrupts.push(LiveInterrupts { function, handle, routes, is_muted: false });
        Ok(())
    }

    pub(super) fn route_interrupt(&mut self, step: &Step) -> Result<(), String> {
        if self.interrupts.is_empty() {
            return Ok(());
        }
        let at = step.a as usize % self.interrupts.len();
        let LiveInterrupts { handle, routes, is_muted, .. } = &mut self.interrupts[at];
        let (number, is_muted) = (step.b as usize % routes.len(), *is_muted);
        let to = Destination { apic: step.c as u32 % 0xff, vector: 0x10 + (step.c >> 32) as u8 % 0xef };
        match handle.route(number as u16, to) {
            Err(InterruptError::Route(RouteError::Muted { .. })) if is_muted => {}
            Ok(message) if !is_muted || handle.first_entry().is_none() => {
                let moved = routes[number].replace((to, message));
                // What was never remapped names its destination.
                if handle.first_entry().is_some() && moved.is_some_and(|(_, before)| before != message) {
                    return Err(format!("the message of a moved interrupt changed to {message:?}"));
                }
            }
            other => return Err(format!("route of {number}, muted {is_muted}: {other:?}")),
        }
        self.raise(at, number, self.interrupts[at].function)
    }

    /// A message is sent, by the function that it was made for or by another.
    pub(super) fn raise_interrupt(&mut self, step: &Step) -> Result<(), String> {
        if self.interrupts.is_empty() {
            return Ok(());
        }
        let at = step.a as usize % self.interrupts.len();
        let LiveInterrupts { function, routes, .. } = &self.interrupts[at];
        let number = step.b as usize % routes.len();
        let raiser = if step.c & 1 != 0 { *function } else { (step.c >> 1) as usize % self.functions.len() };
        self.raise(at, number, raiser)?;
        match self.old_messages.get((step.b >> 32) as usize % KEPT_MESSAGES) {
            Some(&(function, entry, message)) => self.send(function, entry, message),
            None => Ok(()),
        }
    }

    fn raise(&self, at: usize, number: usize, raiser: usize) -> Result<(), String> {
        let LiveInterrupts { handle, routes, .. } = &self.interrupts[at];
        match (handle.first_entry(), routes[number]) {
            (Some((_, first)), Some((_, message))) => self.send(raiser, first + number as u16, message),
            _ => Ok(()),
        }
    }

    /// Function `raiser` sends `message`, which names entry `entry`: that raises what the entry is for if it is the
    /// function's own, and nothing otherwise.
    fn send(&self, raiser: usize, entry: u16, message: MsiMessage) -> Result<(), String> {
        let Function { address, hardware, .. } = &self.functions[raiser];
        let config = &self.driven.machine.config().functions;
        if !self.driven.machine.is_on(config[raiser].unit).1 {
            return Ok(());
        }
        let owner = self.interrupts.iter().find_map(|live| {
            let (unit, first) = live.handle.first_entry()?;
            let number = usize::from(entry.checked_sub(first)?);
            (unit == config[raiser].unit).then_some((live, *live.routes.get(number)?))
        });
        let shares = |other: usize| {
            // Behind one bridge nobody can tell them apart.
            other == raiser
                || [other, raiser].iter().all(|&index| config[index].kind == FunctionKind::Conventional)
                    && config[other].address.segment == config[raiser].address.segment
        };
        let expected = owner.filter(|&(live, _)| shares(live.function) && !live.is_muted);
        let expected = expected.and_then(|(_, route)| route);
        match (hardware.interrupt(message), expected) {
            (InterruptOutcome::NotBusMaster, _) | (InterruptOutcome::Blocked(_), None) => Ok(()),
            (InterruptOutcome::Delivered(delivered), Some((to, _)))
                if (delivered.vector, delivered.destination) == (to.vector, to.apic) =>
            {
                Ok(())
            }
            (got, expected) => Err(format!("{address} raises entry {entry}: {got:?}, not {expected:?}")),
        }
    }

    pub(super) fn release_interrupts(&mut self, step: &Step) -> Result<(), String> {
        if self.interrupts.is_empty() {
            return Ok(());
        }
        let at = step.a as usize % self.interrupts.len();
        let LiveInterrupts { function, handle, routes, .. } = self.interrupts.swap_remove(at);
        let first = handle.first_entry();
        handle.release().map_err(|error| format!("release of interrupts: {error}"))?;
        let Some((_, first)) = first else { return Ok(()) };
        for (entry, (_, message)) in (first..).zip(routes).filter_map(|(entry, route)| Some((entry, route?)))
        {
            // Nobody has it any more.
            self.send(function, entry, message)?;
            self.old_messages.push_front((function, entry, message));
        }
        self.old_messages.truncate(KEPT_MESSAGES);
        Ok(())
    }

    /// All interrupts are given up, and no entry is left.
    pub(super) fn release_all_interrupts(&mut self) -> Result<(), String> {
        let first = Step { kind: crate::step::Kind::ReleaseInterrupts, a: 0, b: 0, c: 0 };
        while !self.interrupts.is_empty() {
            self.release_interrupts(&first)?;
        }
        let mut entries = Entries::default();
        self.driven.iommu.visit(&mut entries);
        if entries.0 == 0 { Ok(()) } else { Err(format!("{} interrupt entries are left", entries.0)) }
    }
}
