//! The same measurement by several ways, in one line: what each costs, and what that is beside the first.

use crate::control::Measurement;

/// A line for each measurement whose name ends in `_WAY` for each of `ways`; nothing if there is none.
pub fn table(measurements: &[Measurement], ways: &[&str]) -> String {
    let lines: Vec<Line> =
        measurements.iter().filter_map(|first| Line::begun_by(first, measurements, ways)).collect();
    let Some(width) = lines.iter().map(|line| line.name.len()).max() else { return String::new() };
    let mut text = format!("\n{:<width$}", "side by side");
    ways.iter().for_each(|way| text += &format!(" {way:>10}"));
    for way in ways.iter().skip(1) {
        text += &format!(" {:>12} {:>13}", format!("{way} adds"), format!("{way}/{}", ways[0]));
    }
    text += "  unit\n";
    for line in &lines {
        text += &line.text(width);
    }
    text
}

struct Line<'a> {
    name: &'a str,
    unit: &'a str,
    medians: Vec<u64>,
}

impl<'a> Line<'a> {
    fn begun_by(first: &'a Measurement, all: &[Measurement], ways: &[&str]) -> Option<Self> {
        let name = first.name.strip_suffix(ways.first()?)?.strip_suffix('_')?;
        let of = |way: &&str| {
            let same = |m: &&Measurement| m.unit == first.unit && m.name == format!("{name}_{way}");
            all.iter().find(same).map(|measurement| measurement.median)
        };
        let medians = ways.iter().map(of).collect::<Option<_>>()?;
        Some(Self { name, unit: &first.unit, medians })
    }

    fn text(&self, width: usize) -> String {
        let Self { name, unit, medians } = self;
        let mut text = format!("{name:<width$}");
        medians.iter().for_each(|median| text += &format!(" {median:>10}"));
        for &median in &medians[1..] {
            let added = i128::from(median) - i128::from(medians[0]);
            let share =
                (medians[0] > 0).then(|| format!("{:.1} %", 100.0 * median as f64 / medians[0] as f64));
            text += &format!(" {added:>+12} {:>13}", share.unwrap_or_else(|| "-".into()));
        }
        text + &format!("  {unit}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(name: &str, median: u64, unit: &str) -> Measurement {
        Measurement { name: name.into(), min: 0, median, max: 0, unit: unit.into() }
    }

    #[test]
    fn what_was_measured_by_all_ways_is_compared_with_the_first() {
        let text = table(
            &[
                measurement("disk::read_off", 2000, "instructions"),
                measurement("disk::read_off", 0, "doorbells/1000"),
                measurement("disk::read_strict", 2500, "instructions"),
                measurement("disk::read_strict", 70, "doorbells/1000"),
                measurement("disk::write_off", 9, "instructions"),
                measurement("map_4k", 391, "instructions"),
            ],
            &["off", "strict"],
        );
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[2], ["disk::read", "2000", "2500", "+500", "125.0", "%", "instructions"]);
        assert_eq!(lines[3], ["disk::read", "0", "70", "+70", "-", "doorbells/1000"]);
    }

    #[test]
    fn nothing_to_compare_is_no_table() {
        assert_eq!(table(&[measurement("map_4k", 391, "instructions")], &["off", "strict"]), "");
        assert_eq!(table(&[], &[]), "");
    }
}
