//! Name patterns as the kernel's command line has them: `*` stands for any text, `?` for one character.

/// Whether all of `name` fits `pattern`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // The last `*` seen and the place in `name` up to which it has swallowed: where to go back to on a mismatch.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((star_at, swallowed)) = star else { return false };
                star = Some((star_at, swallowed + 1));
                p = star_at + 1;
                n = swallowed + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "dma::map"),
            ("dma::*", "dma::map"),
            ("*::map", "dma::map"),
            ("a*b*c", "a-b-b-c"),
            ("aw-??", "aw-39"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "x"), ("dma", "dma::map"), ("a*b", "a-b-c"), ("aw-?", "aw-39"), ("?", "")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
