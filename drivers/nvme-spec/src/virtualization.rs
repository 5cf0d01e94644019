//! Secondary controllers, and what a primary one can give them: structures that Identify returns.

use super::identify::{IDENTIFY_BYTES, bytes_at};

/// What a primary controller shares with secondary ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Queue pairs, that for admin commands included.
    Queues,
    /// Interrupts.
    Interrupts,
}

impl Resource {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Queues, Self::Interrupts];

    /// As a command names it.
    pub(crate) const fn bits(self) -> u32 {
        const SHIFT: u32 = 8;
        (self as u32) << SHIFT
    }
}

/// How much of a resource can be given to one controller or another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flexible {
    /// All of it.
    pub total: u32,
    /// What the primary controller has of that.
    pub of_primary: u16,
    /// Most that one secondary controller can have.
    pub most: u16,
}

impl Flexible {
    /// What each of `count` secondary controllers can have, if all get the same.
    #[must_use]
    pub fn share(&self, count: u16) -> u16 {
        let share = self.total / u32::from(count.max(1));
        u16::try_from(share).unwrap_or(u16::MAX).min(self.most)
    }
}

/// Offset of what is said of queues in the structure of a primary controller; what is said of interrupts comes 32 bytes
/// later.
const FLEXIBLE: usize = 32;

/// Offset of the byte that says which resources can be given at all.
const TYPES: usize = 4;

/// What a primary controller has of `resource` for secondary ones; `None` if they have theirs for good.
#[must_use]
pub fn flexible(page: &[u8; IDENTIFY_BYTES], resource: Resource) -> Option<Flexible> {
    if page[TYPES] & 1 << resource as u32 == 0 {
        return None;
    }
    let at = FLEXIBLE * (1 + resource as usize);
    let word = |offset| u16::from_le_bytes(bytes_at(page, at + offset));
    Some(Flexible { total: u32::from_le_bytes(bytes_at(page, at)), of_primary: word(8), most: word(12) })
}

/// A secondary controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Secondary {
    /// Its id among the controllers of the subsystem.
    pub id: u16,
    /// Which virtual function it is, from 1 on.
    pub number: u16,
    /// It can be used.
    pub is_online: bool,
}

/// The ids in a list of controllers, whatever number of them it claims.
pub fn controllers(page: &[u8; IDENTIFY_BYTES]) -> impl Iterator<Item = u16> {
    let ids = page.chunks_exact(2).map(|id| u16::from_le_bytes([id[0], id[1]]));
    let count = u16::from_le_bytes(bytes_at(page, 0));
    ids.skip(1).take(count.into())
}

/// Most secondary controllers in a list.
const SECONDARIES: usize = 127;
/// Bytes of each, and of what is before the first.
const SECONDARY_BYTES: usize = 32;

/// The secondary controllers in a list, whatever number of them it claims.
pub fn secondaries(page: &[u8; IDENTIFY_BYTES]) -> impl Iterator<Item = Secondary> {
    let count = usize::from(page[0]).min(SECONDARIES);
    (1..=count).map(|index| index * SECONDARY_BYTES).map(|at| {
        let word = |offset| u16::from_le_bytes(bytes_at(page, at + offset));
        Secondary { id: word(0), number: word(8), is_online: page[at + 4] & 1 != 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_flexible_is_decoded_and_shared_out() {
        let mut page = [0; IDENTIFY_BYTES];
        (page[32], page[40], page[44]) = (9, 9, 4);
        (page[64], page[72], page[76]) = (6, 5, 2);
        let queues = Flexible { total: 9, of_primary: 9, most: 4 };
        assert_eq!(
            Resource::ALL.map(|resource| flexible(&page, resource)),
            [None; 2],
            "nothing is said to be"
        );
        page[4] = 1;
        assert_eq!(flexible(&page, Resource::Queues), Some(queues));
        assert_eq!(flexible(&page, Resource::Interrupts), None);
        page[4] = 2;
        assert_eq!(flexible(&page, Resource::Queues), None);
        let interrupts = Flexible { total: 6, of_primary: 5, most: 2 };
        assert_eq!(flexible(&page, Resource::Interrupts), Some(interrupts));
        assert_eq!([0, 1, 2, 3, 10].map(|count| queues.share(count)), [4, 4, 4, 3, 0]);
        let many = Flexible { total: u32::MAX, of_primary: 0, most: u16::MAX };
        assert_eq!(many.share(1), u16::MAX);
    }

    #[test]
    fn secondaries_are_decoded_and_no_more_than_there_is_room_for() {
        let mut page = [0; IDENTIFY_BYTES];
        page[0] = 2;
        (page[32], page[40]) = (5, 1);
        (page[64], page[68], page[72]) = (6, 1, 2);
        let first = Secondary { id: 5, number: 1, is_online: false };
        let second = Secondary { id: 6, number: 2, is_online: true };
        assert!(secondaries(&page).eq([first, second]));
        page[0] = 0xff;
        assert_eq!(secondaries(&page).count(), SECONDARIES);
    }

    #[test]
    fn controllers_are_as_many_as_there_is_room_for() {
        let mut page = [0; IDENTIFY_BYTES];
        (page[0], page[2], page[4], page[5]) = (2, 5, 6, 1);
        assert!(controllers(&page).eq([5, 0x106]));
        (page[0], page[1]) = (0xff, 0xff);
        assert_eq!(controllers(&page).count(), 2047);
    }

    #[test]
    fn resources_have_their_place_in_a_command() {
        assert_eq!(Resource::ALL.map(Resource::bits), [0, 0x100]);
    }
}
