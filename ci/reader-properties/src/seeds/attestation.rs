// SPDX-License-Identifier: Apache-2.0
//! What the attestation service reads.

use ed25519_dalek::{Signer as _, SigningKey};
use key_release::{
    ChallengeAnswer, ImportKey, KeyReleaseAnswer, KeyReleaseRequest, OwnerAction, OwnerCommand, Revoke, Sealed,
    ServiceKeys, SetTenants, SignedOwnerCommand, TokenKey, Work,
};
use serde_json::{Value, json};
use types::{
    Base64, Document as _, Hex32, KeyReleaseEntry, ModelId, Sha256Digest, Tenants, audit::Authorised as Decision,
    canonical, tenants::Tenant,
};

use super::{NOW, Seed, binary, cosigned, documents, two_entries};

/// Makes the tokens among the seeds.
pub(crate) const TOKEN_KEY: [u8; 32] = [4; 32];
/// Signs the keys of the service among the seeds.
const SERVICE_KEY: [u8; 32] = [10; 32];
/// Signs the commands among the seeds.
pub(crate) const OWNER_KEY: [u8; 32] = [5; 32];

pub(super) fn all() -> Vec<Seed> {
    [service(), policies(), collateral(), explanation(), verification()].into_iter().flatten().collect()
}

/// The one model.
pub(crate) fn model() -> ModelId {
    serde_json::from_value(json!({ "name": "m", "revision": "1", "identity": Sha256Digest::of(b"model").to_string() }))
        .expect("a good model")
}

/// The one command that the owner signed.
pub(crate) fn owner_command() -> OwnerCommand {
    OwnerCommand {
        schema: OwnerCommand::SCHEMA.to_owned(),
        service: Sha256Digest::of(b"service"),
        model: model(),
        sequence: 1,
        action: OwnerAction::Revoke(Revoke {}),
    }
}

fn service() -> Vec<Seed> {
    let token = TokenKey::new(TOKEN_KEY).mint(NOW + 60, [6; 16]);
    let request = KeyReleaseRequest {
        schema: KeyReleaseRequest::SCHEMA.to_owned(),
        token,
        model: model(),
        evidence: Base64::new(documents::canonical_bytes(&documents::evidence())).expect("small evidence"),
        work: Some(7),
    };
    let (head, mut audit) = two_entries(b"second");
    audit.checkpoint = cosigned(&head).note().to_owned();
    let answer = KeyReleaseAnswer {
        schema: KeyReleaseAnswer::SCHEMA.to_owned(),
        model: model(),
        key_version: 1,
        enc: Hex32::new([7; 32]),
        ciphertext: Sealed::new(vec![8; 48]).expect("a key and the tag"),
        audit,
    };
    let command: SignedOwnerCommand = owner_command().sign(&OWNER_KEY).expect("a small command");
    let set_policy = OwnerCommand {
        action: OwnerAction::SetPolicy(Base64::new(appraisal_policy().to_string().into_bytes()).expect("small policy")),
        ..owner_command()
    };
    let token = TokenKey::new(TOKEN_KEY).mint_asking(NOW + 60, 14, [6; 16]);
    let challenge = ChallengeAnswer { expires: NOW + 60, token, work: Some(Work { bits: 14 }) };
    let challenge = canonical::to_bytes(&challenge).expect("a challenge is JSON");
    let entry = key_release_entry();
    let import = OwnerCommand {
        action: OwnerAction::ImportKey(ImportKey { version: 1, enc: Hex32::new([7; 32]), ciphertext: [8; 48] }),
        ..owner_command()
    };
    let document = Some(Base64::new(tenants()).expect("a small document"));
    let set_tenants = OwnerCommand { action: OwnerAction::SetTenants(SetTenants { document }), ..owner_command() };
    let with_tenants = KeyReleaseAnswer {
        schema: KeyReleaseAnswer::WITH_TENANTS.to_owned(),
        ciphertext: Sealed::new(vec![8; 60]).expect("more than a key"),
        ..answer.clone()
    };
    let seeds = [
        ("tenants.json", tenants()),
        ("set-tenants.json", set_tenants.to_canonical().expect("a good command")),
        ("answer-with-tenants.json", with_tenants.to_canonical().expect("a good answer")),
        ("request.json", request.to_canonical().expect("a good request")),
        ("answer.json", answer.to_canonical().expect("a good answer")),
        ("challenge.json", challenge),
        ("owner-command.json", command.to_canonical().expect("a good command")),
        ("set-policy.json", set_policy.to_canonical().expect("a good command")),
        ("import-key.json", import.to_canonical().expect("a good command")),
        ("service-keys.json", service_keys().to_canonical().expect("good keys")),
        ("entry.json", entry.to_canonical().expect("a good entry")),
    ];
    seeds.map(|(name, bytes)| Seed { target: "service", name, bytes }).into()
}

/// Keys of a service, which its key signed.
pub(crate) fn service_keys() -> ServiceKeys {
    let (import_key, signer) = (Hex32::new([9; 32]), SigningKey::from_bytes(&SERVICE_KEY));
    let signature = signer.sign(&ServiceKeys::signed_bytes(&import_key)).to_bytes();
    ServiceKeys {
        schema: ServiceKeys::SCHEMA.to_owned(),
        service_key: Hex32::new(signer.verifying_key().to_bytes()),
        import_key,
        signature: Base64::new(signature.to_vec()).expect("64 bytes"),
    }
}

/// An entry about a key that was authorised.
pub(crate) fn key_release_entry() -> KeyReleaseEntry {
    KeyReleaseEntry {
        schema: KeyReleaseEntry::SCHEMA.to_owned(),
        unix: NOW,
        decision: Decision::Authorised,
        model: model(),
        key_version: 1,
        release: Sha256Digest::of(b"release"),
        evidence: Sha256Digest::of(b"evidence"),
        challenge: Sha256Digest::of(b"challenge"),
        platform: Sha256Digest::of(b"platform"),
        tenants: Some(Sha256Digest::of(b"tenants")),
    }
}

/// Two tenants of the one model.
pub(crate) fn tenants() -> Vec<u8> {
    let tenant = |id: &str| Tenant {
        id: id.to_owned(),
        keys: vec![Sha256Digest::of(id.as_bytes())],
        max_tokens: Some(7),
        requests_at_once: None,
        requests_per_minute: Some(60),
        tokens_per_minute: None,
    };
    let tenants = vec![tenant("a"), tenant("b")];
    let document = Tenants { schema: Tenants::SCHEMA.to_owned(), model: model(), tenants };
    document.to_canonical().expect("a small document")
}

fn appraisal_policy() -> Value {
    let digest = Sha256Digest::of(b"digest").to_string();
    json!({
        "schema": "chrysalis/appraisal-policy/v1",
        "platform": {
            "tcb": [{"status": "UpToDate"}, {"status": "OutOfDate", "until": NOW}],
            "refused_advisories": ["INTEL-SA-00837"],
            "min_tcb_evaluation_data_number": 17,
            "platforms": [digest],
            "quote_versions": [5],
        },
        "releases": [digest],
        "revoked_releases": [],
        "models": [serde_json::to_value(model()).expect("a model is JSON")],
        "service_pins": [digest],
        "instances": [digest],
        "acpi": "from-event-log",
        "gpu": serde_json::to_value(gpu_verify::GpuPolicy::strict()).expect("a policy is JSON"),
    })
}

fn policies() -> Vec<Seed> {
    let gpu = serde_json::to_vec(&gpu_verify::GpuPolicy::strict()).expect("a policy is JSON");
    vec![
        Seed { target: "policy", name: "appraisal.json", bytes: appraisal_policy().to_string().into_bytes() },
        Seed { target: "policy", name: "gpu.json", bytes: gpu },
    ]
}

fn collateral() -> Vec<Seed> {
    let level = json!({
        "tcb": {
            "sgxtcbcomponents": vec![json!({"svn": 1}); 16],
            "pcesvn": 13,
            "tdxtcbcomponents": vec![json!({"svn": 1}); 16],
        },
        "tcbDate": "2025-05-14T00:00:00Z",
        "tcbStatus": "UpToDate",
    });
    let dates = ["2025-06-20T00:00:00Z", "2025-07-20T00:00:00Z"];
    let module = json!({"mrsigner": "0".repeat(96), "attributes": "0".repeat(16), "attributesMask": "F".repeat(16)});
    let info = json!({
        "id": "TDX", "version": 3, "issueDate": dates[0], "nextUpdate": dates[1], "fmspc": "00906EA10000",
        "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 17, "tdxModule": module, "tcbLevels": [level],
    });
    let identity = json!({
        "id": "TD_QE", "version": 2, "issueDate": dates[0], "nextUpdate": dates[1], "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11".repeat(16),
        "attributesMask": "FF".repeat(16), "mrsigner": "AB".repeat(32), "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": dates[0], "tcbStatus": "UpToDate"}],
    });
    let signature = "00".repeat(64);
    let file = json!({
        "pck_crl_issuer_chain": "-----BEGIN", "root_ca_crl": "3000", "pck_crl": "3000",
        "tcb_info_issuer_chain": "-----BEGIN", "tcb_info": info.to_string(), "tcb_info_signature": signature,
        "qe_identity_issuer_chain": "-----BEGIN", "qe_identity": identity.to_string(),
        "qe_identity_signature": signature,
    });
    let chain = b"-----BEGIN%20CERTIFICATE-----%0A".to_vec();
    let parts = [
        b"3000".to_vec(),
        chain.clone(),
        vec![0x30, 0],
        json!({"tcbInfo": info, "signature": signature}).to_string().into_bytes(),
        chain.clone(),
        json!({"enclaveIdentity": identity, "signature": signature}).to_string().into_bytes(),
        chain,
    ];
    vec![
        Seed { target: "collateral", name: "file", bytes: format!("j{file}").into_bytes() },
        Seed { target: "collateral", name: "answers", bytes: [b"p".to_vec(), parts.join(&0xff)].concat() },
    ]
}

fn explanation() -> Vec<Seed> {
    let line = b"panic=-1 quiet debug";
    let len = u8::try_from(line.len()).expect("a short line");
    let of = |name, choices, log: Vec<u8>| Seed {
        target: "explanation",
        name,
        bytes: [&[choices, 2, len], line.as_slice(), &log].concat(),
    };
    vec![of("differs", 0x01, binary::log(false)), of("runtime", 0x7d, binary::log(true))]
}

/// Changes as the target reads them: kind, which, place (little endian), value.
fn verification() -> Vec<Seed> {
    let of = |name, changes: &[[u8; 5]]| Seed { target: "verification", name, bytes: changes.concat() };
    vec![
        of("unchanged", &[[6, 0, 0, 0, 128]]),
        // A body of TDX 1.5 that was launched under module ISVSVN 2, which is out of date, and runs under 6.
        of("relaunch", &[[7, 1, 0, 0, 0], [0, 0, 54, 0, 2], [4, 19, 0, 0, 0], [4, 25, 1, 0, 2], [4, 26, 1, 0, 1]]),
        of("extended", &[[7, 0, 0, 0, 0]]),
        // One more level at the front that the platform does not meet, and other advisories.
        of("levels", &[[3, 0xf0, 0, 0, 0], [3, 3, 0, 0, 200], [3, 5, 64, 0, 7]]),
        // A module of version 3 beside the one of version 1.
        of("module", &[[4, 0xf0, 1, 0, 0], [4, 20, 64, 0, 3], [0, 0, 49, 0, 3], [4, 25, 64, 0, 1]]),
        of("enclave", &[[5, 7, 1, 0, 1], [5, 6, 0, 0, 5], [1, 0, 2, 1, 4]]),
        of("time", &[[6, 2, 0, 0, 127]]),
    ]
}
