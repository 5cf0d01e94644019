//! Comments, and prose in Markdown, end at column 120: `rustfmt` looks at neither.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

const COLUMNS: usize = 120;

/// The numbers of lines that are too long. Code, tables and what has no space to be broken at may be.
fn too_long(text: &str, is_source: bool) -> Vec<usize> {
    let mut numbers = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(prose) = (if is_source { comment(line) } else { Some(line.trim()) }) else {
            in_code = false;
            continue;
        };
        if prose.starts_with("```") {
            in_code = !in_code;
        } else if !in_code && !prose.starts_with('|') && prose.contains(' ') && line.chars().count() > COLUMNS
        {
            numbers.push(number);
        }
    }
    numbers
}

/// What a line says that is a comment and nothing else.
fn comment(line: &str) -> Option<&str> {
    Some(line.trim().strip_prefix("//")?.trim_start_matches(['/', '!']).trim())
}

/// All sources and Markdown files below `folder`, but for what was built or fetched.
fn texts(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(texts(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_comment_and_no_prose_is_wider_than_the_rest() {
    let root = Workspace::locate().unwrap().root;
    let files = texts(&root);
    assert!(files.contains(&root.join("README.md")) && files.contains(&root.join("iommu/src/lib.rs")));
    let lines: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let numbers = too_long(&text, file.extension().unwrap() == "rs");
            numbers.into_iter().map(move |number| format!("{}:{number}", file.display()))
        })
        .collect();
    assert!(lines.is_empty(), "wider than {COLUMNS} columns:\n{}", lines.join("\n"));
}

#[test]
fn prose_and_comments_are_held_to_it_and_code_and_tables_are_not() {
    let wide = "wide ".repeat(COLUMNS / 5 + 1);
    assert_eq!(too_long(&format!("short\n{wide}\n"), false), [2]);
    assert_eq!(too_long(&format!("```\n{wide}\n```\n{wide}\n"), false), [4]);
    assert!(too_long(&format!("| {wide} |\n{}\n", "x".repeat(COLUMNS + 1)), false).is_empty());
    assert_eq!(too_long(&format!("{wide}\n    // {wide}\n//! {wide}\n"), true), [2, 3]);
    assert_eq!(too_long(&format!("/// ```\n/// {wide}\n/// ```\nfn f() {{}}\n/// {wide}\n"), true), [5]);
    let umlauts = "ü ".repeat(COLUMNS / 2);
    assert!(too_long(&umlauts, false).is_empty(), "columns are not bytes");
}
