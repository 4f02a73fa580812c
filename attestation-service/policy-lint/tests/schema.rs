// SPDX-License-Identifier: Apache-2.0
//! The published schema and the reader of policies accept the same documents: policies made from the types, and documents
//! that were changed at random.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use appraise::{AcpiRule, Claims, Policy, RuleEngine, RuleSource};
use gpu_verify::{Architecture, GpuPolicy, Mode, Requirement, Topology};
use jsonschema::Validator;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use tdx_spec::QuoteVersion;
use tdx_verify::{AcceptedTcb, PlatformPolicy, TcbStatus};
use types::{Blake3Digest, Hex32, ModelId, Sha256Digest};

thread_local! {
    static SCHEMA: Validator = jsonschema::draft202012::new(&serde_json::from_str(policy_lint::SCHEMA).unwrap()).unwrap();
}

fn schema_accepts(document: &Value) -> bool {
    SCHEMA.with(|schema| schema.is_valid(document))
}

/// Both verdicts about a document.
fn verdicts(document: &Value) -> (bool, bool) {
    (schema_accepts(document), Policy::from_json(document.to_string().as_bytes()).is_ok())
}

#[test]
fn the_schema_is_one() {
    let schema: Value = serde_json::from_str(policy_lint::SCHEMA).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    assert_eq!(schema["properties"]["schema"]["const"], Policy::SCHEMA);
    assert_eq!(schema["$defs"]["gpu"]["properties"]["schema"]["const"], GpuPolicy::SCHEMA);
    assert_eq!(schema["$defs"]["rules"]["properties"]["claims"]["const"], Claims::SCHEMA);
    assert_eq!(schema["$defs"]["rules"]["properties"]["source"]["maxLength"], appraise::MAX_RULES);
    assert!(schema["description"].as_str().unwrap().contains(&appraise::MAX_POLICY_LEN.to_string()));
}

fn digest() -> impl Strategy<Value = Sha256Digest> {
    any::<[u8; 4]>().prop_map(|seed| Sha256Digest::of(&seed))
}

fn model() -> impl Strategy<Value = ModelId> {
    ("[A-Za-z0-9._-]{1,64}", "[A-Za-z0-9._-]{1,64}", any::<u8>())
        .prop_map(|(name, revision, seed)| ModelId::new(&name, &revision, Blake3Digest::of(&[seed])).unwrap())
}

fn platform() -> impl Strategy<Value = PlatformPolicy> {
    use TcbStatus as S;
    let status = select(vec![
        S::UpToDate,
        S::SwHardeningNeeded,
        S::ConfigurationNeeded,
        S::ConfigurationAndSwHardeningNeeded,
        S::OutOfDate,
        S::OutOfDateConfigurationNeeded,
        S::TdRelaunchAdvised,
        S::TdRelaunchAdvisedConfigurationNeeded,
    ]);
    let tcb = (status, option::of(any::<u64>())).prop_map(|(status, until)| AcceptedTcb { status, until });
    let versions = option::of(vec(select(vec![QuoteVersion::V4, QuoteVersion::V5]), 0..3));
    (vec(tcb, 0..3), vec(".{0,20}", 0..3), any::<u32>(), option::of(vec(digest(), 0..3)), versions).prop_map(
        |(tcb, refused_advisories, min_tcb_evaluation_data_number, platforms, quote_versions)| PlatformPolicy {
            tcb,
            refused_advisories,
            min_tcb_evaluation_data_number,
            platforms,
            quote_versions,
        },
    )
}

fn gpu() -> impl Strategy<Value = GpuPolicy> {
    use Architecture as A;
    let requirement = || select(vec![Requirement::Required, Requirement::Optional]);
    let lists = (
        vec(
            prop_oneof![8 => Just(A::Hopper), 8 => Just(A::Blackwell), 1 => Just(A::Nvswitch), 1 => Just(A::Unknown)],
            0..3,
        ),
        vec(select(vec![Mode::Spt, Mode::Mpt, Mode::Ppcie]), 0..3),
        vec("[0-9.]{0,9}", 0..2),
        vec("[0-9.]{0,9}", 0..2),
    );
    let counts = (
        option::of(prop_oneof![Just(0), Just(1), Just(8), any::<u32>()]),
        select(vec![Topology::Independent, Topology::Ppcie8]),
    );
    let required = (requirement(), requirement(), requirement(), requirement(), requirement());
    (lists, required, counts).prop_map(
        |(
            (architectures, modes, drivers, vbioses),
            (mode_in_report, driver_state, fwid, revocation, nonce),
            (gpus, topology),
        )| GpuPolicy {
            schema: GpuPolicy::SCHEMA.to_owned(),
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
        },
    )
}

fn rules() -> impl Strategy<Value = RuleSource> {
    let claims = prop_oneof![4 => Just(Claims::SCHEMA.to_owned()), 1 => "[a-z/0-9]{0,20}"];
    let source = prop_oneof![8 => ".{0,40}", 1 => Just("é".repeat(16384)), 1 => Just("é".repeat(16385))];
    (claims, source).prop_map(|(claims, source)| RuleSource { engine: RuleEngine::Cedar4, claims, source })
}

/// Any policy that can be written down, also those that are refused.
fn policy() -> impl Strategy<Value = Policy> {
    let schema = prop_oneof![16 => Just(Policy::SCHEMA.to_owned()), 1 => "[a-z/0-9]{0,20}"];
    let lists = (
        option::of(vec(digest(), 0..3)),
        vec(digest(), 0..3),
        option::of(vec(model(), 0..3)),
        option::of(vec(digest(), 0..3)),
        option::of(vec(any::<[u8; 32]>().prop_map(Hex32::new), 0..3)),
    );
    let acpi = select(vec![AcpiRule::Published, AcpiRule::FromEventLog]);
    (schema, platform(), lists, acpi, option::of(gpu()), option::weighted(0.2, rules())).prop_map(
        |(schema, platform, (releases, revoked_releases, models, service_pins, instances), acpi, gpu, rules)| Policy {
            schema,
            platform,
            releases,
            revoked_releases,
            models,
            service_pins,
            acpi,
            instances,
            gpu,
            rules,
        },
    )
}

/// A policy that is accepted and has every part, to be changed.
fn whole() -> Value {
    let policy = Policy {
        schema: Policy::SCHEMA.to_owned(),
        platform: PlatformPolicy {
            tcb: vec![AcceptedTcb { status: TcbStatus::OutOfDate, until: Some(7) }],
            refused_advisories: vec!["INTEL-SA-00837".to_owned()],
            min_tcb_evaluation_data_number: 17,
            platforms: Some(vec![Sha256Digest::of(b"p")]),
            quote_versions: Some(vec![QuoteVersion::V5]),
        },
        releases: Some(vec![Sha256Digest::of(b"r")]),
        revoked_releases: vec![Sha256Digest::of(b"q")],
        models: Some(vec![ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()]),
        service_pins: Some(vec![Sha256Digest::of(b"s")]),
        acpi: AcpiRule::FromEventLog,
        instances: Some(vec![Hex32::new([7; 32])]),
        gpu: Some(GpuPolicy::strict()),
        rules: Some(RuleSource {
            engine: RuleEngine::Cedar4,
            claims: Claims::SCHEMA.to_owned(),
            source: "permit(principal, action, resource);".to_owned(),
        }),
    };
    serde_json::to_value(policy).unwrap()
}

/// Pointers to every value of a document, itself included.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), all)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), all));
        }
        _ => {}
    }
}

/// What may come in the place of a value, or into it. Numbers are whole and written so.
fn replacements(old: &Value) -> Vec<Value> {
    let mut all = vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(1),
        json!(8),
        json!(-1),
        json!(u32::MAX),
        json!(u64::from(u32::MAX) + 1),
        json!(u64::MAX),
        json!(""),
        json!("a".repeat(64)),
        json!("A".repeat(64)),
        json!("a".repeat(65)),
        json!("ppcie8"),
        json!("optional"),
        json!("Revoked"),
        json!("UpToDate"),
        json!("é"),
        json!("a\n"),
        json!([]),
        json!({}),
        json!([old]),
        json!([old, old]),
        json!({"schema": old}),
    ];
    match old {
        Value::Object(fields) => {
            for name in fields.keys() {
                let mut fewer = fields.clone();
                fewer.remove(name);
                all.push(Value::Object(fewer));
            }
            let mut more: Map<String, Value> = fields.clone();
            more.insert("allow_debug".to_owned(), json!(true));
            all.push(Value::Object(more));
            // Serde's other form of a structure: its values in a list.
            all.push(Value::Array(fields.values().cloned().collect()));
        }
        Value::String(text) => {
            all.push(json!(format!("{text}0")));
            all.push(json!(format!("{text}\n")));
            all.push(json!(text.to_uppercase()));
            all.push(json!(text.chars().skip(1).collect::<String>()));
        }
        _ => {}
    }
    all
}

/// Every value of the document replaced by each of many others: the two agree on all of them.
#[test]
fn they_agree_on_every_change_of_a_whole_policy() {
    let whole = whole();
    assert_eq!(verdicts(&whole), (true, true));
    let mut all = Vec::new();
    pointers(&whole, "", &mut all);
    let (mut accepted, mut refused) = (0, 0);
    for pointer in all {
        for value in replacements(whole.pointer(&pointer).unwrap()) {
            let mut changed = whole.clone();
            *changed.pointer_mut(&pointer).unwrap() = value;
            let (schema, reader) = verdicts(&changed);
            assert_eq!(schema, reader, "{pointer}: {changed}");
            if reader { accepted += 1 } else { refused += 1 }
        }
    }
    assert!(accepted > 50 && refused > 500, "{accepted} accepted, {refused} refused");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What the types can hold: a policy is written, and both say the same of it.
    #[test]
    fn they_agree_on_policies_of_the_types(policy in policy()) {
        let (schema, reader) = verdicts(&serde_json::to_value(&policy).unwrap());
        prop_assert_eq!(schema, reader, "{:?}", policy);
    }

    /// Two changes at once.
    #[test]
    fn they_agree_on_changed_documents(policy in policy(), picks in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4)) {
        let mut document = serde_json::to_value(&policy).unwrap();
        for (place, choice) in picks {
            let mut all = Vec::new();
            pointers(&document, "", &mut all);
            let pointer = place.get(&all).clone();
            let value = choice.get(&replacements(document.pointer(&pointer).unwrap())).clone();
            *document.pointer_mut(&pointer).unwrap() = value;
        }
        let (schema, reader) = verdicts(&document);
        prop_assert_eq!(schema, reader, "{}", document);
    }
}
