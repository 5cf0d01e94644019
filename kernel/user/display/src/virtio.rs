//! As much of virtio as it takes to send one command after the other to a device: its registers, and one queue with one
//! request in it.

use core::sync::atomic::{Ordering::SeqCst, fence};

use runtime::abi::DeviceAccess;

use super::{DISPLAY, Failure, window::Window};

/// How long the device may take for anything.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Kinds of structures, by the byte in the capability that says where one is.
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;

/// Registers in the common structure.
const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFFSET: usize = 30;
const QUEUE_DESCRIPTORS: usize = 32;
const QUEUE_AVAILABLE: usize = 40;
const QUEUE_USED: usize = 48;
const COMMON_BYTES: usize = 56;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Bits 32 and 33 of the features: VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM. Without the second it would take
/// addresses for physical ones.
const FEATURES: [u32; 2] = [0, 0b11];

/// The page that is shared with the device: the queue, a request, and its response.
const PAGE_BYTES: usize = 4096;
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x100;
const USED: usize = 0x200;
const REQUEST: usize = 0x400;
const RESPONSE: usize = 0x800;
/// Entries of the queue.
const ENTRIES: u16 = 2;
/// The interrupt that the queue raises.
const INTERRUPT: u16 = 0;

const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// A device's first queue.
pub struct Queue {
    page: Window,
    iova: u64,
    doorbell: Window,
    /// Requests so far.
    count: u16,
}

impl Queue {
    /// Resets the device, and gives it a queue whose page it finds at `iova`, or where the program has it.
    pub fn open(iova: u64) -> Result<Self, Failure> {
        let Structures { common, notify, notify_multiplier } = Structures::find()?;
        common.write(STATUS, 0_u8);
        let deadline_ns = runtime::now_ns() + PATIENCE_NS;
        while common.read::<u8>(STATUS) != 0 {
            if runtime::now_ns() > deadline_ns {
                return Err(Failure::Device("it is not reset"));
            }
            core::hint::spin_loop();
        }
        common.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (select, wanted) in (0_u32..).zip(FEATURES) {
            common.write(DEVICE_FEATURE_SELECT, select);
            if common.read::<u32>(DEVICE_FEATURE) & wanted != wanted {
                return Err(Failure::Device("it goes past the IOMMU"));
            }
            common.write(DRIVER_FEATURE_SELECT, select);
            common.write(DRIVER_FEATURE, wanted);
        }
        common.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if common.read::<u8>(STATUS) & FEATURES_OK == 0 {
            return Err(Failure::Device("it does not take the features that it offers"));
        }
        let start = runtime::map_memory(PAGE_BYTES)?;
        // SAFETY: it is never given back, and accessed by the window alone.
        let (iova, page) =
            unsafe { (DISPLAY.share(start, iova, DeviceAccess::ReadWrite)?, Window::new(start, PAGE_BYTES)) };
        common.write(QUEUE_SELECT, 0_u16);
        common.write(QUEUE_SIZE, ENTRIES);
        common.write(QUEUE_VECTOR, INTERRUPT);
        if common.read::<u16>(QUEUE_VECTOR) != INTERRUPT {
            return Err(Failure::Device("it has no interrupt for its queue"));
        }
        for (register, place) in
            [(QUEUE_DESCRIPTORS, DESCRIPTORS), (QUEUE_AVAILABLE, AVAILABLE), (QUEUE_USED, USED)]
        {
            let address = iova + place as u64;
            common.write(register, address as u32);
            common.write(register + 4, (address >> 32) as u32);
        }
        let offset = usize::from(common.read::<u16>(QUEUE_NOTIFY_OFFSET)) * notify_multiplier as usize;
        let doorbell = notify.part(offset, 2).ok_or(Failure::Device("its doorbell is nowhere"))?;
        common.write(QUEUE_ENABLE, 1_u16);
        common.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        Ok(Self { page, iova, doorbell, count: 0 })
    }

    /// Sends `request`, and returns the first dword of the device's response.
    pub fn ask(&mut self, request: &[u32]) -> Result<u32, Failure> {
        for (at, &word) in (REQUEST..).step_by(4).zip(request) {
            self.page.write(at, word);
        }
        self.page.write(RESPONSE, 0_u32);
        self.describe(0, REQUEST, 4 * request.len() as u32, HAS_NEXT);
        self.describe(1, RESPONSE, (PAGE_BYTES - RESPONSE) as u32, DEVICE_WRITES);
        // Flags and index come before the ring.
        self.page.write(AVAILABLE + 4 + 2 * usize::from(self.count % ENTRIES), 0_u16);
        fence(SeqCst);
        self.count = self.count.wrapping_add(1);
        self.page.write(AVAILABLE + 2, self.count);
        fence(SeqCst);
        self.doorbell.write(0, 0_u16);
        let deadline_ns = runtime::now_ns() + PATIENCE_NS;
        while self.page.read::<u16>(USED + 2) != self.count {
            if !DISPLAY.await_interrupt(INTERRUPT.into(), deadline_ns)? {
                return Err(Failure::Device("it does not answer"));
            }
        }
        fence(SeqCst);
        Ok(self.page.read(RESPONSE))
    }

    fn describe(&self, index: usize, place: usize, bytes: u32, flags: u16) {
        let at = DESCRIPTORS + 16 * index;
        self.page.write(at, self.iova + place as u64);
        self.page.write(at + 8, bytes);
        self.page.write(at + 12, flags);
        self.page.write(at + 14, index as u16 + 1);
    }
}

/// Where the device has its registers.
struct Structures {
    common: Window,
    notify: Window,
    notify_multiplier: u32,
}

impl Structures {
    /// Follows the list of capabilities in configuration space.
    fn find() -> Result<Self, Failure> {
        const POINTER: u16 = 0x34;
        const VENDOR_SPECIFIC: u32 = 9;
        /// There is no room for more.
        const CAPABILITIES_MAX: usize = 48;
        let (mut common, mut notify) = (None, None);
        let mut at = DISPLAY.config_read(POINTER)? as u16 & 0xfc;
        for _ in 0..CAPABILITIES_MAX {
            if at == 0 {
                break;
            }
            let head = DISPLAY.config_read(at)?;
            let place = || -> Result<Place, Failure> {
                Ok(Place {
                    bar: DISPLAY.config_read(at + 4)? as u8,
                    offset: DISPLAY.config_read(at + 8)?,
                    bytes: DISPLAY.config_read(at + 12)?,
                })
            };
            match (head & 0xff, head >> 24) {
                (VENDOR_SPECIFIC, COMMON) if common.is_none() => common = Some(place()?),
                (VENDOR_SPECIFIC, NOTIFY) if notify.is_none() => {
                    notify = Some((place()?, DISPLAY.config_read(at + 16)?));
                }
                _ => {}
            }
            at = (head >> 8) as u16 & 0xfc;
        }
        let (Some(common), Some((notify, notify_multiplier))) = (common, notify) else {
            return Err(Failure::Device("it is no modern virtio device"));
        };
        if common.bar != notify.bar {
            return Err(Failure::Device("its registers are in more than one BAR"));
        }
        let bytes = DISPLAY.bar_bytes(common.bar)? as usize;
        // SAFETY: a BAR stays mapped, and it is mapped once.
        let registers = unsafe { Window::new(DISPLAY.map_bar(common.bar)?, bytes) };
        let part = |place: Place| registers.part(place.offset as usize, place.bytes as usize);
        let parts = part(common).filter(|common| common.bytes() >= COMMON_BYTES).zip(part(notify));
        let (common, notify) = parts.ok_or(Failure::Device("its registers are outside of their BAR"))?;
        Ok(Self { common, notify, notify_multiplier })
    }
}

/// Where one structure is.
struct Place {
    bar: u8,
    offset: u32,
    bytes: u32,
}
