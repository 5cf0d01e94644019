//! What a scenario's machine lacks by what it is: tests that need it may be skipped there.

use crate::scenario::Scenario;

/// Whether a test may be skipped for `reason`: the scenario says so, or its machine is so.
pub fn excuses(scenario: &Scenario, reason: &str) -> bool {
    scenario.lacks.contains(&reason)
        || LACKS.iter().any(|&(words, is_lacking)| words == reason && is_lacking(scenario))
}

const NOT_REMAPPED: &str = "interrupt remapping in use";

type IsLacking = fn(&Scenario) -> bool;

/// In the words of the tests that need it, and which machines lack it.
const LACKS: &[(&str, IsLacking)] = &[
    ("devices to plug in", |scenario| scenario.devices.is_empty()),
    ("a device with virtual functions", |scenario| !has_device(scenario, "igb")),
    ("an NVMe controller with virtual functions", |scenario| {
        !scenario.qemu.iter().any(|argument| argument.contains("sriov_max_vfs"))
    }),
    ("bridges of all kinds", |scenario| !has_device(scenario, "i82801b11")),
    ("displays that are looked at", |scenario| !scenario.attended),
    ("somebody at the machine", |scenario| !scenario.attended),
    // These are the words that turn it on.
    ("iommu=debug", |scenario| !scenario.cmdline.contains("iommu=debug")),
    ("iommu=passthrough", |scenario| !scenario.cmdline.contains("iommu=passthrough")),
    ("disk=process", |scenario| !scenario.cmdline.contains("disk=process")),
    ("first-stage tables", |scenario| !scenario.iommu.is_some_and(|unit| unit.contains("x-flts"))),
    ("memory reserved for an edu device", |scenario| !scenario.reserves),
    ("interrupts that are not remapped", |scenario| !scenario.lacks.contains(&NOT_REMAPPED)),
];

/// Whether there is a device of a model whose name begins so.
fn has_device(scenario: &Scenario, model: &str) -> bool {
    scenario.qemu.iter().any(|argument| argument.starts_with(model))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::matrix;
    use crate::workspace::Workspace;

    /// All sources in `folder`.
    fn sources(folder: &Path) -> String {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let texts = entries.map(|path| match path.is_dir() {
            true => sources(&path),
            false => fs::read_to_string(path).unwrap(),
        });
        texts.collect()
    }

    #[test]
    fn tests_have_these_words() {
        let root = Workspace::locate().unwrap().root;
        let text = ["testing/suites/src", "kernel/src"].map(|folder| sources(&root.join(folder))).concat();
        let stated = matrix::all().iter().flat_map(|scenario| scenario.lacks);
        for words in LACKS.iter().map(|(words, _)| words).chain(stated).chain([&NOT_REMAPPED]) {
            assert!(text.contains(&format!("{words:?}")), "no test needs {words:?}");
        }
    }

    #[test]
    fn each_is_lacking_somewhere_and_not_everywhere() {
        for (words, is_lacking) in LACKS {
            let (lacking, having): (Vec<_>, Vec<_>) =
                matrix::all().iter().partition(|scenario| is_lacking(scenario));
            assert!(!lacking.is_empty() && !having.is_empty(), "{words}");
            assert!(lacking.iter().all(|scenario| excuses(scenario, words)), "{words}");
            let said = |scenario: &&&Scenario| scenario.lacks.contains(words);
            assert!(
                having.iter().filter(|scenario| !said(scenario)).all(|scenario| !excuses(scenario, words))
            );
        }
        assert!(!excuses(&Scenario::DEFAULT, "an edu device"));
    }
}
