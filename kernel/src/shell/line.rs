//! One line from the keyboard.

use alloc::string::String;

use super::input;
use crate::{print, println};

const LINE_BYTES_MAX: usize = 200;

/// Reads a line, with echo. Backspace takes the last character back, Ctrl-U and Ctrl-C the whole line.
pub fn read() -> String {
    let mut line = String::with_capacity(LINE_BYTES_MAX);
    loop {
        match input::read_key() {
            b'\r' | b'\n' => {
                println!();
                return line;
            }
            0x08 | 0x7f => erase(&mut line, 1),
            0x03 | 0x15 => erase(&mut line, LINE_BYTES_MAX),
            key @ b' '..=b'~' if line.len() < LINE_BYTES_MAX => {
                line.push(key.into());
                print!("{}", char::from(key));
            }
            _ => {}
        }
    }
}

fn erase(line: &mut String, count: usize) {
    for _ in 0..count {
        if line.pop().is_none() {
            return;
        }
        print!("\x08 \x08");
    }
}
