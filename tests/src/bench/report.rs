//! What was measured, for people and for programs: Markdown, JSON, pictures, and a summary of the
//! targets.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::{chart::Chart, machine::Machine};

/// One promise of the project, and whether this run kept it.
#[derive(Clone, Debug)]
pub struct Target {
    /// What is promised.
    pub promise: String,
    /// What this run saw.
    pub measured: String,
    /// Whether that keeps the promise.
    pub kept: bool,
}

/// Rows under headings.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Above the table.
    pub title: String,
    /// Headings; the first column is text, the others are numbers.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// What one part of the measurement has to say.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Name in the JSON document.
    pub name: &'static str,
    /// Heading.
    pub title: String,
    /// How it was measured.
    pub method: String,
    /// For people.
    pub tables: Vec<Table>,
    /// For the eye.
    pub charts: Vec<Chart>,
    /// For programs.
    pub json: Value,
    /// What was promised about it.
    pub targets: Vec<Target>,
}

/// The whole run.
#[derive(Debug)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Whether everything was done in a hurry: shapes then, not numbers.
    pub quick: bool,
    /// What was measured.
    pub sections: Vec<Section>,
}

impl Report {
    /// Writes `bench.md`, `bench.json` and a picture for each chart.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)
            .with_context(|| format!("create the folder {}", folder.display()))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("bench.md", &self.markdown())?;
        write("bench.json", &format!("{:#}\n", self.json()))?;
        for chart in self.sections.iter().flat_map(|section| &section.charts) {
            write(&format!("{}.svg", chart.file), &chart.svg())?;
        }
        Ok(())
    }

    /// The targets, as a table for a terminal or a page.
    pub fn summary(&self) -> String {
        let rows: Vec<_> = self
            .targets()
            .map(|target| {
                let kept = if target.kept { "yes" } else { "**no**" };
                vec![target.promise.clone(), target.measured.clone(), kept.to_owned()]
            })
            .collect();
        let head = ["target", "measured", "ok"].map(str::to_owned).to_vec();
        markdown_table(&head, &rows)
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.sections.iter().flat_map(|section| &section.targets)
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let Machine { date, commit, .. } = &self.machine;
        let mut text = format!("# What counting costs\n\nMeasured {date} at commit {commit}");
        if self.quick {
            text.push_str(" **in a hurry (`--quick`): the numbers show that it works, no more**");
        }
        text.push_str(".\n\n");
        for (name, value) in self.machine.lines() {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text.push_str(
            "\nMedians over rounds; in brackets the 95 % interval of the median. Variants are \
             measured one after the other within each round, in random order, and compared with \
             each other only within a round.\n\n## Targets\n\n",
        );
        text.push_str(&self.summary());
        for section in &self.sections {
            let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.method);
            for chart in &section.charts {
                let _ = write!(text, "\n![{}]({}.svg)\n", chart.title, chart.file);
            }
            for table in &section.tables {
                let _ = write!(text, "\n**{}**\n\n", table.title);
                text.push_str(&markdown_table(&table.head, &table.rows));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let sections: Map<String, Value> = self
            .sections
            .iter()
            .map(|section| (section.name.to_owned(), section.json.clone()))
            .collect();
        let targets: Vec<_> = self
            .targets()
            .map(|target| {
                json!({
                    "promise": target.promise,
                    "measured": target.measured,
                    "kept": target.kept,
                })
            })
            .collect();
        json!({
            "machine": self.machine.json(),
            "quick": self.quick,
            "targets": targets,
            "measured": sections,
        })
    }
}

fn markdown_table(head: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let mut text = String::from("|");
        for (column, &width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            let _ = write!(text, " {cell:<width$} |");
        }
        text + "\n"
    };
    let mut text = line(head);
    text.push('|');
    for width in &widths {
        let _ = write!(text, "{}|", "-".repeat(width + 2));
    }
    text.push('\n');
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_missing_cells_are_empty() {
        let head = ["way", "ns"].map(str::to_owned);
        let rows = vec![vec!["tcx".to_owned(), "21.0".to_owned()], vec!["nft set".to_owned()]];
        let wanted =
            "| way     | ns   |\n|---------|------|\n| tcx     | 21.0 |\n| nft set |      |\n";
        assert_eq!(markdown_table(&head, &rows), wanted);
    }
}
