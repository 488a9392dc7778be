//! Bars as SVG, by hand: one file, no script, readable on a light and on a dark page.

use std::fmt::Write as _;

use super::stats::number;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 210.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 13.0;
const GAP: f64 = 12.0;
const HEAD: f64 = 58.0;
const COLOURS: [&str; 6] = ["#3b7dd8", "#e08a2c", "#3da35d", "#b0529c", "#8a8f99", "#c8423f"];

/// One picture: for each group a bar of each series.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Name of the file, without ending.
    pub file: &'static str,
    /// First line.
    pub title: String,
    /// What the numbers are.
    pub unit: &'static str,
    /// Each step of the scale is ten times the one before.
    pub logarithmic: bool,
    /// Names of the bars within a group.
    pub series: Vec<String>,
    /// A name, and one value for each series where there is one.
    pub groups: Vec<(String, Vec<Option<f64>>)>,
}

impl Chart {
    /// The picture.
    pub fn svg(&self) -> String {
        let rows: usize = self.groups.iter().map(|(_, values)| values.len()).sum();
        let (rows, groups) = (count(rows), count(self.groups.len()));
        let height = HEAD + rows * BAR + groups * GAP + 12.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"8\" y=\"18\" font-size=\"14\" fill=\"#222\">{} ({}{})</text>\n",
            escape(&self.title),
            self.unit,
            if self.logarithmic { ", logarithmic" } else { "" },
        );
        let mut x = 8.0;
        for (name, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let name = escape(name);
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"39\" fill=\"#222\">{name}</text>",
                x + 14.0
            );
            x += 26.0 + 6.5 * count(name.len());
        }
        let mut y = HEAD;
        for (name, values) in &self.groups {
            let middle = y + count(values.len()) * BAR / 2.0 + 4.0;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\" fill=\"#222\">{}</text>",
                LABELS - 8.0,
                escape(name)
            );
            for (value, colour) in values.iter().zip(COLOURS.iter().cycle()) {
                if let Some(value) = value {
                    let width = self.length(*value);
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{}\" \
                         fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"#444\">{}</text>",
                        BAR - 2.0,
                        LABELS + width + 5.0,
                        y + BAR - 3.0,
                        number(*value)
                    );
                }
                y += BAR;
            }
            y += GAP;
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Pixels of a bar. One that is nothing, or less, is a line.
    fn length(&self, value: f64) -> f64 {
        let values = || self.groups.iter().flat_map(|(_, values)| values).flatten();
        let most = values().copied().fold(f64::MIN_POSITIVE, f64::max);
        let room = WIDTH - LABELS - VALUES;
        let part = if self.logarithmic {
            // From the power of ten below the smallest, so that it still has a bar.
            let least = values().copied().filter(|value| *value > 0.0).fold(most, f64::min);
            let from = least.log10().floor();
            let span = (most.log10() - from).max(f64::MIN_POSITIVE);
            if value > 0.0 { (value.log10() - from) / span } else { 0.0 }
        } else {
            value / most
        };
        (part * room).max(1.0)
    }
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(logarithmic: bool) -> Chart {
        Chart {
            file: "test",
            title: "a < b & c".into(),
            unit: "ns",
            logarithmic,
            series: vec!["1 port".into(), "10 ports".into()],
            groups: vec![
                ("tcx".into(), vec![Some(20.0), Some(-1.0)]),
                ("iptables".into(), vec![Some(2000.0), None]),
            ],
        }
    }

    #[test]
    fn the_longest_bar_fills_the_room_and_nothing_is_wider() {
        for logarithmic in [false, true] {
            let chart = chart(logarithmic);
            let room = WIDTH - LABELS - VALUES;
            assert!((chart.length(2000.0) - room).abs() < 1e-6);
            assert!(chart.length(20.0) < room);
            assert_eq!(chart.length(-1.0), 1.0);
        }
        assert!(chart(true).length(20.0) > chart(false).length(20.0));
    }

    #[test]
    fn text_cannot_break_the_picture() {
        let svg = chart(false).svg();
        assert!(svg.contains("a &lt; b &amp; c"));
        assert!(!svg.contains("a < b"));
        assert_eq!(svg.matches("<svg").count(), 1);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_chart_without_values_is_still_a_picture() {
        let empty = Chart { groups: Vec::new(), ..chart(true) };
        assert!(empty.svg().contains("</svg>"));
    }
}
