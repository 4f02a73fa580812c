// SPDX-License-Identifier: Apache-2.0
//! Release bundles under attack. Each refusal must have its own code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;

use release::log::{
    Checkpoint, Edge, EntryProof, LogSigner, TileError, TilePath, Tiles, Tree, WitnessSigner, WitnessState, cosign,
};
use release::{Bundle, Hardware, ReleaseError, ReleaseKey, Statement, TrustPolicy, Validity, VerifiedRelease};
use types::{Device, Document as _, MachineShape, QemuVersion, Sha256Digest, shape::ShapeFacts};

const NOW: u64 = 1_750_000_000;
const ORIGIN: &str = "example.invalid/releases";

#[derive(Default)]
struct Memory(BTreeMap<TilePath, Vec<u8>>);

impl Tiles for Memory {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        self.0.get(path).cloned().ok_or(TileError::Missing(*path))
    }
}

/// A log in memory with its signer.
struct Log {
    signer: LogSigner,
    edge: Edge,
    tiles: Memory,
}

impl Log {
    fn new(seed: u8) -> Self {
        let signer = LogSigner::new(ORIGIN, &[seed; 32]).unwrap();
        Self { signer, edge: Edge::empty(), tiles: Memory::default() }
    }

    fn append(&mut self, entry: &[u8]) -> u64 {
        let (index, _) = self.edge.append(entry).unwrap();
        self.tiles.0.extend(self.edge.take_files());
        index
    }

    fn checkpoint(&self) -> String {
        Checkpoint::new(ORIGIN, self.edge.size(), self.edge.root()).sign(&self.signer).unwrap()
    }

    fn tree(&self) -> Tree<'_, Memory> {
        Tree::new(&self.tiles, self.edge.size())
    }

    fn proof(&self, index: u64, checkpoint: &str) -> EntryProof {
        EntryProof {
            index,
            leaf: self.tree().leaf(index).unwrap(),
            tree_size: self.edge.size(),
            path: self.tree().inclusion_proof(index).unwrap(),
            checkpoint: checkpoint.to_owned(),
        }
    }
}

struct World {
    key: ReleaseKey,
    log: Log,
    witnesses: Vec<WitnessSigner>,
    policy: TrustPolicy,
}

impl World {
    fn new() -> Self {
        let key = ReleaseKey::from_random(&[1; 32]).unwrap();
        let mut log = Log::new(2);
        (0..5).for_each(|n| _ = log.append(format!("other {n}").as_bytes()));
        let witnesses: Vec<_> =
            (0..3).map(|n| WitnessSigner::new(&format!("witness-{n}"), &[10 + n; 32]).unwrap()).collect();
        let keys = witnesses.iter().map(|w| w.public().clone()).collect();
        let policy = TrustPolicy::new(vec![key.public()], log.signer.public().clone(), keys, 2).unwrap();
        Self { key, log, witnesses, policy }
    }

    /// Signs, logs, cosigns by the first `cosigners` witnesses and bundles.
    fn publish(&mut self, statement: &Statement, cosigners: usize) -> Vec<u8> {
        let bundle = Bundle::sign(statement, &self.key).unwrap();
        let index = self.log.append(&bundle.log_entry(&self.key.public()).unwrap());
        let mut note = self.log.checkpoint();
        for witness in &self.witnesses[..cosigners] {
            note = cosign(witness, None, &note, self.log.signer.public(), &[], NOW).unwrap().0.note().to_owned();
        }
        let proof = self.log.proof(index, &note);
        bundle.with_proof(&self.key.public(), self.log.signer.public(), &proof).unwrap().to_json().unwrap()
    }

    fn code(&self, bundle: &[u8]) -> &'static str {
        VerifiedRelease::verify(bundle, &self.policy, NOW).expect_err("refused").code()
    }
}

fn shape(vcpus: u16) -> MachineShape {
    let qemu = QemuVersion { major: 10, minor: 1 };
    MachineShape::new(ShapeFacts { vcpus, memory_mib: 1024, physical_bits: 46, qemu, devices: vec![Device::Vsock] })
        .unwrap()
}

fn statement() -> Statement {
    let mut statement = sample_release::statement(Hardware::Tdx, &[shape(2)], NOW);
    statement.predicate.validity = Validity { not_before: NOW - 10, not_after: NOW + 10 };
    statement
}

/// Changes the bundle's JSON.
fn edit(bundle: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(bundle).unwrap();
    change(&mut json);
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn a_published_release_verifies_and_answers_for_its_shapes() {
    let mut world = World::new();
    let bundle = world.publish(&statement(), 2);
    let verified = VerifiedRelease::verify(&bundle, &world.policy, NOW).unwrap();
    assert_eq!(verified.digest(), &Sha256Digest::of(&statement().to_canonical().unwrap()));
    assert_eq!((verified.log_index(), verified.checkpoint().head().size()), (5, 6));
    let listed = &verified.values().registers[0];
    assert_eq!(verified.registers_for(&shape(2)).unwrap().rtmr_1[0].value, listed.rtmr_1[0]);
    assert!(verified.registers_for(&shape(4)).is_err());
    let text = world.policy.to_canonical().unwrap();
    assert!(VerifiedRelease::verify(&bundle, &TrustPolicy::parse(&text).unwrap(), NOW).is_ok());
}

#[test]
fn attack_62_a_bundle_without_inclusion_proof() {
    let mut world = World::new();
    let unlogged = Bundle::sign(&statement(), &world.key).unwrap().to_json().unwrap();
    assert_eq!(world.code(&unlogged), "release_not_logged");
    let bundle = world.publish(&statement(), 2);
    let without = edit(&bundle, |json| {
        let entry = json["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap();
        entry.remove("inclusionProof").unwrap();
    });
    assert_eq!(world.code(&without), "release_not_logged");
    // A proof of another entry of the same log.
    let other = edit(&bundle, |json| {
        let proof = world.log.tree().inclusion_proof(0).unwrap();
        let hashes: Vec<_> = proof.iter().map(|h| base64(h.as_bytes())).collect();
        let entry = &mut json["verificationMaterial"]["tlogEntries"][0];
        (entry["logIndex"], entry["inclusionProof"]["logIndex"]) = ("0".into(), "0".into());
        entry["inclusionProof"]["hashes"] = hashes.into();
    });
    assert_eq!(world.code(&other), "release_inclusion_proof");
    let shorter = edit(&bundle, |json| {
        json["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["hashes"].as_array_mut().unwrap().pop();
    });
    assert_eq!(world.code(&shorter), "release_inclusion_proof");
}

#[test]
fn attack_63_the_wrong_signer() {
    let mut world = World::new();
    let right = world.publish(&statement(), 2);
    let stranger = ReleaseKey::from_random(&[9; 32]).unwrap();
    let own = core::mem::replace(&mut world.key, stranger);
    let bundle = world.publish(&statement(), 2);
    assert_eq!(world.code(&bundle), "release_signer_not_accepted");
    // The stranger's signature under the accepted key's hint.
    let disguised = edit(&bundle, |json| {
        json["verificationMaterial"]["publicKey"]["hint"] = own.public().hint().unwrap().into();
    });
    assert_eq!(world.code(&disguised), "release_signature");
    // A changed statement under the right signature.
    let changed = edit(&right, |json| {
        let mut other = statement();
        other.predicate.rebuild_command.push_str(" debug");
        json["dsseEnvelope"]["payload"] = base64(&other.to_canonical().unwrap()).into();
    });
    assert_eq!(world.code(&changed), "release_signature");
}

#[test]
fn attack_64_a_forked_or_shrunk_log() {
    let mut world = World::new();
    let honest = world.publish(&statement(), 3);
    let verified = VerifiedRelease::verify(&honest, &world.policy, NOW).unwrap();
    let known = WitnessState::from(verified.checkpoint().head());

    // The log's operator signs a second history. Witnesses that saw the first do not cosign it.
    let mut fork = Log::new(2);
    (0..5).for_each(|n| _ = fork.append(format!("forged {n}").as_bytes()));
    let honest_log = core::mem::replace(&mut world.log, fork);
    let forked = world.publish(&statement(), 0);
    let forked_note = world.log.checkpoint();
    for witness in &world.witnesses {
        assert!(cosign(witness, Some(&known), &forked_note, world.log.signer.public(), &[], NOW).is_err());
    }
    assert_eq!(world.code(&forked), "release_witnesses_missing");

    // Even with witnesses that forgot, a verifier with a head of its own sees the fork.
    let mut fork = Log::new(2);
    (0..5).for_each(|n| _ = fork.append(format!("forged {n}").as_bytes()));
    world.log = fork;
    let cosigned_fork = world.publish(&statement(), 3);
    let verified_fork = VerifiedRelease::verify(&cosigned_fork, &world.policy, NOW).unwrap();
    assert_eq!(verified_fork.check_same_history(&known, &[]).unwrap_err().code(), "release_log_forked");

    // The same log, grown: the old bundle is of the same history, with the proof between the two heads.
    world.log = honest_log;
    world.log.append(b"later");
    let grown = WitnessState { size: world.log.edge.size(), root: world.log.edge.root() };
    let proof = world.log.tree().consistency_proof(known.size).unwrap();
    assert_eq!(verified.check_same_history(&grown, &proof), Ok(()));
    assert_eq!(verified.check_same_history(&grown, &[]).unwrap_err().code(), "release_log_forked");

    // A log cut down to fewer entries can't hold the entry, and its head gets no cosignature.
    let shrunk = Checkpoint::new(ORIGIN, 3, Sha256Digest::of(b"x")).sign(&world.log.signer).unwrap();
    assert!(cosign(&world.witnesses[0], Some(&known), &shrunk, world.log.signer.public(), &[], NOW).is_err());
    let cut = edit(&honest, |json| {
        let proof = &mut json["verificationMaterial"]["tlogEntries"][0]["inclusionProof"];
        proof["checkpoint"]["envelope"] = shrunk.clone().into();
        proof["treeSize"] = "3".into();
    });
    assert_eq!(world.code(&cut), "release_inclusion_proof");
}

#[test]
fn a_checkpoint_of_another_key_or_too_few_witnesses_is_refused() {
    let mut world = World::new();
    let once = world.publish(&statement(), 1);
    assert_eq!(
        VerifiedRelease::verify(&once, &world.policy, NOW).unwrap_err(),
        ReleaseError::Witnesses { needed: 2, found: 1 }
    );
    // The same cosignature twice is still one witness.
    let twice = edit(&once, |json| {
        let note = &mut json["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["checkpoint"]["envelope"];
        let text = note.as_str().unwrap().to_owned();
        let last = text.lines().last().unwrap();
        *note = format!("{text}{last}\n").into();
    });
    assert_eq!(world.code(&twice), "release_witnesses_missing");

    let mut other = World::new();
    other.log = Log::new(3);
    let foreign = other.publish(&statement(), 2);
    assert_eq!(world.code(&foreign), "release_log_not_accepted");
    let disguised = edit(&foreign, |json| {
        json["verificationMaterial"]["tlogEntries"][0]["logId"]["keyId"] =
            base64(world.policy.log.log_id().as_bytes()).into();
    });
    assert_eq!(world.code(&disguised), "release_checkpoint");
}

#[test]
fn a_release_outside_of_its_time_is_refused() {
    let mut world = World::new();
    let bundle = world.publish(&statement(), 2);
    for now in [NOW - 11, NOW + 11] {
        let error = VerifiedRelease::verify(&bundle, &world.policy, now).unwrap_err();
        assert_eq!(error.code(), "release_not_valid_now");
    }
    for now in [NOW - 10, NOW + 10] {
        assert!(VerifiedRelease::verify(&bundle, &world.policy, now).is_ok());
    }
}

#[test]
fn no_field_of_a_bundle_can_be_changed_added_or_removed() {
    let mut world = World::new();
    let bundle = world.publish(&statement(), 2);
    let entry = "/verificationMaterial/tlogEntries/0";
    let replacements: [(&str, serde_json::Value); 9] = [
        ("/mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json".into()),
        ("/dsseEnvelope/payloadType", "text/plain".into()),
        ("/dsseEnvelope/signatures", serde_json::json!([])),
        (&format!("{entry}/logIndex"), "4".into()),
        (&format!("{entry}/inclusionProof/logIndex"), "4".into()),
        (&format!("{entry}/inclusionProof/treeSize"), "7".into()),
        (&format!("{entry}/inclusionProof/rootHash"), base64(&[0; 32]).into()),
        (&format!("{entry}/kindVersion/version"), "0.0.1".into()),
        (&format!("{entry}/canonicalizedBody"), base64(b"{}").into()),
    ];
    for (pointer, value) in replacements {
        let changed = edit(&bundle, |json| *json.pointer_mut(pointer).expect(pointer) = value);
        assert!(VerifiedRelease::verify(&changed, &world.policy, NOW).is_err(), "{pointer}");
    }
    for pointer in ["", "/verificationMaterial", "/dsseEnvelope", entry] {
        let added = edit(&bundle, |json| json.pointer_mut(pointer).unwrap()["extra"] = 1.into());
        assert_eq!(world.code(&added), "release_bundle_malformed", "{pointer}");
    }
    for length in (0..bundle.len()).step_by(97) {
        assert_eq!(world.code(&bundle[..length]), "release_bundle_malformed");
    }
    let trailing = [bundle.as_slice(), b"{}"].concat();
    assert_eq!(world.code(&trailing), "release_bundle_malformed");
}

#[test]
fn an_unusable_policy_accepts_nothing() {
    let mut world = World::new();
    let bundle = world.publish(&statement(), 2);
    let broken = |change: fn(&mut TrustPolicy)| {
        let mut policy = World::new().policy;
        change(&mut policy);
        VerifiedRelease::verify(&bundle, &policy, NOW).unwrap_err().code()
    };
    assert_eq!(broken(|p| p.threshold = 0), "release_policy_malformed");
    assert_eq!(broken(|p| p.threshold = 4), "release_policy_malformed");
    assert_eq!(broken(|p| p.release_keys.clear()), "release_policy_malformed");
    assert_eq!(broken(|p| p.witnesses.push(p.witnesses[0].clone())), "release_policy_malformed");
    world.policy.schema.push('x');
    assert!(TrustPolicy::parse(&types::canonical::to_bytes(&world.policy).unwrap()).is_err());
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
