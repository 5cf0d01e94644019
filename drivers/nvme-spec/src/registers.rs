//! The controller's registers: where they are, and what is in them.

use bitflags::bitflags;

/// Offsets from the start of BAR 0.
pub mod offset {
    pub const CAPABILITIES: usize = 0x00;
    pub const VERSION: usize = 0x08;
    pub const CONFIGURATION: usize = 0x14;
    pub const STATUS: usize = 0x1c;
    pub const ADMIN_ATTRIBUTES: usize = 0x24;
    pub const ADMIN_SUBMISSION: usize = 0x28;
    pub const ADMIN_COMPLETION: usize = 0x30;
    pub const CONTROLLER_MEMORY_SIZE: usize = 0x3c;
    /// The first doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// The capabilities register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Most entries that a queue may have: 2 to 65,536, or 1 of a controller that says so, with which there are no
    /// queues.
    #[must_use]
    pub const fn queue_limit(self) -> u32 {
        (self.0 as u32 & 0xffff) + 1
    }

    /// How long the controller may take to become ready, or to stop being it.
    #[must_use]
    pub const fn ready_ns(self) -> u64 {
        (self.0 >> 24 & 0xff) * 500_000_000
    }

    /// Bytes from one doorbell to the next.
    #[must_use]
    pub const fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Where the tail doorbell of submission queue `queue` is; that of its completion queue's head is one stride on.
    #[must_use]
    pub const fn doorbell(self, queue: u16) -> usize {
        offset::DOORBELLS + 2 * queue as usize * self.doorbell_stride()
    }

    /// Whether it has the NVM command set.
    #[must_use]
    pub const fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// Whether it says that it has memory of its own: a controller memory buffer (CMBS) or a persistent memory region
    /// (PMRS). Before version 1.4 there was no bit for the former, but a size that is not 0.
    #[must_use]
    pub const fn has_memory(self) -> bool {
        self.0 >> 56 & 3 != 0
    }

    /// Whether it works with pages of 4 KiB.
    #[must_use]
    pub const fn has_4k_pages(self) -> bool {
        self.0 >> 48 & 0xf == 0
    }
}

bitflags! {
    /// The status register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ControllerStatus: u32 {
        /// Commands are taken.
        const READY = 1 << 0;
        /// Only a reset helps.
        const FATAL = 1 << 1;
        /// The shutdown that was asked for is in progress (bits 3:2 are 1) or complete (2).
        const SHUTTING_DOWN = 1 << 2;
        const SHUT_DOWN = 1 << 3;
    }
}

/// The configuration that turns the controller on: NVM commands, pages of 4 KiB, entries of 64 and 16 bytes.
pub const CONFIGURATION_ON: u32 = 1 | 6 << 16 | 4 << 20;

/// Added to the configuration, this asks for a normal shutdown.
pub const SHUT_DOWN: u32 = 1 << 14;

/// The admin queue attributes for queues of `size` entries, which are given as one less.
#[must_use]
pub const fn admin_attributes(size: u16) -> u32 {
    let last = (size - 1) as u32;
    last | last << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_where_the_register_has_them() {
        // What QEMU 10.0 reports: 2,048 entries, 15 of the 500 ms units, stride 4, NVM commands, 4 KiB to 64 KiB.
        let qemu = Capabilities(0x0040_0020_0f03_07ff | 1 << 37);
        assert_eq!((qemu.queue_limit(), qemu.ready_ns()), (2048, 7_500_000_000));
        assert_eq!((qemu.doorbell_stride(), qemu.has_nvm_commands(), qemu.has_4k_pages()), (4, true, true));
        assert_eq!(Capabilities(3 << 32).doorbell_stride(), 32);
        assert_eq!(Capabilities(u64::MAX).queue_limit(), 65_536);
        assert!(!Capabilities(1 << 48).has_4k_pages());
        assert!(!qemu.has_memory() && !Capabilities(!(3 << 56)).has_memory());
        assert!(Capabilities(1 << 56).has_memory() && Capabilities(1 << 57).has_memory());
    }

    #[test]
    fn admin_queues_are_given_as_one_less() {
        assert_eq!(admin_attributes(32), 0x001f_001f);
    }
}
