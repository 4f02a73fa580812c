// SPDX-License-Identifier: Apache-2.0
//! What is said inside a guest, to it, and by it.

use attested_channel::{
    CertificateEvidence, DeliveredReceipt, Receipt, SignedReceipt, certificate::OID_ARCS, receipt::Unset,
};
use attester_protocol::{
    ControlAnswer, ControlRequest, Failure, Outcome, Request, Response, ServingAnswer, ServingRequest, TlsSide,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use engine_protocol::{
    Bias, Command, Embed, Event, FinishReason, Form, Generate, Input, Message, ModelFacts, Prompt, Role, Sampling,
    Tenant, TokenLogprob, TokenLogprobs, Work,
};
use gpu_protocol::{GpuAnswer, GpuRequest};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ED25519};
use serde::Serialize;
use serde_json::{Value, json};
use types::{Base64, Document as _, FreshnessKind, Hex32, Sha256Digest, Sha384Digest, canonical};

use super::{Seed, model};

pub(super) fn all() -> Vec<Seed> {
    [bodies(), packs(), certificates(), frames(), streams()].into_iter().flatten().collect()
}

fn bodies() -> Vec<Seed> {
    let seed =
        |name, kind: &str, body: Value| Seed { target: "api", name, bytes: format!("{kind}{body}").into_bytes() };
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}});
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
    vec![
        seed(
            "chat",
            "c",
            json!({"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "é"}]}],
                "max_completion_tokens": 5, "temperature": 0.5, "seed": -1, "stop": ["x"], "n": 2, "logprobs": true, "top_logprobs": 3,
                "stream": true, "stream_options": {"include_usage": true}}),
        ),
        seed(
            "chat-tools",
            "c",
            json!({"model": "m", "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": false, "messages": [
                {"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "r"}]}),
        ),
        seed(
            "chat-schema",
            "c",
            json!({"model": "m", "messages": [{"role": "user", "content": "q"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}}),
        ),
        seed(
            "completion",
            "t",
            json!({"model": "m", "prompt": "p", "max_tokens": 3, "logprobs": 2, "stop": "x", "echo": false}),
        ),
        seed(
            "embeddings",
            "e",
            json!({"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
        ),
        seed("embeddings-tokens", "e", json!({"model": "m", "input": [[1, 2], [3]], "user": "u"})),
    ]
}

fn packs() -> Vec<Seed> {
    let seed = |name, bytes| Seed { target: "pack", name, bytes };
    // Segments of 128 bytes; the files have 0 and 250 bytes, in objects of 100.
    let lengths = [172, 56, 172, 172, 106];
    let digest = "00".repeat(32);
    let objects = (0..)
        .zip(lengths)
        .map(|(index, length): (u32, u32)| json!({"blake3": digest, "index": index, "length": length}));
    let index = json!({"schema": "chrysalis/pack/v1", "identity": digest, "key": {"id": "k", "version": 1}, "key_commitment": digest,
        "segment_size": 128, "objects": objects.collect::<Vec<_>>()});
    let files = [("config.json", 1, 0), ("weights/part-1.gguf", 2, 250)];
    let files =
        files.map(|(path, object, size)| json!({"blake3": digest, "object": object, "path": path, "size": size}));
    let manifest =
        json!({"schema": "chrysalis/model/v1", "name": "m", "revision": "1", "object_size": 100, "files": files});
    let index = canonical::to_bytes(&index).expect("JSON");
    let manifest = canonical::to_bytes(&manifest).expect("JSON");
    let len = u16::try_from(index.len()).expect("a short index").to_le_bytes();
    vec![
        seed("index", [b"i".as_slice(), &index].concat()),
        seed("manifest", [b"m".as_slice(), &len, &index, &manifest].concat()),
        seed("unchanged", b"c".to_vec()),
        seed("changed-and-changed-back", b"c\x00\x01\x05\x80\x00\x01\x05\x80\x02\x02\x00\x09\x05\x02\x02\x00".to_vec()),
    ]
}

fn certificates() -> Vec<Seed> {
    let seed = |name, bytes| Seed { target: "certificate", name, bytes };
    let evidence = CertificateEvidence {
        evidence: Sha256Digest::of(b"evidence"),
        quote: Base64::new(b"a quote that nobody looks at".to_vec()).expect("a short quote"),
    };
    let value = evidence.to_extension_value().expect("it fits");
    let key = SigningKey::from_bytes(&[22; 32]).to_pkcs8_der().expect("a key");
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key.as_bytes().into(), &PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new(vec!["guest".to_owned()]).expect("a name");
    params.custom_extensions = vec![CustomExtension::from_oid_content(&OID_ARCS, value.clone())];
    let certificate = params.self_signed(&key).expect("a certificate");
    vec![seed("guest", certificate.der().to_vec()), seed("extension", [b"x".as_slice(), &value].concat())]
}

/// A connection with these messages.
fn connection<T: Serialize>(who: u8, messages: &[T]) -> Vec<u8> {
    let frames =
        messages.iter().flat_map(|message| attester_protocol::frame::encode(message).expect("a short message"));
    std::iter::once(who).chain(frames).collect()
}

fn done<B>(id: u64, body: B) -> Response<B> {
    Response { id, outcome: Outcome::Done(body) }
}

fn frames() -> Vec<Seed> {
    let seed = |name, bytes| Seed { target: "frames", name, bytes };
    let some = Hex32::new([23; 32]);
    let control = [
        ControlRequest::Report {},
        ControlRequest::KeyReleaseEvidence { challenge: some, binding: some, hpke_key: some },
        ControlRequest::Seal {},
    ];
    let control_answers = [
        done(
            1,
            ControlAnswer::Report {
                mr_config_id: Sha384Digest::ZERO,
                spki_sha256: Sha256Digest::ZERO,
                instance_key: some,
            },
        ),
        Response { id: 2, outcome: Outcome::Failed(Failure::NotKeyRelease) },
        done(3, ControlAnswer::KeyReleaseEvidence { evidence: Base64::new(b"{}".to_vec()).expect("short") }),
    ];
    let serving = [
        ServingRequest::Identity {},
        ServingRequest::SignTls {
            key: Sha256Digest::ZERO,
            side: TlsSide::Server,
            scheme: 0x0807,
            message: Base64::new(vec![32; 64]).expect("short"),
        },
        ServingRequest::Prove { key: Sha256Digest::ZERO, kind: FreshnessKind::Tls, challenge: some, binding: some },
    ];
    let signature = Base64::new(vec![1; 64]).expect("64 bytes");
    let serving_answers = [
        done(1, ServingAnswer::TlsSignature { signature: signature.clone() }),
        done(2, ServingAnswer::Receipt { receipt: Base64::new(b"{}".to_vec()).expect("short"), signature }),
        Response { id: 3, outcome: Outcome::Failed(Failure::Busy) },
    ];
    let request = |body| Request { id: 7, body };
    vec![
        seed("control", connection(b'c', &control.map(|body| Request { id: 1, body }))),
        seed("control-answers", connection(b'C', &control_answers)),
        seed("serving", connection(b's', &serving.map(request))),
        seed("serving-answers", connection(b'S', &serving_answers)),
        seed("commands", connection(b'e', &commands())),
        seed("events", connection(b'E', &events())),
        seed(
            "gpu",
            connection(b'g', &[GpuRequest::Collect { nonce: some, gpus: 1, switches: 0 }, GpuRequest::SetReady {}]),
        ),
        seed("gpu-answers", connection(b'G', &[GpuAnswer::Ready {}])),
        seed("drain", b"ddrain 1\n".to_vec()),
        seed("header-ipv4", header("192.0.2.1:50000", "198.51.100.4:443")),
        seed("header-ipv6", header("[2001:db8::1]:50000", "[2001:db8::2]:443")),
        seed("header-local", [b"p".as_slice(), &proxy_protocol::LOCAL].concat()),
    ]
}

/// A client's connection as a proxy begins it, and the client's first byte.
fn header(client: &str, listening: &str) -> Vec<u8> {
    let [client, listening] = [client, listening].map(|text| text.parse().expect("an address"));
    [b"p".as_slice(), &proxy_protocol::header(client, listening), &[22]].concat()
}

fn commands() -> Vec<Command> {
    let generate = Generate {
        id: 1,
        tenant: Tenant([3; 32]),
        prompt: Prompt::Chat(vec![Message { role: Role::User, content: "é\n".to_owned() }]),
        choices: 2,
        max_tokens: Some(5),
        most_tokens: Some(9),
        logit_bias: vec![Bias { token: 1, bias: -0.5 }, Bias { token: 7, bias: 100.0 }],
        sampling: Sampling {
            temperature: 0.5,
            top_p: 1.0,
            frequency_penalty: -0.25,
            presence_penalty: 0.0,
            seed: u64::MAX,
        },
        stop: vec!["x".to_owned()],
        logprobs: Some(2),
        form: Form::JsonSchema("{}".to_owned()),
    };
    let embed = Embed { id: 2, inputs: vec![Input::Text("t".to_owned()), Input::Tokens(vec![1, 2])] };
    vec![
        Command::Generate(generate),
        Command::Embed(embed),
        Command::Cancel { id: 1 },
        Command::Forget { tenant: Tenant([3; 32]) },
    ]
}

fn events() -> Vec<Event> {
    let token = TokenLogprob { bytes: b"a".to_vec(), logprob: -0.5 };
    let logprobs = vec![TokenLogprobs { token: token.clone(), top: vec![token] }];
    vec![
        Event::Hello {
            version: engine_protocol::PROTOCOL_VERSION,
            model: ModelFacts { context: 512, vocab: 1000, work: Work::Generate },
        },
        Event::Started { id: 1, prompt_tokens: 3 },
        Event::Token { id: 1, choice: 0, text: "a".to_owned(), logprobs },
        Event::Ended { id: 1, choice: 0, reason: FinishReason::Stop },
        Event::Done { id: 1, prompt_tokens: 3, cached_tokens: 0, completion_tokens: 1 },
        Event::Vector { id: 2, index: 0, values: vec![0.1, -1.5e-7, 3.0] },
        Event::Failed { id: 3, code: engine_protocol::Failure::ContextOverflow, prompt_tokens: Some(900) },
    ]
}

fn streams() -> Vec<Seed> {
    let seed = |name, bytes| Seed { target: "stream", name, bytes };
    let event = |data: Value| format!("data: {data}\n\n");
    let delta = |index: u32, delta: Value, reason: Value| {
        event(json!({"id": "a", "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}))
    };
    let text = [
        delta(0, json!({"role": "assistant", "content": ""}), Value::Null),
        delta(0, json!({"content": "Hé"}), Value::Null),
        delta(1, json!({"content": "b"}), json!("length")),
        delta(0, json!({}), json!("stop")),
        event(json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})),
        "data: [DONE]\n\n".to_owned(),
        format!(": chrysalis-receipt {}\n\n", STANDARD.encode(receipt())),
    ];
    let calls = [
        delta(
            0,
            json!({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}]}),
            Value::Null,
        ),
        delta(0, json!({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}), json!("tool_calls")),
        "data: [DONE]\n\n".to_owned(),
    ];
    let message = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
    let whole = json!({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}, {"index": 1, "text": "t", "finish_reason": "stop"}]});
    let vectors = json!({"data": [{"index": 0, "embedding": [0.5, -1.0]}, {"index": 1, "embedding": "AAAAPwAAgL8="}]});
    vec![
        seed("text", text.concat().into_bytes()),
        seed("calls", calls.concat().into_bytes()),
        seed("whole", format!("w{whole}").into_bytes()),
        seed("vectors", format!("w{vectors}").into_bytes()),
    ]
}

fn receipt() -> Vec<u8> {
    let digest = Sha256Digest::of(b"x");
    let receipt = Receipt {
        schema: Receipt::SCHEMA.to_owned(),
        sequence: 0,
        previous: Sha256Digest::ZERO,
        request: digest,
        response: digest,
        model: model(),
        launch: digest,
        prompt_tokens: 1,
        completion_tokens: 2,
        price_unit: Unset,
        payment_channel: Unset,
        cumulative_amount: Unset,
        channel: digest,
        evidence: digest,
        instance_key: Hex32::new([24; 32]),
    };
    let SignedReceipt { receipt, signature } = SignedReceipt { receipt, signature: [1; 64] };
    canonical::to_bytes(&DeliveredReceipt { receipt, signature, salt: Hex32::new([25; 32]) }).expect("JSON")
}
