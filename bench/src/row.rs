//! One figure with its comparison, and the display of rows.

use serde_json::json;

use super::measure::{Sample, median};

const COLUMNS: usize = 11;
const HEAD: [&str; COLUMNS] = [
    "name", "value", "unit", "baseline", "ratio", "target", "met", "p50 us", "p99 us", "cpu us",
    "bare cpu",
];

/// A bound on the ratio if there is a baseline, and on the value otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the result.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    value: f64,
    unit: &'static str,
    baseline: Option<f64>,
    ratio: Option<f64>,
    target: Option<Target>,
    /// Median and 99th percentile of the latency, in microseconds.
    latency: Option<(f64, f64)>,
    /// Processor time of the server and of the bare one for each call, in microseconds.
    cpu: Option<(f64, f64)>,
}

impl Target {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(limit) => figure >= limit,
            Self::AtMost(limit) => figure <= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(limit) => format!(">= {limit}"),
            Self::AtMost(limit) => format!("<= {limit}"),
        }
    }
}

impl Row {
    /// A value without a comparison.
    pub(crate) fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self {
            name,
            value,
            unit,
            baseline: None,
            ratio: None,
            target: None,
            latency: None,
            cpu: None,
        }
    }

    /// The calls per second of rounds of (baseline, measured).
    pub(crate) fn rates(name: &'static str, rounds: &[(Sample, Sample)]) -> Self {
        let rates = rounds.iter().map(|(bare, ours)| (bare.per_second(), ours.per_second()));
        let row = Self::paired(name, "1/s", rates.collect());
        let mut row = row.latency(rounds.iter().map(|(_, ours)| ours));
        let costs =
            rounds.iter().filter_map(|(bare, ours)| Some((ours.server_us()?, bare.server_us()?)));
        let costs: Vec<(f64, f64)> = costs.collect();
        row.cpu = (!costs.is_empty()).then(|| {
            (median(costs.iter().map(|cost| cost.0)), median(costs.iter().map(|cost| cost.1)))
        });
        row
    }

    /// Rounds of (baseline, measured): medians, and the median of the rounds' ratios.
    pub(crate) fn paired(name: &'static str, unit: &'static str, rounds: Vec<(f64, f64)>) -> Self {
        let mut row = Self::new(name, median(rounds.iter().map(|round| round.1)), unit);
        row.baseline = Some(median(rounds.iter().map(|round| round.0)));
        row.ratio = Some(median(rounds.iter().map(|(bare, ours)| ours / bare)));
        row
    }

    /// The same row with a bound.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// The same row with the medians of the samples' percentiles.
    pub(crate) fn latency<'a>(mut self, samples: impl Iterator<Item = &'a Sample>) -> Self {
        let samples: Vec<&Sample> = samples.collect();
        let percentile = |percent| median(samples.iter().map(|s| s.percentile_us(percent)));
        self.latency = Some((percentile(50), percentile(99)));
        self
    }

    fn met(&self) -> Option<bool> {
        Some(self.target?.is_met(self.ratio.unwrap_or(self.value)))
    }

    fn cells(&self) -> [String; COLUMNS] {
        let shown = |figure: Option<f64>| figure.map(show).unwrap_or_default();
        let met = self.met().map_or("", |met| if met { "yes" } else { "NO" });
        [
            self.name.to_owned(),
            show(self.value),
            self.unit.to_owned(),
            shown(self.baseline),
            self.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            self.target.map(Target::text).unwrap_or_default(),
            met.to_owned(),
            shown(self.latency.map(|(p50, _)| p50)),
            shown(self.latency.map(|(_, p99)| p99)),
            shown(self.cpu.map(|(ours, _)| ours)),
            shown(self.cpu.map(|(_, bare)| bare)),
        ]
    }

    fn json(&self) -> serde_json::Value {
        let mut row = json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "target": self.target.map(Target::text),
            "met": self.met(),
        });
        if let Some((p50, p99)) = self.latency {
            row["p50_us"] = json!(p50);
            row["p99_us"] = json!(p99);
        }
        if let Some((ours, bare)) = self.cpu {
            row["cpu_us"] = json!(ours);
            row["baseline_cpu_us"] = json!(bare);
        }
        row
    }
}

/// All rows as one JSON list.
pub(crate) fn json(rows: &[Row]) -> String {
    rows.iter().map(Row::json).collect::<serde_json::Value>().to_string()
}

/// All rows as a table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; COLUMNS]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    // Figures are aligned to the right, words to the left.
    let pad = |(column, cell): (usize, &String)| match column {
        0 | 2 | 5 | 6 => format!("{cell:<width$}", width = widths[column]),
        _ => format!("{cell:>width$}", width = widths[column]),
    };
    let line = |cells: &[String; COLUMNS]| {
        let cells: Vec<String> = cells.iter().enumerate().map(pad).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn show(figure: f64) -> String {
    if figure >= 1000.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_bounds_the_ratio_and_without_a_baseline_the_value() {
        let row = Row::paired("a", "1/s", vec![(100.0, 69.0), (10.0, 7.1), (1.0, 0.9)]);
        assert_eq!(row.clone().target(Target::AtLeast(0.7)).met(), Some(true));
        assert_eq!(row.clone().target(Target::AtLeast(0.75)).met(), Some(false));
        assert_eq!(row.met(), None);
        assert_eq!(Row::new("b", 3.0, "1").target(Target::AtMost(2.0)).met(), Some(false));
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_json_an_object() {
        let rows =
            [Row::new("a", 1.0, "1/s"), Row::new("b", 2.0, "us").target(Target::AtMost(3.0))];
        assert_eq!(table(&rows).lines().count(), 3);
        let parsed: serde_json::Value = serde_json::from_str(&json(&rows)).unwrap();
        assert_eq!(parsed[1]["met"], true);
        assert_eq!(parsed[0]["target"], serde_json::Value::Null);
    }
}
