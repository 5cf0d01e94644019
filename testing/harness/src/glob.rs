//! Name patterns: `*` is any text, `?` any one character. The host reads them with the same code.

/// Whether `pattern` matches all of `name`.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut next) = (0, 0);
    // Where to go on if what follows the last star does not fit: the star then takes one character more.
    let mut retry = None;
    while at < name.len() {
        match pattern.get(next) {
            Some(b'*') => {
                retry = Some((at, next));
                next += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[at] => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((from, star)) = retry else { return false };
                retry = Some((from + 1, star));
                at = from + 1;
                next = star + 1;
            }
        }
    }
    pattern[next..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    /// The definition, by recursion.
    fn reference(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if reference(rest, name) => true,
            (Some((b'*', _)), Some((_, shorter))) => reference(pattern, shorter),
            (Some((wanted, rest)), Some((found, shorter))) => {
                (wanted == found || *wanted == b'?') && reference(rest, shorter)
            }
            _ => false,
        }
    }

    #[test]
    fn agrees_with_the_definition_on_all_short_words() {
        let words = |alphabet: &[u8], length: u32| -> std::vec::Vec<std::string::String> {
            let mut all = std::vec![std::string::String::new()];
            for size in 1..=length {
                for mut number in 0..alphabet.len().pow(size) {
                    let mut word = std::string::String::new();
                    for _ in 0..size {
                        word.push(alphabet[number % alphabet.len()].into());
                        number /= alphabet.len();
                    }
                    all.push(word);
                }
            }
            all
        };
        let names = words(b"ab", 5);
        for pattern in words(b"ab*?", 4) {
            for name in &names {
                let expected = reference(pattern.as_bytes(), name.as_bytes());
                assert_eq!(matches(&pattern, name), expected, "{pattern:?} on {name:?}");
            }
        }
    }
}
