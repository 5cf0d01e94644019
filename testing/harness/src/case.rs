//! What a test is, and how it fails.

use alloc::string::String;
use core::fmt;

use crate::Context;

/// A test that says nothing else must be over by then.
pub const DEFAULT_DEADLINE_MS: u64 = 10_000;

/// A registered test. Made by [`test!`](crate::test!).
#[derive(Debug)]
pub struct TestCase {
    /// Path of the function, as the compiler knows it.
    pub path: &'static str,
    /// How long it may take.
    pub deadline_ms: u64,
    /// What the machine lacks that the test needs, if anything: then it is not run, and not counted.
    pub lacks: fn(&Context<'_>) -> Option<&'static str>,
    /// The test.
    pub run: fn(&Context<'_>) -> Result<(), Failure>,
}

impl TestCase {
    /// `suite::name`: the function and the module that it stands in.
    #[must_use]
    pub fn name(&self) -> &'static str {
        short_name(self.path)
    }
}

/// The last two parts of a path.
pub(crate) fn short_name(path: &'static str) -> &'static str {
    path.rmatch_indices("::").nth(1).map_or(path, |(at, separator)| &path[at + separator.len()..])
}

/// Why a test failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure with a reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Any error fails a test that returns it by `?`.
impl<E: core::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(alloc::format!("{error}"))
    }
}

/// Registers a test.
///
/// ```
/// harness::test! {
///     /// What it shows.
///     fn addition_works(context) {
///         harness::check_eq!(1 + 1, 2);
///         let _ = context.now_ns();
///     }
/// }
///
/// harness::test! {
///     deadline_ms = 30_000,
///     lacks = |_context| Some("a disk"),
///     fn reads_the_disk(_context) {}
/// }
/// ```
///
/// The body may use `?` on any error.
#[macro_export]
macro_rules! test {
    (
        $(#[$attribute:meta])*
        $(deadline_ms = $deadline_ms:expr,)?
        $(lacks = $lacks:expr,)?
        fn $name:ident($context:ident) $body:block
    ) => {
        $(#[$attribute])*
        fn $name($context: &$crate::Context<'_>) -> ::core::result::Result<(), $crate::Failure> {
            let _ = $context;
            $body
            ::core::result::Result::Ok(())
        }

        const _: () = {
            static CASE: $crate::TestCase = $crate::TestCase {
                path: ::core::concat!(::core::module_path!(), "::", ::core::stringify!($name)),
                #[allow(unused_assignments, unused_mut)]
                deadline_ms: {
                    let mut deadline_ms = $crate::DEFAULT_DEADLINE_MS;
                    $(deadline_ms = $deadline_ms;)?
                    deadline_ms
                },
                #[allow(unused_assignments, unused_mut)]
                lacks: {
                    let mut lacks: fn(&$crate::Context<'_>) -> ::core::option::Option<&'static str> = |_| None;
                    $(lacks = $lacks;)?
                    lacks
                },
                run: $name,
            };
            // The linker collects these pointers between two symbols; only a bare-metal image asks for them.
            #[used]
            #[cfg_attr(target_os = "none", unsafe(link_section = ".sluice_tests"))]
            static ENTRY: &$crate::TestCase = &CASE;
        };
    };
}

/// Fails the test unless the condition holds. Further arguments are a message in `format!`'s manner.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        $crate::check!($condition, "{}", ::core::stringify!($condition))
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return ::core::result::Result::Err($crate::failure!($($message)+));
        }
    };
}

/// Fails the test unless both sides are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => $crate::check!(
                *left == *right,
                "{} is {:?}, not {:?}",
                ::core::stringify!($left),
                left,
                right
            ),
        }
    };
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => $crate::check!(
                *left == *right,
                "{} ({:?}, not {:?})",
                $crate::failure!($($message)+),
                left,
                right
            ),
        }
    };
}

/// A [`Failure`] with its place in the source and a message in `format!`'s manner.
#[macro_export]
macro_rules! failure {
    ($($message:tt)+) => {
        $crate::Failure::at(::core::file!(), ::core::line!(), ::core::format_args!($($message)+))
    };
}

impl Failure {
    /// A failure with its place in the source. Used by [`failure!`](crate::failure!).
    #[must_use]
    pub fn at(file: &str, line: u32, message: fmt::Arguments<'_>) -> Self {
        let file = file.rsplit('/').next().unwrap_or(file);
        Self(alloc::format!("{message} ({file}:{line})"))
    }
}
