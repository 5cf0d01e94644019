//! The pictures that the program shows, and how it ends when it cannot.
#![no_std]
#![forbid(unsafe_code)]

/// Size of a picture.
pub const WIDTH: u32 = 640;
/// The same.
pub const HEIGHT: u32 = 480;

/// What picture `picture` has `x` pixels from the left and `y` from the top: red in bits 23:16, green in 15:8, blue in
/// 7:0. It is another one at almost every place, and in almost every picture.
#[must_use]
pub const fn pixel(picture: u32, x: u32, y: u32) -> u32 {
    (y << 16 | x).wrapping_mul(0x9e37_79b1).wrapping_mul(2 * picture + 1) >> 8
}

/// It has no display that it knows.
pub const WRONG_DEVICE: u64 = 2;
/// Something was refused, or the display does not do what it is told.
pub const REFUSED: u64 = 3;
/// It found something in memory that was to be empty.
pub const NOT_EMPTY: u64 = 4;
