// SPDX-License-Identifier: Apache-2.0
//! Exports, read back by decoders that share nothing with the encoder, field by field as in the CDDL of
//! draft-ietf-rats-corim (`cddl/*.cddl`) and in trustee's extractors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ciborium::Value;
use coset::{CborSerializable as _, CoseSign1, TaggedCborSerializable as _};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use p256::pkcs8::DecodePublicKey as _;
use release::export::{ExportError, corim, rvps};
use release::{Hardware, ReleaseKey, ShapeRegisters, Statement};
use types::{Device, MachineShape, QemuVersion, Sha256Digest, Sha384Digest, shape::ShapeFacts};

const NOW: u64 = 1_750_000_000;

fn statement() -> Statement {
    let shape = |vcpus, memory_mib| {
        let (qemu, devices) = (QemuVersion { major: 10, minor: 1 }, vec![Device::ConfigDisk, Device::Vsock]);
        MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits: 46, qemu, devices }).unwrap()
    };
    sample_release::statement(Hardware::Simulated, &[shape(2, 1024), shape(8, 4096)], NOW)
}

fn digest(statement: &Statement) -> Sha256Digest {
    Sha256Digest::of(&types::canonical::to_bytes(statement).unwrap())
}

/// The four registers of a row, as the release lists them.
fn lists(row: &ShapeRegisters) -> [(&str, &[Sha384Digest]); 4] {
    [("mr_td", &row.mr_td), ("rtmr_0", &row.rtmr_0), ("rtmr_1", &row.rtmr_1), ("rtmr_2", &row.rtmr_2)]
}

#[test]
fn rvps_gets_every_value_once_under_trustees_names() {
    let statement = statement();
    let bytes = rvps::message(&statement.predicate).unwrap();
    let message: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&message["version"], &message["type"]), (&"0.1.0".into(), &"sample".into()));
    let payload = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
    // As trustee's `Provenance`: names to lists.
    let found: BTreeMap<String, Vec<String>> = serde_json::from_slice(&payload).unwrap();
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in &statement.predicate.registers {
        for (name, values) in lists(row) {
            expected.entry(name.to_owned()).or_default().extend(values.iter().map(ToString::to_string));
        }
    }
    let expected: BTreeMap<_, Vec<_>> = expected.into_iter().map(|(k, v)| (k, v.into_iter().collect())).collect();
    assert_eq!(found, expected);
    assert!(found["rtmr_0"].len() > found["rtmr_2"].len(), "shapes differ in RTMR0, not in RTMR2");
    assert!(found.values().flatten().all(|value| value.len() == 96 && value.bytes().all(|b| b.is_ascii_hexdigit())));
    assert_eq!(rvps::message(&statement.predicate).unwrap(), bytes);
}

/// The value of an integer key; maps have no other entries than the expected ones.
fn field(map: &Value, key: i64) -> &Value {
    let found = map.as_map().unwrap().iter().find(|(k, _)| k.as_integer() == Some(key.into()));
    &found.unwrap_or_else(|| panic!("no key {key} in {map:?}")).1
}

fn keys(map: &Value) -> Vec<i64> {
    map.as_map().unwrap().iter().map(|(key, _)| i64::try_from(key.as_integer().unwrap()).unwrap()).collect()
}

fn tag(value: &Value, tag: u64) -> &Value {
    match value {
        Value::Tag(found, inner) if *found == tag => inner,
        other => panic!("no tag {tag}: {other:?}"),
    }
}

fn decode(bytes: &[u8]) -> Value {
    let mut rest = bytes;
    let value = ciborium::from_reader(&mut rest).unwrap();
    assert!(rest.is_empty(), "trailing bytes");
    value
}

/// `class-id` of the environment, and each register's value by name.
type State = (Vec<u8>, BTreeMap<String, Vec<u8>>);

/// Reads a `tagged-unsigned-corim-map`; gives each state as (class-id, registers).
fn states(bytes: &[u8], statement: &Statement) -> Vec<State> {
    let document = decode(bytes);
    let corim = tag(&document, 501);
    assert_eq!(keys(corim), [0, 1, 3, 4]);
    let id = format!("sha256:{}", digest(statement));
    assert_eq!(field(corim, 0).as_text(), Some(id.as_str()));
    assert_eq!(tag(field(corim, 3), 32).as_text(), Some(corim::PROFILE));
    let validity = field(corim, 4);
    let time = |key| u64::try_from(tag(field(validity, key), 1).as_integer().unwrap()).unwrap();
    let expected = statement.predicate.validity;
    assert_eq!((keys(validity), time(0), time(1)), (vec![0, 1], expected.not_before, expected.not_after));
    let tags = field(corim, 1).as_array().unwrap();
    assert_eq!(tags.len(), 1);
    let comid = decode(tag(&tags[0], 506).as_bytes().unwrap());
    assert_eq!((keys(&comid), keys(field(&comid, 1)), keys(field(&comid, 4))), (vec![1, 4], vec![0], vec![0]));
    assert_eq!(field(field(&comid, 1), 0).as_text(), Some(id.as_str()));
    field(field(&comid, 4), 0).as_array().unwrap().iter().map(state).collect()
}

fn state(triple: &Value) -> State {
    let [environment, claims] = triple.as_array().unwrap().as_slice() else { panic!("{triple:?}") };
    assert_eq!(keys(environment), [0]);
    let class = field(environment, 0);
    assert_eq!((keys(class), field(class, 1).as_text()), (vec![0, 1, 2], Some(corim::VENDOR)));
    assert_eq!(field(class, 2).as_text(), Some("sample (hardware simulated)"));
    let mut registers = BTreeMap::new();
    for measurement in claims.as_array().unwrap() {
        assert_eq!((keys(measurement), keys(field(measurement, 1))), (vec![0, 1], vec![2]));
        let digests = field(field(measurement, 1), 2).as_array().unwrap();
        let [algorithm, value] = digests[0].as_array().unwrap().as_slice() else { panic!("{digests:?}") };
        assert_eq!((digests.len(), algorithm.as_integer()), (1, Some(7.into())), "one SHA-384 digest");
        let name = field(measurement, 0).as_text().unwrap().to_owned();
        assert!(registers.insert(name, value.as_bytes().unwrap().clone()).is_none(), "a key stands twice");
    }
    (tag(field(class, 0), 560).as_bytes().unwrap().clone(), registers)
}

#[test]
fn a_corim_holds_exactly_the_states_of_the_release() {
    let mut statement = statement();
    let row = &mut statement.predicate.registers[0];
    row.rtmr_0.push(Sha384Digest::of(b"another generation"));
    row.rtmr_2.push(Sha384Digest::of(b"another order of words"));
    let bytes = corim::unsigned(&statement.predicate, &digest(&statement)).unwrap();
    let found = states(&bytes, &statement);
    let mut expected = Vec::new();
    for row in &statement.predicate.registers {
        let shape = types::canonical::to_bytes(&row.shape).unwrap();
        for (a, b) in row.mr_td.iter().flat_map(|a| row.rtmr_0.iter().map(move |b| (a, b))) {
            for (c, d) in row.rtmr_1.iter().flat_map(|c| row.rtmr_2.iter().map(move |d| (c, d))) {
                let values = [("mr_td", a), ("rtmr_0", b), ("rtmr_1", c), ("rtmr_2", d)];
                let values = values.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
                expected.push((shape.clone(), BTreeMap::from(values)));
            }
        }
    }
    assert!(expected.len() > statement.predicate.registers.len() + 2, "some registers have several values");
    assert_eq!(found, expected);
}

/// Deterministic (RFC 8949, section 4.2.1): the same bytes each time, and what another encoder makes of the same data,
/// given keys in order. Definite lengths and shortest heads follow.
#[test]
fn the_encoding_is_deterministic() {
    let statement = statement();
    let make = || corim::unsigned(&statement.predicate, &digest(&statement)).unwrap();
    let bytes = make();
    assert_eq!(make(), bytes);
    let mut again = Vec::new();
    ciborium::into_writer(&decode(&bytes), &mut again).unwrap();
    assert_eq!(again, bytes);
    let document = decode(&bytes);
    let mut seen = 0;
    check_order(&document, &mut seen);
    check_order(
        &decode(tag(&field(tag(&document, 501), 1).as_array().unwrap()[0], 506).as_bytes().unwrap()),
        &mut seen,
    );
    assert!(seen > 10, "{seen} maps");
}

fn check_order(value: &Value, seen: &mut usize) {
    match value {
        Value::Map(fields) => {
            *seen += 1;
            let encoded: Vec<_> = fields
                .iter()
                .map(|(key, _)| {
                    let mut bytes = Vec::new();
                    ciborium::into_writer(key, &mut bytes).unwrap();
                    bytes
                })
                .collect();
            assert!(encoded.windows(2).all(|pair| pair[0] < pair[1]), "{fields:?}");
            fields.iter().for_each(|(_, value)| check_order(value, seen));
        }
        Value::Array(items) => items.iter().for_each(|item| check_order(item, seen)),
        Value::Tag(_, inner) => check_order(inner, seen),
        _ => {}
    }
}

#[test]
fn a_signed_corim_is_a_cose_sign1_that_others_verify() {
    let statement = statement();
    let key = ReleaseKey::from_random(&[7; 32]).unwrap();
    let bytes = corim::signed(&statement.predicate, &digest(&statement), &key).unwrap();
    assert_eq!(corim::signed(&statement.predicate, &digest(&statement), &key).unwrap(), bytes);
    let message = CoseSign1::from_tagged_slice(&bytes).unwrap();
    let public = VerifyingKey::from_public_key_der(&key.public().to_der().unwrap()).unwrap();
    let verify = |message: &CoseSign1| {
        message.verify_signature(b"", |signature, data| public.verify(data, &Signature::from_slice(signature).unwrap()))
    };
    verify(&message).expect("the release key's signature");
    assert_eq!(message.payload.as_deref(), Some(&*corim::unsigned(&statement.predicate, &digest(&statement)).unwrap()));
    assert!(!states(message.payload.as_ref().unwrap(), &statement).is_empty());

    let header = &message.protected.header;
    assert_eq!(header.alg, Some(coset::Algorithm::Assigned(coset::iana::Algorithm::ES256)));
    assert_eq!(header.content_type, Some(coset::ContentType::Text("application/rim+cbor".to_owned())));
    assert_eq!(header.key_id, Sha256Digest::of(&key.public().to_der().unwrap()).as_bytes());
    let claims = &header.rest.iter().find(|(label, _)| *label == coset::Label::Int(15)).expect("CWT claims").1;
    let number = |key| u64::try_from(field(claims, key).as_integer().unwrap()).unwrap();
    assert_eq!(
        (number(4), number(5)),
        (statement.predicate.validity.not_after, statement.predicate.validity.not_before)
    );
    assert_eq!(field(claims, 1).as_text(), Some(&*format!("chrysalis release key {}", key.public().hint().unwrap())));
    assert_eq!(keys(claims), [1, 2, 4, 5]);
    // `corim-meta` must say the same as the claims.
    let meta = &header.rest.iter().find(|(label, _)| *label == coset::Label::Int(8)).expect("corim-meta").1;
    let meta = decode(meta.as_bytes().unwrap());
    assert_eq!(field(field(&meta, 0), 0), field(claims, 1));
    let time = |key| tag(field(field(&meta, 1), key), 1).clone();
    assert_eq!((&time(0), &time(1), keys(&meta)), (field(claims, 5), field(claims, 4), vec![0, 1]));

    let mut changed = message.clone();
    *changed.payload.as_mut().unwrap().last_mut().unwrap() ^= 1;
    assert!(verify(&changed).is_err());
    let mut other = CoseSign1::from_slice(&message.to_vec().unwrap()).unwrap();
    other.signature[5] ^= 1;
    assert!(verify(&other).is_err());
}

#[test]
fn too_many_combinations_are_refused() {
    let mut statement = statement();
    let many: Vec<_> = (0..16_u8).map(|n| Sha384Digest::of(&[n])).collect();
    let row = &mut statement.predicate.registers[0];
    (row.mr_td, row.rtmr_0, row.rtmr_1) = (many.clone(), many.clone(), many.clone());
    row.rtmr_2.truncate(1);
    let release = Sha256Digest::of(b"any");
    let refused = corim::unsigned(&statement.predicate, &release);
    assert_eq!(refused, Err(ExportError::TooManyStates { max: corim::MAX_STATES }), "4096 and the second shape's");
    statement.predicate.registers.truncate(1);
    assert!(corim::unsigned(&statement.predicate, &release).is_ok());
    statement.predicate.registers[0].rtmr_2 = many;
    assert!(corim::unsigned(&statement.predicate, &release).is_err());
}
