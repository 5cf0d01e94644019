//! Comparing what devices can reach with the oracle.

use vtd_model::{Access, Denied, Device, Random, Reach};

use crate::oracle::{Expected, Mapped, Oracle, State};

/// Compares one address of one device, read and write.
pub fn address(device: &Device, oracle: &Oracle, address: u64) -> Result<(), String> {
    let expected = oracle.expected(address);
    for access in [Access::Read, Access::Write] {
        let got = device.probe(address, access);
        let fine = match expected {
            Expected::Nothing => got.is_err(),
            Expected::Scratch(page) => got.is_ok_and(|physical| physical & !0xfff == page) || got.is_err(),
            Expected::Mapped(mapped, offset) => agrees(&mapped, offset, access, got),
        };
        if !fine {
            return Err(format!(
                "{device:?}: {access:?} of {address:#x} gives {got:x?}, expected {expected:x?}"
            ));
        }
    }
    Ok(())
}

fn agrees(mapped: &Mapped, offset: u64, access: Access, got: Result<u64, Denied>) -> bool {
    let allowed = if access == Access::Write { mapped.write } else { mapped.read };
    match got {
        Ok(physical) => allowed && mapped.physical.is_none_or(|first| first + offset == physical),
        Err(_) => !allowed || mapped.state != State::InUse,
    }
}

/// Both ends of a range, some address inside, and the two neighbours.
pub fn around(
    device: &Device,
    oracle: &Oracle,
    first: u64,
    bytes: u64,
    random: &mut Random,
) -> Result<(), String> {
    let last = first + (bytes - 1);
    let inside = first + random.below(bytes);
    for at in [first.wrapping_sub(1), first, inside, last, last.wrapping_add(1)] {
        address(device, oracle, at)?;
    }
    Ok(())
}

/// An address worth a look: near a range, or anywhere.
pub fn some_address(oracle: &Oracle, address_bits: u32, random: &mut Random) -> u64 {
    let anywhere = random.below(1 << address_bits);
    match random.below(4) {
        0 => anywhere,
        1 => anywhere & 0xffff_ffff,
        2 => anywhere >> random.below(address_bits.into()),
        _ => {
            let index = random.index(oracle.len().max(1));
            let near =
                oracle.nth(index).map(|(first, mapped)| first.wrapping_add(random.below(mapped.bytes * 2)));
            near.unwrap_or(anywhere)
        }
    }
}

/// The whole space of one device: the tables say exactly what the oracle says, and no cache says anything else.
pub fn whole(device: &Device, oracle: &Oracle) -> Result<(), String> {
    let reach = device.reach_of_tables().ok_or_else(|| format!("{device:?} passes through"))?;
    let mut reached: u64 = reach.iter().map(|run| run.bytes).sum();
    for (first, mapped) in oracle.ranges().filter(|(_, mapped)| is_in_tables(mapped)) {
        covered(&reach, first, &mapped).map_err(|error| format!("{device:?}: {error}"))?;
        reached -= mapped.bytes;
    }
    if reached != 0 {
        return Err(format!("{device:?} reaches {reached:#x} bytes too much: {reach:x?}"));
    }
    for (first, translation) in device.cached_translations() {
        let Expected::Mapped(mapped, offset) = oracle.expected(first) else {
            return Err(format!("{device:?}: {first:#x} is cached: {translation:x?}"));
        };
        let bytes = 1_u64 << translation.page_shift;
        let same = mapped.physical.is_none_or(|physical| physical + offset == translation.physical)
            && offset + bytes <= mapped.bytes
            && (mapped.read, mapped.write) == (translation.read, translation.write);
        if !same {
            return Err(format!(
                "{device:?}: {first:#x} is cached as {translation:x?}, mapped as {mapped:x?}"
            ));
        }
    }
    Ok(())
}

/// Whether the tables have the range.
fn is_in_tables(mapped: &Mapped) -> bool {
    matches!(mapped.state, State::InUse | State::Dropped)
}

/// A device on a scratch page: whatever is cached for it, it gets to that page or to its reserved memory.
pub fn on_scratch_page(device: &Device, oracle: &Oracle) -> Result<(), String> {
    device.cached_translations().into_iter().try_for_each(|(first, _)| address(device, oracle, first))
}

/// A device reaches nothing, whatever its TLB holds.
pub fn blocked(device: &Device) -> Result<(), String> {
    let reach = device.reach_of_tables();
    if reach.as_ref().is_none_or(|reach| !reach.is_empty()) {
        return Err(format!("{device:?} was stopped and reaches {reach:x?}"));
    }
    for (address, translation) in device.cached_translations() {
        let access = if translation.write { Access::Write } else { Access::Read };
        if let Ok(physical) = device.probe(address, access) {
            return Err(format!("{device:?} was stopped and gets from {address:#x} to {physical:#x}"));
        }
    }
    Ok(())
}

/// Whether the tables map the range as they should, all of it.
fn covered(reach: &[Reach], first: u64, mapped: &Mapped) -> Result<(), String> {
    let mut at = first;
    let end = first + mapped.bytes;
    while at < end {
        let index = reach.partition_point(|run| run.address + run.bytes <= at);
        let Some(run) = reach.get(index).filter(|run| run.address <= at) else {
            return Err(format!("{at:#x} of {first:#x} {mapped:x?} is not mapped"));
        };
        let physical = run.physical + (at - run.address);
        let same = mapped.physical.is_none_or(|start| start + (at - first) == physical);
        if !same || (run.read, run.write) != (mapped.read, mapped.write) {
            return Err(format!("{at:#x} of {first:#x} {mapped:x?} is mapped as {run:x?}"));
        }
        at = run.address + run.bytes;
    }
    Ok(())
}
