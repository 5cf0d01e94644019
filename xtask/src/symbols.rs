//! Names for the addresses in a backtrace. The kernel prints `#DEPTH 0xADDRESS`; the image knows what lies there.

use std::path::Path;
use std::process::{Command, Stdio};

/// The console lines with a name and place after each backtrace address. Without `addr2line` (part of binutils,
/// which comes with the linker) the lines stay as they are.
pub fn resolve(kernel: &Path, lines: Vec<String>) -> Vec<String> {
    let addresses: Vec<Option<u64>> = lines.iter().map(|line| frame_address(line)).collect();
    // A return address may already belong to the next line, or function; the call lies before it.
    let calls: Vec<u64> = addresses.iter().flatten().map(|address| address.saturating_sub(1)).collect();
    let Some(names) = names(kernel, &calls) else { return lines };
    let mut names = names.into_iter();
    let named = |(line, address): (String, &Option<u64>)| match address.and_then(|_| names.next()) {
        Some(name) => format!("{line}  {name}"),
        None => line,
    };
    lines.into_iter().zip(&addresses).map(named).collect()
}

/// The address in a line of a backtrace: `  #3 0xffffffff80012345`.
fn frame_address(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    let depth = words.next()?.strip_prefix('#')?;
    depth.parse::<u32>().ok()?;
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

/// One name for each address, or none at all.
fn names(kernel: &Path, addresses: &[u64]) -> Option<Vec<String>> {
    if addresses.is_empty() {
        return None;
    }
    let mut command = Command::new("addr2line");
    command
        .args(["--functions", "--inlines", "--demangle", "--pretty-print", "--basenames", "--exe"])
        .arg(kernel);
    command.args(addresses.iter().map(|address| format!("{address:#x}"))).stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let mut names: Vec<String> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match names.last_mut() {
            // The functions that the compiler put the named one into.
            Some(name) if line.starts_with(" (inlined by)") => name.push_str(line),
            _ => names.push(line.to_string()),
        }
    }
    (names.len() == addresses.len()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_from_other_lines() {
        assert_eq!(frame_address("  #0 0xffffffff80001234"), Some(0xffff_ffff_8000_1234));
        for line in ["", "#0", "#x 0x12", "# 0x12", "rip 0x12", "#1 12", "backtrace of thread main:"] {
            assert_eq!(frame_address(line), None, "{line:?}");
        }
    }

    #[inline(never)]
    fn landmark(n: u64) -> u64 {
        std::hint::black_box(n) + 1
    }

    #[test]
    fn a_frame_gets_its_name_and_other_lines_stay() {
        // The test binary itself is an image whose symbols are known.
        let image = std::env::current_exe().unwrap();
        let symbols = Command::new("nm").arg("--demangle").arg(&image).output().unwrap();
        let symbols = String::from_utf8(symbols.stdout).unwrap();
        let symbol = symbols.lines().find(|line| line.contains("symbols::tests::landmark")).unwrap();
        let start = u64::from_str_radix(symbol.split_whitespace().next().unwrap(), 16).unwrap();
        assert_eq!(landmark(1), 2);
        let lines = vec!["backtrace:".to_string(), format!("  #0 {:#x}", start + 2), "end".to_string()];
        let resolved = resolve(&image, lines);
        assert_eq!((resolved[0].as_str(), resolved[2].as_str()), ("backtrace:", "end"));
        assert!(resolved[1].contains("landmark") && resolved[1].contains("symbols.rs"), "{resolved:?}");
    }

    #[test]
    fn an_image_that_nothing_is_known_of_leaves_the_lines_alone() {
        let lines = vec!["  #0 0x10".to_string()];
        assert_eq!(resolve(Path::new("/nonexistent/kernel"), lines.clone()), lines);
    }
}
