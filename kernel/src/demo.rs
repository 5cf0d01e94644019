//! What a person sees after the tests: a disk read through its own domain.

use drivers::block::{self, Operation, Transfer};
use iommu::PageBuffer;
use suites::Machine;

use crate::println;

/// Bytes shown of a block.
const SHOWN_BYTES: usize = 64;

/// Reads the first block of the disk and shows how it came.
pub fn run(machine: &Machine) {
    let Ok(disk) = machine.disk() else { return };
    let info = disk.info();
    let mib = info.blocks.saturating_mul(info.block_bytes.into()) >> 20;
    println!(
        "disk {}: {} blocks of {} bytes ({mib} MiB)",
        disk.dma().function(),
        info.blocks,
        info.block_bytes
    );
    let Some(buffer) = PageBuffer::zeroed(1) else { return };
    let transfer = Transfer { first: 0, blocks: 1, buffer };
    match block::transfer(&machine.host, &*disk, Operation::Read(transfer)) {
        Ok(Some(buffer)) => {
            println!("block 0, by DMA through the disk's own domain:");
            dump(&buffer[..SHOWN_BYTES]);
        }
        Ok(None) => println!("the buffer did not come back"),
        Err(error) => println!("{error}"),
    }
}

/// Prints `bytes` in hexadecimal and as text.
pub fn dump(bytes: &[u8]) {
    const LINE_BYTES: usize = 16;
    for (line, bytes) in bytes.chunks(LINE_BYTES).enumerate() {
        let mut text = alloc::string::String::new();
        let mut hex = alloc::string::String::new();
        for &byte in bytes {
            hex.push_str(&alloc::format!("{byte:02x} "));
            text.push(if byte.is_ascii_graphic() || byte == b' ' { byte.into() } else { '.' });
        }
        println!("{:06x}  {hex:48} {text}", line * LINE_BYTES);
    }
}
