//! A display that fetches its picture by DMA, as QEMU's `virtio-gpu-pci`. The picture lies in pieces of memory, which
//! the device finds at addresses far apart.

use display::{HEIGHT, WIDTH, pixel};
use runtime::abi::DeviceAccess;

use super::{DISPLAY, Failure, Never, virtio::Queue, window::Window};

/// Device and vendor.
pub const ID: u32 = 0x1050_1af4;

/// Commands of the control queue, and the response of one that was carried out.
const CREATE_2D: u32 = 0x101;
const SET_SCANOUT: u32 = 0x103;
const FLUSH: u32 = 0x104;
const TRANSFER_TO_HOST_2D: u32 = 0x105;
const ATTACH_BACKING: u32 = 0x106;
const OK: u32 = 0x1100;

/// Blue in the lowest byte, and nothing in the highest.
const FORMAT: u32 = 2;
/// The number of the one resource, and of the one screen.
const RESOURCE: u32 = 1;
const SCREEN: u32 = 0;

/// How long a piece of the picture is, and how many it takes.
const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = (4 * WIDTH as usize * HEIGHT as usize).div_ceil(PIECE_BYTES);

/// Where the device finds the queue.
const QUEUE: u64 = 0x7_7770_0000;

/// Where it finds a piece: each below the one before.
const fn iova_of(piece: usize) -> u64 {
    0x12_0000_0000 - (piece as u64) * 0x5000_0000
}

pub fn show(picture: u32) -> Result<Never, Failure> {
    let mut gpu = Gpu { queue: Queue::open(QUEUE)? };
    let pieces = draw(picture)?;
    gpu.send(CREATE_2D, &[RESOURCE, FORMAT, WIDTH, HEIGHT])?;
    let mut backing = [0; 2 + 4 * PIECES];
    backing[..2].copy_from_slice(&[RESOURCE, PIECES as u32]);
    for (iova, entry) in pieces.into_iter().zip(backing[2..].chunks_exact_mut(4)) {
        entry.copy_from_slice(&[iova as u32, (iova >> 32) as u32, PIECE_BYTES as u32, 0]);
    }
    gpu.send(ATTACH_BACKING, &backing)?;
    gpu.send(SET_SCANOUT, &[0, 0, WIDTH, HEIGHT, SCREEN, RESOURCE])?;
    runtime::log(format_args!("picture {picture} is fetched for ever"));
    loop {
        gpu.send(TRANSFER_TO_HOST_2D, &[0, 0, WIDTH, HEIGHT, 0, 0, RESOURCE, 0])?;
        gpu.send(FLUSH, &[0, 0, WIDTH, HEIGHT, RESOURCE, 0])?;
    }
}

/// Draws into new memory, and shares it. Where the device finds the pieces.
fn draw(picture: u32) -> Result<[u64; PIECES], Failure> {
    let pixels = PIECE_BYTES / 4;
    let mut found = [0; PIECES];
    for (piece, found) in found.iter_mut().enumerate() {
        let start = runtime::map_memory(PIECE_BYTES)?;
        // SAFETY: it is never given back, and accessed by the window alone.
        let memory = unsafe { Window::new(start, PIECE_BYTES) };
        memory.must_be_empty()?;
        for at in 0..pixels {
            let place = (piece * pixels + at) as u32;
            memory.write(4 * at, pixel(picture, place % WIDTH, place / WIDTH));
        }
        // SAFETY: as above.
        *found = unsafe { DISPLAY.share(start, iova_of(piece), DeviceAccess::Read) }?;
    }
    Ok(found)
}

struct Gpu {
    queue: Queue,
}

impl Gpu {
    /// Has `command` carried out.
    fn send(&mut self, command: u32, arguments: &[u32]) -> Result<(), Failure> {
        /// Command, flags, fence (2), context, ring.
        const HEADER: usize = 6;
        let mut request = [0; HEADER + 2 + 4 * PIECES];
        request[0] = command;
        request[HEADER..][..arguments.len()].copy_from_slice(arguments);
        match self.queue.ask(&request[..HEADER + arguments.len()])? {
            OK => Ok(()),
            _ => Err(Failure::Device("it does not carry a command out")),
        }
    }
}
