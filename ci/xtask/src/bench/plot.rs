// SPDX-License-Identifier: Apache-2.0
//! Line charts as SVG, readable on light and dark ground.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::workspace;

/// Where charts go: target/bench, and docs/img where they are to be published.
pub(super) fn places(publish: bool) -> anyhow::Result<Vec<PathBuf>> {
    let published = publish.then(|| workspace::root().map(|root| root.join("docs/img"))).transpose()?;
    Ok(std::iter::once(workspace::target()?.join("bench")).chain(published).collect())
}

/// A chart of some lines over the same values.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
    /// Values of all lines; each has the same distance to the next.
    pub(super) x: Vec<f64>,
    /// Name and one value for each of `x`.
    pub(super) lines: Vec<(&'a str, Vec<f64>)>,
}

impl Chart<'_> {
    /// Writes it to all places, whole or not at all.
    pub(super) fn save(&self, file: &str, places: &[PathBuf]) -> anyhow::Result<()> {
        for place in places {
            std::fs::create_dir_all(place).context("directory of plots")?;
            let (path, temporary) = (place.join(file), place.join(format!("{file}.new")));
            std::fs::write(&temporary, self.svg()).and_then(|()| std::fs::rename(&temporary, &path)).context("plot")?;
        }
        Ok(())
    }

    /// The chart as a document of its own.
    pub(super) fn svg(&self) -> String {
        let top = ceiling(self.lines.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"13\" fill=\"#777\">\n<title>{}</title>\n",
            escaped(self.title)
        );
        text(&mut svg, WIDTH / 2.0, 20.0, "middle", self.title);
        text(&mut svg, LEFT, 38.0, "middle", self.y_label);
        text(&mut svg, WIDTH / 2.0, HEIGHT - 8.0, "middle", self.x_label);
        for step in 0..=STEPS {
            let value = top * f64::from(step) / f64::from(STEPS);
            let y = height_of(value, top);
            line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y));
            text(&mut svg, LEFT - 8.0, y + 4.0, "end", &number(value));
        }
        for (place, value) in self.x.iter().enumerate() {
            text(&mut svg, self.place_of(place), HEIGHT - BOTTOM + 20.0, "middle", &number(*value));
        }
        for ((name, values), (colour, row)) in self.lines.iter().zip(COLOURS.iter().zip(0_u32..)) {
            self.draw(&mut svg, values, top, colour);
            let y = TOP + 8.0 + 18.0 * f64::from(row);
            let _ =
                writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>", WIDTH - RIGHT + 12.0);
            text(&mut svg, WIDTH - RIGHT + 22.0, y + 4.0, "start", name);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, values: &[f64], top: f64, colour: &str) {
        let points = || values.iter().enumerate().map(|(place, value)| (self.place_of(place), height_of(*value, top)));
        let path: Vec<String> = points().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in points() {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "some dozen values at most")]
    fn place_of(&self, place: usize) -> f64 {
        let gaps = self.x.len().saturating_sub(1).max(1) as f64;
        LEFT + 12.0 + (WIDTH - LEFT - RIGHT - 24.0) * place as f64 / gaps
    }
}

fn height_of(value: f64, top: f64) -> f64 {
    HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|round| *round >= value).unwrap_or(10.0 * power)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(text));
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#888\" stroke-opacity=\"0.4\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
const STEPS: u32 = 5;
const COLOURS: [&str; 4] = ["#0a7", "#c60", "#38c", "#a4a"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_values_stand_higher_and_nothing_leaves_the_chart() {
        let lines = vec![("a", vec![0.0, 150.0]), ("b<", vec![200.0, 7.5])];
        let chart = Chart { title: "t", x_label: "x", y_label: "y", x: vec![1.0, 16.0], lines };
        let svg = chart.svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("b&lt;"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("points=\"82.0,310.0 588.0,115.0\""), "{svg}");
        assert!(svg.contains("points=\"82.0,50.0 588.0,300.2\""), "{svg}");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.0, 1.0, 1.1, 2.0, 3.0, 7.0, 99.0].map(ceiling), [1.0, 1.0, 2.0, 2.0, 5.0, 10.0, 100.0]);
    }
}
