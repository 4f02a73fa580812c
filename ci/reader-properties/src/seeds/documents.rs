// SPDX-License-Identifier: Apache-2.0
//! Documents in canonical JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sample_release::Hardware;
use serde_json::{Value, json};
use types::{Document as _, EventName, MachineShape, Sha256Digest, canonical};

use super::{NOW, Seed, bundle, trust};

pub(super) fn all() -> Vec<Seed> {
    let document = |name, value: &Value| Seed { target: "document", name, bytes: canonical_bytes(value) };
    vec![
        document("guest-config.json", &guest_config()),
        document("evidence.json", &evidence()),
        document("connection-proof.json", &connection_proof()),
        Seed {
            target: "document",
            name: "release-trust.json",
            bytes: trust().to_canonical().expect("a policy is a document"),
        },
        Seed { target: "statement", name: "statement.json", bytes: statement() },
        Seed { target: "bundle", name: "bundle.json", bytes: bundle() },
    ]
}

pub(super) fn canonical_bytes(value: &Value) -> Vec<u8> {
    canonical::to_bytes(value).expect("integers and text only")
}

fn sha256(of: &str) -> String {
    Sha256Digest::of(of.as_bytes()).to_string()
}

fn shape() -> Value {
    json!({
        "vcpus": 2, "memory_mib": 1024, "physical_bits": 46, "qemu": "10.1",
        "devices": ["config-disk", "model-disk", "network", "vsock"],
    })
}

/// The machine that [`shape`] names.
pub(crate) fn machine() -> MachineShape {
    serde_json::from_value(shape()).expect("a good shape")
}

fn guest_config() -> Value {
    json!({
        "schema": "chrysalis/guest-config/v1",
        "role": "inference",
        "shape": shape(),
        "model": { "name": "m", "revision": "1", "identity": sha256("model") },
        "service": { "vsock_port": 7000, "spki_sha256": sha256("service") },
        "network": { "address": "10.0.2.15", "prefix": 24, "port": 8443 },
        "engine": { "context_tokens": 512, "threads_decode": 1, "threads_prefill": 2 },
    })
}

pub(super) fn evidence() -> Value {
    let events: Vec<Value> = EventName::ALL
        .iter()
        .map(|name| json!({ "name": name.as_str(), "payload": STANDARD.encode(name.as_str()) }))
        .collect();
    json!({
        "schema": "chrysalis/evidence/v1",
        "role": "inference",
        "quote": STANDARD.encode("quote"),
        "spki_sha256": sha256("spki"),
        "instance_key": sha256("instance"),
        "hpke_key": sha256("hpke"),
        "gpu": {
            "epoch": 1,
            "random": sha256("random"),
            "reports": [{ "uuid": "GPU-1", "report": STANDARD.encode("report"), "chain": STANDARD.encode("chain") }],
        },
        "receipt_head": sha256("receipt"),
        "receipt_count": 3,
        "freshness": { "kind": "key-release", "tree_size": 1, "root": sha256("root") },
        "events": events,
        "firmware_log": STANDARD.encode("log"),
        "guest_config": STANDARD.encode(canonical_bytes(&guest_config())),
        "time": {
            "floor": NOW,
            "attested": {
                "unix": NOW + 1,
                "nonce": sha256("nonce"),
                "service_key": sha256("key"),
                "signature": STANDARD.encode([7; 64]),
            },
        },
    })
}

fn connection_proof() -> Value {
    json!({
        "schema": "chrysalis/connection-proof/v1",
        "evidence": sha256("evidence"),
        "quote": STANDARD.encode("quote"),
        "receipt_head": sha256("receipt"),
        "receipt_count": 3,
        "freshness": { "kind": "tls", "tree_size": 2, "root": sha256("root") },
        "leaf_index": 1,
        "path": [sha256("sibling")],
    })
}

/// A release of two machines, with a predecessor and a lock file.
pub(super) fn statement() -> Vec<u8> {
    let shapes: [MachineShape; 2] = [1, 2].map(|vcpus| {
        let mut shape = shape();
        shape["vcpus"] = vcpus.into();
        serde_json::from_value(shape).expect("a good shape")
    });
    let mut statement = sample_release::statement(Hardware::Tdx, &shapes, NOW);
    statement.predicate.predecessor = Some(Sha256Digest::of(b"predecessor"));
    statement.predicate.locks = statement.subject.iter().take(1).cloned().collect();
    statement.to_canonical().expect("the sample is a good statement")
}
