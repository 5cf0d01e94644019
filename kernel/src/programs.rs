//! The programs that come with the kernel. `xtask` builds them, and they are part of the image (see `build.rs`): there
//! is no boot without them, and none with those of another build. They are trusted no more for it.

/// A program's file.
pub struct File {
    /// What it is called.
    pub name: &'static str,
    /// Its bytes, of which nothing is believed.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// The program called `name`.
pub fn find(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}
