//! A program that shows a picture, whose number it is started with, on the display that it was given. It ends only if
//! it cannot.
//!
//! Before it draws it looks at the memory that it got: all of it has to be empty.
#![no_std]
#![no_main]

mod bochs;
mod gpu;
mod virtio;
mod window;

use core::fmt;

use display::{NOT_EMPTY, REFUSED, WRONG_DEVICE};
use runtime::{Device, abi::Error};

runtime::main!(show);

const DISPLAY: Device = Device::new(0);

/// Why nothing is shown.
enum Failure {
    /// The kernel refuses something.
    Call(Error),
    /// The display is none that is known, or does not do what it is told.
    Device(&'static str),
    /// Memory that it got is not empty, at this offset.
    NotEmpty(usize),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => write!(f, "the kernel refuses: {error:?}"),
            Self::Device(what) => f.write_str(what),
            Self::NotEmpty(offset) => write!(f, "somebody else's data at {offset:#x}"),
        }
    }
}

/// Never is what it returns if all is well.
enum Never {}

fn show(picture: u64) -> u64 {
    let picture = picture as u32;
    let result = match DISPLAY.config_read(0) {
        Ok(bochs::ID) => bochs::show(picture),
        Ok(gpu::ID) => gpu::show(picture),
        _ => return WRONG_DEVICE,
    };
    match result {
        Ok(never) => match never {},
        Err(failure) => {
            runtime::log(format_args!("{failure}"));
            if matches!(failure, Failure::NotEmpty(_)) { NOT_EMPTY } else { REFUSED }
        }
    }
}
