// SPDX-License-Identifier: Apache-2.0
//! The demo's figures.

use anyhow::Context as _;
use serde_json::Value;

use super::{Figure, Outcome};
use crate::process;

pub(super) fn run() -> anyhow::Result<Outcome> {
    let mut demo = process::command(std::env::current_exe().context("this program")?);
    let document = process::json("demo", demo.args(["demo", "--json"]))?;
    Ok(Outcome { figures: figures(&document)?, details: serde_json::Map::new() })
}

fn figures(document: &Value) -> anyhow::Result<Vec<Figure>> {
    let number = |pointer: &str| {
        document.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("demo: no {pointer}"))
    };
    let (run, parts) = (number("/milliseconds")?, number("/parts_milliseconds")?.max(1.0));
    let mut figures = vec![
        Figure {
            against: "sum of its parts".to_owned(),
            ratio: Some(run / parts),
            goal: Some(1.3),
            ..Figure::plain("warm run", run / 1000.0, "s")
        },
        Figure::limit("kernel and initrd", number("/image/kernel_and_initrd_bytes")? / MIB, "MiB", 40.0),
        Figure::limit("guest memory without the model", number("/guest_overhead_kib")? / 1024.0, "MiB", 150.0),
    ];
    for part in document.get("parts").and_then(Value::as_array).into_iter().flatten() {
        let name = part.get("name").and_then(Value::as_str).unwrap_or_default();
        let value = part.get("milliseconds").and_then(Value::as_f64).unwrap_or_default() / 1000.0;
        figures.push(Figure::plain(name, value, "s"));
    }
    Ok(figures)
}

const MIB: f64 = 1024.0 * 1024.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slow_demo_misses_its_goal() {
        let document = json!({
            "milliseconds": 200, "parts_milliseconds": 100, "guest_overhead_kib": 1024,
            "image": { "kernel_and_initrd_bytes": 1 << 20 }, "parts": [{ "name": "boot", "milliseconds": 100 }],
        });
        let figures = figures(&document).unwrap();
        assert_eq!(figures[0].holds(), Some(false));
        assert_eq!(figures[1].holds(), Some(true));
        assert_eq!(figures[3].holds(), None);
        assert!(super::figures(&json!({})).is_err());
    }
}
