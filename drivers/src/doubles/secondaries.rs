//! What an NVMe controller in software has for secondary ones, and is asked about them.

use std::{vec, vec::Vec};

/// Queues and interrupts that can be given to one or another, and most of each that a secondary controller can have.
pub const FLEXIBLE: u16 = 7;
const MOST: u16 = 4;

/// Statuses: a number of resources that there cannot be, a controller that there is not or that cannot be brought
/// online.
const INVALID_NUMBER: u16 = 0x122;
const INVALID_CONTROLLER: u16 = 0x11f;
const INVALID_STATE: u16 = 0x120;

/// Secondary controllers, and what the primary one has.
pub struct Secondaries {
    /// What the primary one has of queues and interrupts, and what it will have after the next reset of its function.
    of_primary: [u16; 2],
    kept: [u16; 2],
    /// How often its function was reset.
    pub resets: usize,
    pub list: Vec<Secondary>,
    /// Every namespace.
    pub namespaces: Vec<u32>,
    /// Namespaces that are attached to controllers which are neither the primary one nor its secondaries.
    pub strangers: Vec<(u32, u16)>,
}

/// A secondary controller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Secondary {
    pub id: u16,
    pub number: u16,
    /// Queues and interrupts.
    pub given: [u16; 2],
    pub is_online: bool,
    pub namespaces: Vec<u32>,
}

impl Secondaries {
    /// Two, and all that is flexible with the primary one; `namespaces` are all that there are.
    pub fn new(namespaces: Vec<u32>) -> Self {
        let one = |number| Secondary { id: 0x30 + number, number, ..Secondary::default() };
        Self {
            of_primary: [FLEXIBLE; 2],
            kept: [FLEXIBLE; 2],
            resets: 0,
            list: vec![one(1), one(2)],
            namespaces,
            strangers: Vec::new(),
        }
    }

    /// The function of the primary controller is reset.
    pub fn reset(&mut self) {
        self.of_primary = self.kept;
        self.resets += 1;
    }

    /// Whether the primary one will have nothing of one or the other after the next reset.
    pub fn has_given_up(&self) -> bool {
        self.kept.contains(&0)
    }

    /// What a primary controller can give.
    pub fn capabilities(&self) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[4] = 3;
        for (at, of_primary) in [32, 64].into_iter().zip(self.of_primary) {
            page[at..at + 4].copy_from_slice(&u32::from(FLEXIBLE).to_le_bytes());
            page[at + 8..at + 10].copy_from_slice(&of_primary.to_le_bytes());
            page[at + 12..at + 14].copy_from_slice(&MOST.to_le_bytes());
        }
        page
    }

    pub fn list(&self) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[0] = self.list.len() as u8;
        for (entry, secondary) in page[32..].chunks_mut(32).zip(&self.list) {
            entry[..2].copy_from_slice(&secondary.id.to_le_bytes());
            entry[4] = secondary.is_online.into();
            entry[8..10].copy_from_slice(&secondary.number.to_le_bytes());
        }
        page
    }

    /// Does a Virtualization Management command. Its status.
    pub fn manage(&mut self, dword10: u32, number: u32) -> u16 {
        let (id, resource, number) = ((dword10 >> 16) as u16, (dword10 >> 8 & 7) as usize, number as u16);
        let used = |list: &[Secondary], but: u16| {
            let others = list.iter().filter(|secondary| secondary.id != but);
            others.map(|secondary| secondary.given[resource]).sum::<u16>()
        };
        let free = FLEXIBLE - self.of_primary[resource.min(1)];
        match dword10 & 0xf {
            1 => self.kept[resource] = number,
            8 if number > MOST || number + used(&self.list, id) > free => return INVALID_NUMBER,
            action => {
                let secondary = self.list.iter_mut().find(|secondary| secondary.id == id);
                let Some(secondary) = secondary else { return INVALID_CONTROLLER };
                match action {
                    8 if !secondary.is_online => secondary.given[resource] = number,
                    9 if secondary.given.iter().all(|&given| given >= 1) => secondary.is_online = true,
                    _ => return INVALID_STATE,
                }
            }
        }
        0
    }

    /// The ids of the controllers that `namespace` is attached to.
    pub fn attached(&self, namespace: u32) -> Vec<u8> {
        let of_secondaries = self.list.iter().filter(|it| it.namespaces.contains(&namespace)).map(|it| it.id);
        let of_others = self.strangers.iter().filter(|&&(of, _)| of == namespace).map(|&(_, id)| id);
        let ids: Vec<u16> = of_secondaries.chain(of_others).collect();
        let words = [ids.len() as u16].into_iter().chain(ids);
        let mut page: Vec<u8> = words.flat_map(u16::to_le_bytes).collect();
        page.resize(4096, 0);
        page
    }

    /// Attaches `namespace` to the controllers in `list`. The status.
    pub fn attach(&mut self, namespace: u32, list: &[u8; 4]) -> u16 {
        let [count, id] = [0, 2].map(|at| u16::from_le_bytes([list[at], list[at + 1]]));
        assert!(count == 1 && self.namespaces.contains(&namespace), "{count} controllers, {namespace}");
        match self.list.iter_mut().find(|secondary| secondary.id == id) {
            None => INVALID_CONTROLLER,
            Some(secondary) if secondary.namespaces.contains(&namespace) => 0x118,
            Some(secondary) => {
                secondary.namespaces.push(namespace);
                0
            }
        }
    }
}
