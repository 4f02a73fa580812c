// SPDX-License-Identifier: Apache-2.0
//! The part about GPUs.

use gpu_verify::{GpuPolicy, Mode, Requirement, Topology};

use crate::{finding::Findings, lists::repeated};

pub(crate) fn lint(gpu: Option<&GpuPolicy>, findings: &mut Findings) {
    let Some(gpu) = gpu else {
        let detail = "a guest with a GPU is refused";
        findings.warn("gpu_absent", "/gpu", detail, "add the part gpu if guests are to have GPUs");
        return;
    };
    // A new field must be handled here.
    let GpuPolicy {
        schema: _,
        architectures,
        modes,
        mode_in_report,
        driver_state,
        fwid,
        revocation,
        nonce,
        drivers,
        vbioses,
        gpus,
        topology,
    } = gpu;
    for (field, requirement, detail) in [
        ("mode_in_report", mode_in_report, "a report that does not say its mode is accepted"),
        ("driver_state", driver_state, "DevTools mode is excluded only where the guest says what its driver does"),
        ("fwid", fwid, "a report that does not repeat the digest of its firmware is accepted"),
        ("revocation", revocation, "a GPU whose certificates were revoked is accepted where no OCSP answer says so"),
        ("nonce", nonce, "reports that were made for another nonce are excluded only where one is given"),
    ] {
        if *requirement == Requirement::Optional {
            findings.warn("gpu_optional", &format!("/gpu/{field}"), detail, "set it to required");
        }
    }
    for (field, list) in [("drivers", drivers), ("vbioses", vbioses)] {
        if list.is_empty() {
            let detail = "every version that has a manifest is accepted, old ones, too";
            findings.warn("gpu_any_version", &format!("/gpu/{field}"), detail, "name the versions");
        }
        repeated(&format!("/gpu/{field}"), list, findings);
    }
    let ppcie = modes.contains(&Mode::Ppcie);
    if *topology == Topology::Ppcie8 && !ppcie {
        let detail = "eight GPUs with their switches work in the mode ppcie, which is not accepted";
        findings.warn("gpu_contradiction", "/gpu/modes", detail, "accept ppcie, or take topology independent");
    }
    if *topology == Topology::Independent && modes.as_slice() == [Mode::Ppcie] {
        let detail = "GPUs by themselves never work in the mode ppcie, the only one accepted";
        findings.warn("gpu_contradiction", "/gpu/topology", detail, "take topology ppcie8, or accept spt");
    }
    if *topology == Topology::Independent && gpus.is_none() {
        let detail = "any number of GPUs is accepted, from one on";
        findings.warn("gpu_any_count", "/gpu/gpus", detail, "set the number");
    }
    repeated("/gpu/architectures", architectures.iter().map(ToString::to_string), findings);
    repeated("/gpu/modes", modes.iter().map(ToString::to_string), findings);
}
