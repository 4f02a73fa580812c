// SPDX-License-Identifier: Apache-2.0
//! Codes of refusals that reach a peer, by the step that gives them. `docs/attestation-service.md` shows the same table.

/// A step, and its codes.
pub(crate) type Step = (&'static str, &'static [&'static str]);

/// Codes of every endpoint.
pub(crate) const REQUEST: Step = (
    "request",
    &[
        "request_malformed",
        "request_timeout",
        "not_found",
        "method_not_allowed",
        "media_type",
        "busy",
        "rate_limited",
        "challenges_exhausted",
    ],
);
/// The service itself is not able to.
pub(crate) const SERVICE: Step = (
    "service (503)",
    &[
        "store_unavailable",
        "audit_unavailable",
        "kek_unavailable",
        "tls_exporter",
        "randomness_unavailable",
        "service_unavailable",
    ],
);
/// Commands of models' owners.
pub(crate) const OWNERS: Step = (
    "owners",
    &[
        "owner_unknown",
        "owner_signature",
        "owner_quorum",
        "owner_service",
        "owner_sequence",
        "policy_malformed",
        "owner_successor",
        "owner_key_sealed",
        "key_exists",
        "owner_model_revoked",
        "tenants_malformed",
    ],
);

/// Why a key is refused, in the order of the checks.
pub(crate) const KEY_RELEASE: &[Step] = &[
    ("token", &["challenge_unknown", "challenge_expired", "work_required", "challenge_replayed"]),
    (
        "form",
        &[
            "evidence_malformed",
            "quote_truncated",
            "quote_trailing_bytes",
            "quote_too_large",
            "quote_version",
            "quote_tee_type",
            "quote_body_type",
            "qe_vendor",
            "attestation_key_type",
            "certification_data_type",
        ],
    ),
    (
        "chain",
        &[
            "collateral_missing",
            "collateral_malformed",
            "collateral_signature",
            "collateral_expired",
            "collateral_not_yet_valid",
            "collateral_pck_chain",
            "root_untrusted",
            "certificate_expired",
            "certificate_not_yet_valid",
            "certificate_revoked",
            "pck_revoked",
            "pck_malformed",
            "crl_invalid",
            "fmspc_mismatch",
            "pce_id_mismatch",
            "qe_report_signature",
            "qe_report_data",
            "qe_debug",
            "qe_identity",
            "qe_revoked",
            "quote_signature",
            "tcb_level_none",
            "tcb_revoked",
            "tdx_module",
            "quote_unverified",
        ],
    ),
    (
        "platform",
        &[
            "tcb_out_of_date",
            "tcb_status",
            "tcb_grace_ended",
            "tcb_advisory",
            "collateral_rollback",
            "platform_not_allowed",
            "quote_version_not_allowed",
        ],
    ),
    (
        "TD",
        &[
            "tdx_mr_signer_seam",
            "tdx_seam_attributes",
            "tdx_debug_set",
            "tdx_attributes",
            "tdx_attributes_reserved",
            "tdx_sept_ve_disable_off",
            "tdx_xfam",
            "tdx_mr_service_td",
            "tdx_extended_body",
        ],
    ),
    ("binding", &["quote_mismatch", "freshness_kind", "binding_mismatch", "hpke_key_missing", "report_data_mismatch"]),
    ("identity", &["config_malformed", "config_digest_mismatch", "mr_owner_nonzero"]),
    (
        "release",
        &[
            "release_unknown",
            "shape_not_published",
            "hardware_mismatch",
            "release_not_accepted",
            "release_revoked",
            "release_not_valid_now",
            "role_mismatch",
            "tcb_beyond_release",
            "register_mismatch",
        ],
    ),
    (
        "boot",
        &["rtmr3_event_missing", "rtmr3_event_unexpected", "rtmr3_event_order", "rtmr3_event_payload", "keys_closed"],
    ),
    (
        "configuration",
        &[
            "role_not_served",
            "model_not_allowed",
            "service_pin_mismatch",
            "instance_not_allowed",
            "gpu_evidence_unexpected",
            "time_floor",
            "time_not_attested",
            "time_key_mismatch",
            "time_signature",
            "time_range",
            "time_stale",
        ],
    ),
    ("rules", &["rule_denied", "rule_failed", "rule_limit", "rules_not_run", "verdict_incomplete"]),
    ("key", &["model_mismatch", "model_key_missing", "model_revoked", "platform_revoked", "hpke_key"]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Whoever adds a code adds it to the page, too, and the reverse.
    #[test]
    fn the_page_shows_the_same_codes() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/attestation-service.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = page.split("## Codes").nth(1).unwrap().split("\n## ").next().unwrap();
        for (step, codes) in KEY_RELEASE.iter().chain([&REQUEST, &SERVICE, &OWNERS]) {
            let row = table.lines().find(|line| line.starts_with(&format!("| {step} |"))).expect(step);
            // What follows a semicolon comes from elsewhere: other connections, the operator's commands.
            let own = row.split(';').next().unwrap();
            let shown: BTreeSet<_> = own.split('`').skip(1).step_by(2).collect();
            assert_eq!(shown, codes.iter().copied().collect::<BTreeSet<_>>(), "{step}");
        }
    }

    #[test]
    fn codes_are_written_as_the_schema_says_and_once() {
        let mut all = BTreeSet::new();
        for code in KEY_RELEASE.iter().chain([&REQUEST, &SERVICE, &OWNERS]).flat_map(|(_, codes)| *codes) {
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{code}");
            assert!(all.insert(code), "{code} twice");
        }
    }
}
