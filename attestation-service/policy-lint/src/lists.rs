// SPDX-License-Identifier: Apache-2.0
//! Releases, models, services and instances.

use std::collections::BTreeSet;

use appraise::Policy;

use crate::finding::Findings;

pub(crate) fn lint(policy: &Policy, findings: &mut Findings) {
    // A new field must be handled here or by a neighbour.
    let Policy {
        schema: _,
        platform: _,
        releases,
        revoked_releases,
        models,
        service_pins,
        acpi: _,
        instances,
        gpu: _,
        rules: _,
    } = policy;
    if releases.is_none() {
        let detail = "every imported release is accepted, as soon as it is imported";
        findings.warn("releases_any", "/releases", detail, "name the releases that you have looked at");
    }
    if models.is_none() {
        let detail = "every model is accepted";
        findings.warn("models_any", "/models", detail, "name the models");
    }
    if !policy.pins_instance() {
        let detail = "instance: any. A connection may be diverted to a second genuine guest, on any platform";
        let fix = "name the platforms (platform.platforms), or the instances";
        findings.warn("instance_any", "/instances", detail, fix);
    }
    for (index, release) in releases.iter().flatten().enumerate() {
        if revoked_releases.contains(release) {
            let detail = format!("{release} is revoked, too, and that counts");
            findings.warn("release_revoked", &format!("/releases/{index}"), detail, "leave it out of one of the lists");
        }
    }
    repeated("/releases", releases.iter().flatten(), findings);
    repeated("/revoked_releases", revoked_releases, findings);
    repeated("/models", models.iter().flatten().map(ToString::to_string), findings);
    repeated("/service_pins", service_pins.iter().flatten(), findings);
    repeated("/instances", instances.iter().flatten(), findings);
}

/// Notes entries that stand twice.
pub(crate) fn repeated<T: Ord>(pointer: &str, entries: impl IntoIterator<Item = T>, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (index, entry) in entries.into_iter().enumerate() {
        if !seen.insert(entry) {
            let pointer = format!("{pointer}/{index}");
            findings.warn("duplicate_entry", &pointer, "it stands in the list before", "leave one");
        }
    }
}
