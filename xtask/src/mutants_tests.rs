//! Mutations of a workspace made for the purpose: one caught, one that survives, one that does not apply.

use super::*;
use crate::workspace::succeed;

const LIBRARY: &str = "pub fn double(n: u32) -> u32 {\n    n * 2\n}\n\npub fn unseen() -> u32 {\n    7\n}\n\n\
                       #[test]\nfn doubles() {\n    assert_eq!(double(4), 8);\n}\n";

/// A patch that turns the line `from` of `library` into `to`.
fn patch_of(library: &str, from: &str, to: &str) -> String {
    let count = library.lines().count();
    let mut text = format!(
        "What it breaks, in a sentence.\nTest: --lib\n\n--- a/src/lib.rs\n+++ b/src/lib.rs\n@@ -1,{count} +1,{count} @@\n"
    );
    for line in library.lines() {
        text += &if line == from { format!("-{from}\n+{to}\n") } else { format!(" {line}\n") };
    }
    text
}

fn patch(from: &str, to: &str) -> String {
    patch_of(LIBRARY, from, to)
}

/// A crate in a repository of its own, whose mutations are these.
fn tree(name: &str, patches: &[(&str, String)]) -> Workspace {
    let mut workspace = Workspace::locate().unwrap();
    let root = workspace.scratch("unit-tests").unwrap().join(name);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("testing/mutations")).unwrap();
    fs::create_dir_all(root.join("src")).unwrap();
    fs::write(root.join(".gitignore"), "/target\n").unwrap();
    fs::write(root.join("Cargo.toml"), "[package]\nname = \"victim\"\nedition = \"2024\"\n[workspace]\n")
        .unwrap();
    fs::write(root.join("src/lib.rs"), LIBRARY).unwrap();
    for (name, text) in patches {
        fs::write(root.join("testing/mutations").join(format!("{name}.patch")), text).unwrap();
    }
    succeed(Command::new("git").args(["init", "--quiet"]).current_dir(&root)).unwrap();
    workspace.target = root.join("target");
    workspace.root = root;
    workspace
}

fn verdicts(workspace: &Workspace) -> Vec<Result<String, String>> {
    let copy = Copy::make(workspace, &workspace.scratch("mutants").unwrap()).unwrap();
    let mutations = load(&workspace.root.join("testing/mutations")).unwrap();
    mutations.iter().map(|mutation| copy.try_mutation(mutation).unwrap()).collect()
}

#[test]
fn a_mutation_is_caught_by_name_or_reported_as_surviving() {
    let workspace = tree(
        "mutants",
        &[
            ("1-caught", patch("    n * 2", "    n * 3")),
            ("2-survives", patch("    7", "    8")),
            ("3-does-not-apply", patch_of(&LIBRARY.replace("n * 2", "n * 5"), "    n * 5", "    n * 3")),
            ("4-does-not-build", patch("    n * 2", "    n * true")),
            ("5-caught-too", patch("    n * 2", "    n * 4")),
        ],
    );
    let verdicts = verdicts(&workspace);
    assert_eq!(verdicts[0], Ok("doubles".to_string()));
    assert_eq!(verdicts[1], Err("1 tests pass in spite of it".to_string()));
    assert!(verdicts[2].as_ref().is_err_and(|reason| reason.contains("does not apply")), "{:?}", verdicts[2]);
    assert!(verdicts[3].as_ref().is_err_and(|reason| reason.contains("does not build")), "{:?}", verdicts[3]);
    // The copy was whole again after each: the last one is judged on its own.
    assert_eq!(verdicts[4], Ok("doubles".to_string()));
    assert!(!run(&workspace, "*").unwrap());
    assert_eq!(fs::read_to_string(workspace.root.join("src/lib.rs")).unwrap(), LIBRARY);
    fs::remove_dir_all(&workspace.root).unwrap();
}

#[test]
fn all_caught_is_good_and_none_at_all_is_an_error() {
    let caught = tree("mutants-good", &[("caught", patch("    n * 2", "    n + 2"))]);
    assert!(run(&caught, "*").unwrap() && run(&caught, "cau*").unwrap());
    assert!(run(&caught, "another").is_err());
    // Tests that fail without the mutation show nothing.
    fs::write(caught.root.join("src/lib.rs"), LIBRARY.replace("double(4), 8", "double(4), 9")).unwrap();
    assert!(!run(&caught, "*").unwrap());
    let none = tree("mutants-none", &[]);
    assert!(run(&none, "*").is_err());
    for workspace in [caught, none] {
        fs::remove_dir_all(&workspace.root).unwrap();
    }
}

#[test]
fn the_test_line_stands_in_the_header() {
    assert_eq!(
        test_line("Text\nTest: -p mm --lib table\n--- a/x\n").unwrap(),
        ["-p", "mm", "--lib", "table"]
    );
    assert_eq!(test_line("Test: cargo test -p mm\n").unwrap(), ["-p", "mm"]);
    assert_eq!(test_line("--- a/x\n+++ b/x\n+Test: -p mm\nTest: -p mm\n"), None);
    assert_eq!(test_line("Test:  \n"), None);
}

#[test]
fn results_are_read_from_the_output() {
    let output = "test a ... ok\ntest b ... FAILED\ntest c ... FAILED\n";
    assert_eq!(read_results(output, false), Tests::Failed(vec!["b".into(), "c".into()]));
    assert_eq!(read_results("test a ... ok\n", true), Tests::Passed(1));
    assert_eq!(read_results("test a ... ok\n", false), Tests::Failed(vec!["a test binary that died".into()]));
}

/// What is around a mutation changes with other work: then it has to be made anew.
#[test]
fn every_mutation_of_the_workspace_applies() {
    let workspace = Workspace::locate().unwrap();
    let mutations = load(&workspace.root.join("testing/mutations")).unwrap();
    assert!(mutations.len() > 300, "{} patches", mutations.len());
    let does_not_apply = |mutation: &&Mutation| {
        let patch = workspace.root.join(&mutation.patch);
        let mut check = Command::new("git");
        check.args(["apply", "--check"]).arg(patch).current_dir(&workspace.root);
        !check.output().unwrap().status.success()
    };
    let stale: Vec<&str> =
        mutations.iter().filter(does_not_apply).map(|mutation| mutation.name.as_str()).collect();
    assert!(stale.is_empty(), "{stale:?}");
}
