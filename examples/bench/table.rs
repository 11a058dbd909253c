//! Medians with their spread, as rows of a Markdown table.

use std::fmt::Write as _;
use std::io::Write as _;

/// Figures of one kind from several rounds.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The median, with the least and the greatest in brackets.
    pub fn shown(&self, decimals: usize) -> String {
        let (least, most) = (self.0.first().copied().unwrap_or(0.0), self.0.last().copied().unwrap_or(0.0));
        format!("{:.decimals$} ({least:.decimals$}–{most:.decimals$})", self.median())
    }
}

/// Tables whose rows are also printed as they are found.
#[derive(Default)]
pub struct Page(String);

impl Page {
    pub fn head(&mut self, title: &str, columns: &[&str]) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "\n### {title}\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        say(title);
    }

    pub fn row(&mut self, cells: &[String]) {
        let _ = writeln!(self.0, "| {} |", cells.join(" | "));
        say(&format!("  {}", cells.join("  ")));
    }

    /// Bars, one for each name, as Mermaid draws them.
    pub fn bars(&mut self, what: &str, bars: &[(&str, f64)]) {
        let names: Vec<String> = bars.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let heights: Vec<String> = bars.iter().map(|(_, height)| format!("{height:.1}")).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            self.0,
            "\n```mermaid\nxychart-beta\n    x-axis [{}]\n    y-axis \"{what}\" 0 --> {:.1}\n    bar [{}]\n```\n",
            names.join(", "),
            bars.iter().map(|(_, height)| height * 1.1).fold(0.0, f64::max),
            heights.join(", "),
        );
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Only a message: a closed standard error changes nothing.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
