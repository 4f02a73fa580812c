// SPDX-License-Identifier: Apache-2.0
//! An attester and an engine that play their parts over real sockets, and a client of the API.

mod engine;
mod raw_client;

use std::{
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use attested_channel::{
    CertificateEvidence, Leaf, Receipt, SignedReceipt, Tree, certificate::OID_ARCS, receipt::Unset,
};
use attester_protocol::{Identity, Outcome, Request, Response, ServingAnswer, ServingRequest, frame};
use ed25519_dalek::{Signer as _, SigningKey, pkcs8::EncodePrivateKey as _};
use types::{
    Base64, Blake3Digest, ConnectionProof, Device, Document as _, Evidence, Freshness, FreshnessKind, GpuEvidence,
    GuestConfig, Hex32, MachineShape, ModelId, Role, Sha256Digest, TimeState, config, shape::ShapeFacts,
};

pub(crate) use engine::FakeEngine;
#[allow(unused_imports, reason = "most tests need no raw connection")]
pub(crate) use raw_client::{Client, chat_body, post, raw, until_read};

pub(crate) const UNIX: u64 = 1_760_000_000;

pub(crate) fn model() -> ModelId {
    ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()
}

fn guest_config() -> Vec<u8> {
    let shape = ShapeFacts {
        vcpus: 2,
        memory_mib: 1024,
        physical_bits: 46,
        qemu: "10.1".parse().unwrap(),
        devices: vec![Device::ConfigDisk, Device::Network],
    };
    GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: config::Fixed(Role::Inference),
        shape: config::Policy(MachineShape::new(shape).unwrap()),
        model: config::Policy(model()),
        service: config::ServiceLink {
            vsock_port: config::Free(7000),
            spki_sha256: config::Policy(Sha256Digest::of(b"service")),
        },
        network: config::Network {
            address: config::Free("10.0.2.15".parse().unwrap()),
            prefix: config::Free(24),
            port: config::Free(8443),
            client_address: config::Free::default(),
        },
        engine: config::EngineSettings {
            context_tokens: config::Free(512),
            threads_decode: config::Free(1),
            threads_prefill: config::Free(1),
            prompt_rows: None,
        },
        gpus: config::Free(0),
    }
    .to_canonical()
    .unwrap()
}

/// Signs for whoever asks; its quotes are the text "quote".
pub(crate) struct FakeAttester {
    tls: SigningKey,
    instance: SigningKey,
    identity: Identity,
    last: Mutex<(u64, Sha256Digest)>,
    /// Held by a test, it holds up receipts.
    pub(crate) gate: Mutex<()>,
}

impl FakeAttester {
    pub(crate) fn start(path: &Path) -> Arc<Self> {
        let (tls, instance) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let pair = rcgen::KeyPair::try_from(tls.to_pkcs8_der().unwrap().as_bytes()).unwrap();
        let spki_sha256 = Sha256Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&pair));
        let instance_key = Hex32::new(instance.verifying_key().to_bytes());
        let quote = Base64::new(b"quote".to_vec()).unwrap();
        let evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: quote.clone(),
            spki_sha256,
            instance_key,
            hpke_key: Hex32::default(),
            gpu: GpuEvidence::NONE,
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness::none(),
            events: vec![],
            firmware_log: None,
            guest_config: Base64::new(guest_config()).unwrap(),
            time: TimeState { floor: UNIX, attested: None },
        }
        .to_canonical()
        .unwrap();
        let value = CertificateEvidence { evidence: Sha256Digest::of(&evidence), quote }.to_extension_value().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&OID_ARCS, value)];
        let certificate = params.self_signed(&pair).unwrap().der().to_vec();
        let identity = Identity {
            certificates: vec![Base64::new(certificate).unwrap()],
            evidence: Base64::new(evidence).unwrap(),
            spki_sha256,
            instance_key,
            unix: UNIX,
        };
        let this =
            Arc::new(Self { tls, instance, identity, last: Mutex::new((0, Sha256Digest::ZERO)), gate: Mutex::new(()) });
        let listener = UnixListener::bind(path).unwrap();
        let attester = Arc::clone(&this);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let attester = Arc::clone(&attester);
                std::thread::spawn(move || attester.talk(stream));
            }
        });
        this
    }

    pub(crate) fn evidence_digest(&self) -> Sha256Digest {
        Sha256Digest::of(self.identity.evidence.as_slice())
    }

    fn talk(&self, mut stream: UnixStream) {
        while let Ok(Some(Request { id, body })) = frame::read::<Request<ServingRequest>>(&mut stream) {
            // Its key is never renewed.
            if matches!(body, ServingRequest::Successor { .. }) {
                continue;
            }
            let outcome = Outcome::Done(self.answer(body));
            if frame::write(&mut stream, &Response { id, outcome }).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: ServingRequest) -> ServingAnswer {
        match request {
            ServingRequest::Identity {} | ServingRequest::Successor { .. } => {
                ServingAnswer::Identity(Box::new(self.identity.clone()))
            }
            ServingRequest::Hold { .. } => ServingAnswer::Held {},
            ServingRequest::Retire { .. } => ServingAnswer::Retired {},
            ServingRequest::SignTls { message, .. } => {
                let signature = self.tls.sign(message.as_slice()).to_bytes().to_vec();
                ServingAnswer::TlsSignature { signature: Base64::new(signature).unwrap() }
            }
            ServingRequest::Prove { kind, challenge, binding, .. } => {
                let leaf = Leaf {
                    kind,
                    role: Role::Inference,
                    challenge: *challenge.as_bytes(),
                    binding: *binding.as_bytes(),
                };
                let tree = Tree::new(vec![leaf.hash()]).unwrap();
                let proof = ConnectionProof {
                    schema: ConnectionProof::SCHEMA.into(),
                    evidence: self.evidence_digest(),
                    quote: Base64::new(b"quote".to_vec()).unwrap(),
                    receipt_head: Sha256Digest::ZERO,
                    receipt_count: 0,
                    freshness: Freshness { kind: FreshnessKind::Tls, tree_size: 1, root: tree.root() },
                    leaf_index: 0,
                    path: vec![],
                };
                ServingAnswer::Proof { proof: Box::new(proof) }
            }
            ServingRequest::SignReceipt { evidence, request, response, prompt_tokens, completion_tokens, channel } => {
                let _open = self.gate.lock().unwrap();
                let mut last = self.last.lock().unwrap();
                let receipt = Receipt {
                    schema: Receipt::SCHEMA.into(),
                    sequence: last.0,
                    previous: last.1,
                    request,
                    response,
                    model: model(),
                    launch: Sha256Digest::of(b"launch"),
                    prompt_tokens,
                    completion_tokens,
                    price_unit: Unset,
                    payment_channel: Unset,
                    cumulative_amount: Unset,
                    channel,
                    evidence,
                    instance_key: self.identity.instance_key,
                };
                *last = (last.0 + 1, receipt.digest().unwrap());
                let signed = SignedReceipt::sign(receipt, &self.instance).unwrap();
                ServingAnswer::Receipt {
                    receipt: Base64::new(signed.receipt.to_canonical().unwrap()).unwrap(),
                    signature: Base64::new(signed.signature.to_vec()).unwrap(),
                }
            }
        }
    }
}

/// Paths of both sockets in a directory of their own.
pub(crate) fn sockets() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (attester, engine) = (directory.path().join("attester.sock"), directory.path().join("engine.sock"));
    (directory, attester, engine)
}
