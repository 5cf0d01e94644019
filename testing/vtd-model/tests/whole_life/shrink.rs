//! Finds a short list of steps that still fails.

use crate::step::Step;

/// Leaves out ever smaller pieces of `steps` for as long as `fails` stays true.
pub fn shrink(steps: &[Step], fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut kept = steps.to_vec();
    let mut piece = kept.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < kept.len() {
            let mut shorter = kept[..at].to_vec();
            shorter.extend_from_slice(&kept[(at + piece).min(kept.len())..]);
            if fails(&shorter) {
                kept = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    kept
}

#[test]
fn what_does_not_matter_is_left_out() {
    use crate::step::Kind;
    let step = |a| Step { kind: Kind::Pause, a, b: 0, c: 0 };
    let steps: Vec<Step> = (0..1000).map(step).collect();
    let fails = |steps: &[Step]| steps.contains(&step(17)) && steps.contains(&step(900));
    assert_eq!(shrink(&steps, fails), [step(17), step(900)]);
}
