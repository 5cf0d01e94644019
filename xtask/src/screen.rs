//! What a display shows: QEMU's dump of its screen, compared with what the program for displays has to draw
//! (`kernel/user/display`), which is said here anew.

use anyhow::{Context, Result, ensure};

/// Size of a picture.
const WIDTH: usize = 640;
const HEIGHT: usize = 480;
/// The picture that stands for none of them.
pub const NOTHING: u32 = 0;
/// The pictures that there are.
const PICTURES: std::ops::RangeInclusive<u32> = 1..=4;
/// One pixel in so many may be as in a picture by chance.
const CHANCE: usize = 100;

/// Red, green and blue of a pixel of a picture: the upper 24 bits of its place, as a number, times a number that is the
/// picture's.
fn pixel(picture: u32, x: usize, y: usize) -> [u8; 3] {
    let place = (y * 65536 + x) as u64;
    let scrambled = place * 2_654_435_761 % (1 << 32) * u64::from(2 * picture + 1) % (1 << 32);
    [(scrambled >> 24) as u8, (scrambled >> 16) as u8, (scrambled >> 8) as u8]
}

/// Whether a dump shows picture `picture` and nothing else, or, of [`NOTHING`], nothing of any.
pub fn verify(dump: &[u8], picture: u32) -> Result<()> {
    let screen = Screen::parse(dump)?;
    if picture != NOTHING {
        let size = (screen.width, screen.height);
        ensure!(size == (WIDTH, HEIGHT), "the screen has {} x {} pixels", size.0, size.1);
        let equal = screen.pixels_of(picture);
        let all = WIDTH * HEIGHT;
        ensure!(equal == all, "{} of {all} pixels are not those of picture {picture}", all - equal);
        return Ok(());
    }
    for other in PICTURES {
        let equal = screen.pixels_of(other);
        ensure!(equal < screen.width * screen.height / CHANCE, "{equal} pixels are those of picture {other}");
    }
    Ok(())
}

/// A dump: a portable pixmap with one byte a colour.
struct Screen<'a> {
    width: usize,
    height: usize,
    pixels: &'a [u8],
}

impl<'a> Screen<'a> {
    fn parse(dump: &'a [u8]) -> Result<Self> {
        let mut rest = dump;
        let mut word = || -> Result<&'a str> {
            let end = rest.iter().position(u8::is_ascii_whitespace).context("the dump is cut off")?;
            let word = std::str::from_utf8(&rest[..end])?;
            rest = &rest[end + 1..];
            Ok(word)
        };
        let format = word()?;
        let (width, height): (usize, usize) = (word()?.parse()?, word()?.parse()?);
        let most = word()?;
        ensure!(format == "P6" && most == "255", "the dump is a {format} with colours up to {most}");
        let bytes = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        ensure!(Some(rest.len()) == bytes, "{} bytes for {width} x {height} pixels", rest.len());
        Ok(Self { width, height, pixels: rest })
    }

    /// How many pixels are as in a picture.
    fn pixels_of(&self, picture: u32) -> usize {
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        let found = self.pixels.chunks_exact(3).zip(places);
        found.filter(|(found, (x, y))| **found == pixel(picture, *x, *y)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Vec<u8> {
        let mut dump = format!("P6\n{width} {height}\n255\n").into_bytes();
        for y in 0..height {
            (0..width).for_each(|x| dump.extend(pixel(x, y)));
        }
        dump
    }

    #[test]
    fn a_picture_is_known_by_each_of_its_pixels() {
        let good = dump(WIDTH, HEIGHT, |x, y| pixel(2, x, y));
        verify(&good, 2).unwrap();
        assert!(verify(&good, 1).is_err() && verify(&good, NOTHING).is_err());
        let mut flawed = good.clone();
        *flawed.last_mut().unwrap() ^= 1;
        let problem = verify(&flawed, 2).unwrap_err().to_string();
        assert_eq!(problem, "1 of 307200 pixels are not those of picture 2");
        let shifted = dump(WIDTH, HEIGHT, |x, y| pixel(2, x + 1, y));
        assert!(verify(&shifted, 2).is_err());
        assert!(verify(&dump(WIDTH, HEIGHT - 1, |x, y| pixel(2, x, y)), 2).is_err());
    }

    #[test]
    fn nothing_is_less_than_a_hundredth_of_any_picture() {
        verify(&dump(1280, 800, |_, _| [0; 3]), NOTHING).unwrap();
        let rest = |x, y| if y < 10 { pixel(3, x, y) } else { [0; 3] };
        assert!(verify(&dump(WIDTH, HEIGHT, rest), NOTHING).is_err());
    }

    #[test]
    fn what_is_no_dump_is_an_error() {
        let good = dump(4, 2, |_, _| [9; 3]);
        assert!(Screen::parse(&good).is_ok());
        for bad in [&b""[..], b"P6\n4 2\n", b"P5\n4 2\n255\n", b"P6\n4 x\n255\n", &good[..good.len() - 1]] {
            assert!(Screen::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
