//! Tests that fail, of the harness and of the checks that kernels are built with.

use super::DEFAULT;
use crate::scenario::{Expect, Scenario};
use crate::workspace::Build;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "selftest-panic",
        about: "a test that panics is charged with it, the others run on",
        cmdline: "selftest=panic",
        expect: Expect::TheseFail(&["selftest::panics"]),
        ..DEFAULT
    },
    Scenario {
        name: "selftest-hang",
        about: "a test that hangs with interrupts off",
        cmdline: "selftest=hang",
        expect: Expect::TheseFail(&["selftest::hangs"]),
        silence_s: 60,
        ..DEFAULT
    },
    Scenario {
        name: "selftest-hang-cpus-4",
        about: "a test that hangs its CPU with interrupts off: another one notices, and stops it",
        cmdline: "selftest=hang",
        cpus: "4",
        expect: Expect::TheseFail(&["selftest::hangs"]),
        last_words: &["was in thread main:"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-triple-fault",
        about: "a test that resets the machine",
        cmdline: "selftest=triple-fault",
        expect: Expect::TheseFail(&["selftest::triple_faults"]),
        ..DEFAULT
    },
    Scenario {
        name: "selftest-lock-order",
        about: "a test that takes two locks in the wrong order",
        build: Build::Checked,
        cmdline: "selftest=lock-order",
        expect: Expect::TheseFail(&["selftest::takes_locks_out_of_order"]),
        last_words: &["wanted while one of class"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-unmasked-lock",
        about: "a test that lets an interrupt come while it holds a lock that handlers take",
        build: Build::Checked,
        cmdline: "selftest=unmasked-lock",
        expect: Expect::TheseFail(&["selftest::holds_a_lock_with_interrupts_on"]),
        last_words: &["while locks were held"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-allocating-handler",
        about: "a test whose interrupt handler allocates",
        build: Build::Checked,
        cmdline: "selftest=allocating-handler",
        expect: Expect::TheseFail(&["selftest::allocates_in_an_interrupt"]),
        last_words: &["a handler must not allocate"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-logging-handler",
        about: "a test whose interrupt handler logs",
        build: Build::Checked,
        cmdline: "selftest=logging-handler",
        expect: Expect::TheseFail(&["selftest::logs_in_an_interrupt"]),
        last_words: &["a handler must not log"],
        ..DEFAULT
    },
];
