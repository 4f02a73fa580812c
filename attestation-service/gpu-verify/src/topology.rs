// SPDX-License-Identifier: Apache-2.0
//! Eight GPUs and four NVSwitches in protected PCIe mode, each at each other's links.
//!
//! NVIDIA's ppcie-verifier compares what GPUs say of switches and switches of GPUs. Here the identifiers in
//! certificates must be the ones in those lists, too: a report of a GPU outside of the set is noticed.

use crate::{
    Mode, Pdi,
    verdict::{Checks, Rule},
    verified::{VerifiedGpu, VerifiedSwitch},
};

/// Notes how GPUs and switches name each other. Their numbers are checked elsewhere.
pub(crate) fn check(gpus: &[VerifiedGpu], switches: &[VerifiedSwitch], checks: &mut Checks) {
    let own_switches = sorted(switches.iter().map(|switch| switch.pdi));
    let distinct = own_switches.len() == switches.len();
    checks.add(
        distinct,
        TOPOLOGY,
        "switches",
        "each switch once",
        format!("{} of {} differ", own_switches.len(), switches.len()),
    );
    let own_gpus = sorted(gpus.iter().filter_map(|gpu| gpu.pdi));
    for (index, gpu) in gpus.iter().enumerate() {
        let field = format!("gpu[{index}].report.switches");
        let missing = gpu.switches.iter().any(|switch| !own_switches.contains(switch));
        let rule = if missing { MISSING } else { TOPOLOGY };
        checks.add(gpu.switches == own_switches, rule, field, names(&own_switches), names(&gpu.switches));
        let in_ppcie = gpu.mode.is_none_or(|mode| mode == Mode::Ppcie);
        let mode = gpu.mode.map_or_else(|| "none".to_owned(), |mode| mode.to_string());
        checks.add(in_ppcie, TOPOLOGY, format!("gpu[{index}].report.mode"), "ppcie", mode);
    }
    for (index, switch) in switches.iter().enumerate() {
        let field = format!("switch[{index}].report.gpus");
        checks.add(switch.gpus == own_gpus, TOPOLOGY, field, names(&own_gpus), names(&switch.gpus));
    }
}

fn sorted(found: impl Iterator<Item = Pdi>) -> Vec<Pdi> {
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn names(found: &[Pdi]) -> String {
    if found.is_empty() {
        "none".to_owned()
    } else {
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// GPUs of such a set.
pub(crate) const GPUS: usize = 8;
/// Switches of such a set.
pub(crate) const SWITCHES: usize = 4;
const MISSING: Rule = ("switch_missing", "give the report of every switch that the GPUs name");
const TOPOLOGY: Rule = ("switch_topology", "give the reports of the GPUs and switches of one machine, all linked");
