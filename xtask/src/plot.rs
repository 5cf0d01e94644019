//! Measurements as a picture: one bar each, a panel for each suite and unit, as SVG.

use std::fmt::Write;

use crate::control::Measurement;

const WIDTH: u32 = 860;
const MARGIN: u32 = 20;
const LABEL_WIDTH: u32 = 290;
const VALUE_WIDTH: u32 = 110;
const BAR_HEIGHT: u32 = 16;
const ROW: u32 = 22;
const TITLE: u32 = 34;

/// Measurements of one suite in one unit, drawn to one scale.
struct Panel<'a> {
    title: String,
    bars: Vec<(&'a str, u64)>,
}

/// A picture of the medians.
pub fn svg(measurements: &[Measurement]) -> String {
    let panels = panels(measurements);
    let rows: u32 = panels.iter().map(|panel| TITLE + ROW * panel.bars.len() as u32).sum();
    let height = rows + 2 * MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let mut y = MARGIN;
    for panel in &panels {
        y = draw(&mut text, panel, y);
    }
    text + "</svg>\n"
}

/// Suites in the order in which they were measured.
fn panels(measurements: &[Measurement]) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel> = Vec::new();
    for measurement in measurements {
        let (suite, name) = measurement.name.split_once("::").unwrap_or(("", &measurement.name));
        let title = format!("{suite} ({})", measurement.unit);
        let bar = (name, measurement.median);
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.bars.push(bar),
            None => panels.push(Panel { title, bars: vec![bar] }),
        }
    }
    panels
}

/// Draws a panel from `y` downwards, and returns where it ends.
fn draw(text: &mut String, panel: &Panel, mut y: u32) -> u32 {
    let longest = panel.bars.iter().map(|&(_, value)| value).max().unwrap_or(0).max(1);
    let room = u64::from(WIDTH - 2 * MARGIN - LABEL_WIDTH - VALUE_WIDTH);
    let left = MARGIN + LABEL_WIDTH;
    let title_at = y + TITLE - 14;
    let title = escaped(&panel.title);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "<text x=\"{MARGIN}\" y=\"{title_at}\" font-weight=\"bold\">{title}</text>");
    y += TITLE;
    for &(name, value) in &panel.bars {
        let length = (u128::from(value) * u128::from(room) / u128::from(longest)).max(1);
        let (line, label) = (y + BAR_HEIGHT - 4, escaped(&name.replace('_', " ")));
        let (label_at, value_at) = (left - 8, u128::from(left) + length + 6);
        let _ = writeln!(text, "<text x=\"{label_at}\" y=\"{line}\" text-anchor=\"end\">{label}</text>");
        let _ = writeln!(
            text,
            "<rect x=\"{left}\" y=\"{y}\" width=\"{length}\" height=\"{BAR_HEIGHT}\" fill=\"#3b6ea5\"/>"
        );
        let _ = writeln!(text, "<text x=\"{value_at}\" y=\"{line}\" fill=\"#444444\">{value}</text>");
        y += ROW;
    }
    y
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(name: &str, median: u64, unit: &str) -> Measurement {
        Measurement { name: name.into(), min: 0, median, max: u64::MAX, unit: unit.into() }
    }

    #[test]
    fn a_panel_for_each_suite_and_unit_with_bars_to_scale() {
        let picture = svg(&[
            measurement("mapping::map_4k", 100, "instructions"),
            measurement("disk::reads", 9, "MB/s"),
            measurement("mapping::unmap_4k", 50, "instructions"),
        ]);
        let titles: Vec<&str> = picture.lines().filter(|line| line.contains("bold")).collect();
        assert_eq!(titles.len(), 2);
        assert!(titles[0].contains(">mapping (instructions)<") && titles[1].contains(">disk (MB/s)<"));
        let widths: Vec<u32> = picture
            .lines()
            .filter(|line| line.contains("#3b6ea5"))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths, [420, 210, 420]);
        assert!(picture.contains(">map 4k<") && picture.contains(">50<"));
    }

    #[test]
    fn what_is_no_text_in_svg_is_escaped_and_large_values_fit() {
        let picture = svg(&[measurement("a<b>::c&d", u64::MAX, "x")]);
        assert!(picture.contains("a&lt;b&gt; (x)") && picture.contains("c&amp;d"));
        assert!(
            svg(&[]).ends_with("</svg>\n") && svg(&[measurement("none", 0, "x")]).contains("width=\"1\"")
        );
    }
}
