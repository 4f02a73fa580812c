// SPDX-License-Identifier: Apache-2.0
//! Measures what `cargo xtask bench measure` reports and prints it as one JSON document:
//! `{figures: [{name, value, unit, against, ratio, goal, holds}], image: {..}}`.
//!
//! All in one process and on one thread, in processor time, which is the time that it takes on an idle machine. The
//! works take turns, round after round, so that a slow moment of the machine hits each of them, the limits included;
//! each figure is the median of its rounds.

mod image;
mod work;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};

use crate::{image::Image, work::Works};

#[derive(Debug, Parser)]
struct Arguments {
    /// Directory of a built image (firmware.fd, vmlinuz, initrd, cmdline). Without it: made-up files of an image's size.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Rounds; the figures are medians.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=1000))]
    rounds: u16,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let image = match &arguments.image {
        Some(directory) => Image::read(directory)?,
        None => Image::made_up(),
    };
    let works = Works::new(image)?;
    let mut seconds: Vec<Vec<f64>> = works.list().iter().map(|_| Vec::new()).collect();
    for round in 0..=arguments.rounds {
        for (work, seconds) in works.list().iter().zip(&mut seconds) {
            let start = processor_seconds();
            (work.run)(&works).with_context(|| work.name)?;
            // The first round only warms up.
            if round > 0 {
                seconds.push(processor_seconds() - start);
            }
        }
    }
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    let figures: Vec<Value> = works.figures(&medians)?.into_iter().map(Figure::document).collect();
    println!("{}", json!({ "figures": figures, "image": works.image.document(), "rounds": arguments.rounds }));
    Ok(())
}

/// One line of the result.
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    against: String,
    /// Value against what it is compared with; a goal is an upper bound of it.
    ratio: Option<f64>,
    goal: Option<f64>,
}

impl Figure {
    fn document(self) -> Value {
        let holds = self.ratio.zip(self.goal).map(|(ratio, goal)| ratio <= goal);
        json!({
            "name": self.name, "value": self.value, "unit": self.unit, "against": self.against,
            "ratio": self.ratio, "goal": self.goal, "holds": holds,
        })
    }
}

/// Processor time of this thread so far.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_gives_every_figure_and_a_missed_goal_is_shown() {
        let works = Works::new(Image::made_up_of(8192)).unwrap();
        for work in works.list() {
            (work.run)(&works).unwrap();
        }
        let fast = works.figures(&vec![1e-9; works.list().len()]).unwrap();
        let slow = works.figures(&vec![60.0; works.list().len()]).unwrap();
        let held = |figures: Vec<Figure>| {
            figures
                .into_iter()
                .filter(|f| f.goal.is_some() && f.against.contains("goal"))
                .map(|f| f.document()["holds"].clone())
        };
        assert!(held(fast).all(|holds| holds == true));
        assert!(held(slow).all(|holds| holds == false));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }
}
