// SPDX-License-Identifier: Apache-2.0
//! Who may ask a model, and how much (`docs/protocol.md`, "Tenants"): the owner of the model writes it, the attestation
//! service seals it to guests together with the model's key.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{CanonicalError, Document, ModelId, Sha256Digest, canonical};

/// The tenants of a model (`chrysalis/tenants/v1`). It holds no API key, only what tells one: who reads it can't ask.
///
/// It says what a guest allows by key. That the keys are with those whom the owner means is for the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenants {
    /// `chrysalis/tenants/v1`.
    pub schema: String,
    /// The model that they may ask, whatever its labels: a document for another identity is refused.
    pub model: ModelId,
    /// At most [`MAX_TENANTS`], in the order of their ids. Without one, nobody may ask.
    pub tenants: Vec<Tenant>,
}

/// A tenant. What has no limit is not limited by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// What the owner calls it: 1 to [`MAX_ID`] of `a`–`z`, `0`–`9`, `-`, `_` and `.`. No guest shows it to anybody.
    pub id: String,
    /// SHA-256 of its API keys, 1 to [`MAX_KEYS`], sorted: two while one takes the place of the other.
    pub keys: Vec<Sha256Digest>,
    /// Largest `max_tokens` of a request, and most tokens of an answer of one that names none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_tokens: Option<u32>,
    /// Requests that are answered at the same time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requests_at_once: Option<u32>,
    /// Requests in a minute.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute, of prompts and answers together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_minute: Option<u32>,
}

/// The rule that a document of tenants breaks. No text holds an id or a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantsError {
    /// Not canonical, too large, ….
    #[error(transparent)]
    Document(#[from] CanonicalError),
    /// A field breaks its rule.
    #[error("{field} must be {rule}")]
    Field {
        /// The field, with its place.
        field: String,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Document for Tenants {
    const SCHEMA: &'static str = "chrysalis/tenants/v1";
    const MAX_BYTES: usize = 256 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Tenants {
    /// Reads the canonical document of a model's tenants, and checks every rule.
    ///
    /// # Errors
    /// [`TenantsError`]; one for another model is among them.
    pub fn read(bytes: &[u8], model: &ModelId) -> Result<Self, TenantsError> {
        let document = Self::from_canonical(bytes)?;
        document.check(model)?;
        Ok(document)
    }

    /// The canonical bytes of what somebody wrote as JSON in any form: any order of fields, with white space. The lists are
    /// sorted.
    ///
    /// # Errors
    /// [`TenantsError`].
    pub fn canonical_of(json: &[u8], model: &ModelId) -> Result<Vec<u8>, TenantsError> {
        let mut document: Self = canonical::from_any_form(json, Self::MAX_BYTES)?;
        if document.schema != Self::SCHEMA {
            return Err(CanonicalError::Schema { expected: Self::SCHEMA }.into());
        }
        document.tenants.iter_mut().for_each(|tenant| tenant.keys.sort_unstable());
        document.tenants.sort_by(|a, b| a.id.cmp(&b.id));
        document.check(model)?;
        Ok(document.to_canonical()?)
    }

    fn check(&self, model: &ModelId) -> Result<(), TenantsError> {
        let rule = |holds: bool, field: &dyn Fn() -> String, rule: &'static str| {
            if holds { Ok(()) } else { Err(TenantsError::Field { field: field(), rule }) }
        };
        let is_of_model = self.model.identity() == model.identity();
        rule(is_of_model, &|| "model".to_owned(), "the model that the document is used for")?;
        rule(self.tenants.len() <= MAX_TENANTS, &|| "tenants".to_owned(), "at most 1024 tenants")?;
        let mut last: Option<&str> = None;
        let mut digests = BTreeSet::new();
        for (index, tenant) in self.tenants.iter().enumerate() {
            let Tenant { id, keys, max_tokens, requests_at_once, requests_per_minute, tokens_per_minute } = tenant;
            let at = |name: &str| format!("tenants[{index}].{name}");
            let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
            let well_formed = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(plain);
            rule(well_formed, &|| at("id"), "1 to 32 of a-z, 0-9, -, _ and .")?;
            rule(last.is_none_or(|last| last < id.as_str()), &|| at("id"), "behind the one before, in order")?;
            last = Some(id);
            let in_order = keys.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
            rule((1..=MAX_KEYS).contains(&keys.len()) && in_order, &|| at("keys"), "one digest, or two in order")?;
            rule(keys.iter().all(|key| digests.insert(*key)), &|| at("keys"), "of this tenant alone")?;
            for (name, limit) in [
                ("max_tokens", max_tokens),
                ("requests_at_once", requests_at_once),
                ("requests_per_minute", requests_per_minute),
                ("tokens_per_minute", tokens_per_minute),
            ] {
                let fits = limit.is_none_or(|limit| (1..=MAX_LIMIT).contains(&limit));
                rule(fits, &|| at(name), "from 1 to 1000000000, or absent")?;
            }
        }
        Ok(())
    }
}

/// Most tenants of a model.
pub const MAX_TENANTS: usize = 1024;
/// Most keys of a tenant.
pub const MAX_KEYS: usize = 2;
/// Most bytes of an id.
pub const MAX_ID: usize = 32;
/// Largest number of a limit.
pub const MAX_LIMIT: u32 = 1_000_000_000;
/// How API keys begin that the owner's tool makes; 43 characters of base64url follow, 256 bits.
pub const API_KEY_PREFIX: &str = "sk-chrysalis-";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blake3Digest;

    fn model() -> ModelId {
        ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()
    }

    fn tenant(id: &str, keys: &[&[u8]]) -> Tenant {
        let mut keys: Vec<_> = keys.iter().map(|key| Sha256Digest::of(key)).collect();
        keys.sort_unstable();
        Tenant {
            id: id.to_owned(),
            keys,
            max_tokens: None,
            requests_at_once: Some(2),
            requests_per_minute: None,
            tokens_per_minute: Some(MAX_LIMIT),
        }
    }

    fn document(tenants: Vec<Tenant>) -> Tenants {
        Tenants { schema: Tenants::SCHEMA.to_owned(), model: model(), tenants }
    }

    fn broken(document: &Tenants) -> String {
        Tenants::read(&document.to_canonical().unwrap(), &model()).unwrap_err().to_string()
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        for good in [document(vec![]), document(vec![tenant("a", &[b"1"]), tenant("b-2", &[b"2", b"3"])])] {
            assert_eq!(Tenants::read(&good.to_canonical().unwrap(), &model()), Ok(good));
        }
    }

    #[test]
    fn every_rule_is_named_with_its_place_and_no_value() {
        let mut unsorted = tenant("a", &[b"1", b"2"]);
        unsorted.keys.reverse();
        let limit = |change: fn(&mut Tenant)| {
            let mut tenant = tenant("a", &[b"1"]);
            change(&mut tenant);
            document(vec![tenant])
        };
        for (bad, field) in [
            (document(vec![tenant("", &[b"1"])]), "tenants[0].id"),
            (document(vec![tenant("A", &[b"1"])]), "tenants[0].id"),
            (document(vec![tenant(&"a".repeat(MAX_ID + 1), &[b"1"])]), "tenants[0].id"),
            (document(vec![tenant("b", &[b"1"]), tenant("a", &[b"2"])]), "tenants[1].id"),
            (document(vec![tenant("a", &[b"1"]), tenant("a", &[b"2"])]), "tenants[1].id"),
            (document(vec![tenant("a", &[])]), "tenants[0].keys"),
            (document(vec![tenant("a", &[b"1", b"2", b"3"])]), "tenants[0].keys"),
            (document(vec![tenant("a", &[b"1", b"1"])]), "tenants[0].keys"),
            (document(vec![unsorted]), "tenants[0].keys"),
            (document(vec![tenant("a", &[b"1"]), tenant("b", &[b"1", b"2"])]), "tenants[1].keys"),
            (limit(|tenant| tenant.max_tokens = Some(0)), "tenants[0].max_tokens"),
            (limit(|tenant| tenant.requests_at_once = Some(0)), "tenants[0].requests_at_once"),
            (limit(|tenant| tenant.requests_per_minute = Some(0)), "tenants[0].requests_per_minute"),
            (limit(|tenant| tenant.tokens_per_minute = Some(MAX_LIMIT + 1)), "tenants[0].tokens_per_minute"),
        ] {
            let error = broken(&bad);
            assert!(error.starts_with(&format!("{field} must be ")), "{error}");
        }
        let named = |revision: &str, identity: &[u8]| Tenants {
            model: ModelId::new("m", revision, Blake3Digest::of(identity)).unwrap(),
            ..document(vec![])
        };
        assert!(broken(&named("1", b"other")).starts_with("model must be"), "a document of another model");
        assert!(
            Tenants::read(&named("2", b"m").to_canonical().unwrap(), &model()).is_ok(),
            "the same by another label"
        );
    }

    #[test]
    fn a_document_is_strict_and_bounded() {
        let good = String::from_utf8(document(vec![tenant("a", &[b"1"])]).to_canonical().unwrap()).unwrap();
        assert!(Tenants::read(good.as_bytes(), &model()).is_ok());
        for bad in [
            good.replace("\"id\"", "\"burst\":1,\"id\""),
            good.replace("tenants/v1", "tenants/v2"),
            good.replace("\"tenants\":[", "\"tenants\": ["),
            format!("{good} "),
            good.replace("\"id\":\"a\",", ""),
        ] {
            assert!(bad != good && Tenants::read(bad.as_bytes(), &model()).is_err(), "{bad}");
        }
        // As many as may be, with every field as long as it can be.
        let label = "m".repeat(64);
        let longest = |index: usize| Tenant {
            max_tokens: Some(MAX_LIMIT),
            requests_at_once: Some(MAX_LIMIT),
            requests_per_minute: Some(MAX_LIMIT),
            ..tenant(&format!("{index:0>32}"), &[&index.to_be_bytes()])
        };
        let model = ModelId::new(&label, &label, Blake3Digest::of(b"m")).unwrap();
        let mut most = Tenants { model: model.clone(), ..document((0..MAX_TENANTS).map(longest).collect()) };
        assert!(Tenants::read(&most.to_canonical().unwrap(), &model).is_ok());
        most.tenants.push(longest(MAX_TENANTS));
        let error = most.to_canonical().map(|bytes| Tenants::read(&bytes, &model).unwrap_err().to_string());
        assert_eq!(error.as_deref(), Ok("tenants must be at most 1024 tenants"));
        let large = format!("{good}{}", " ".repeat(Tenants::MAX_BYTES));
        let found = Tenants::read(large.as_bytes(), &self::model());
        assert!(matches!(found, Err(TenantsError::Document(CanonicalError::TooLarge { .. }))));
    }

    #[test]
    fn what_somebody_wrote_becomes_canonical() {
        let written = format!(
            "{{\n \"tenants\": [{{\"keys\": [\"{}\"], \"id\": \"b\"}}, {{\"id\": \"a\", \"keys\": [\"{}\"], \"max_tokens\": 7}}],
               \"schema\": \"chrysalis/tenants/v1\", \"model\": {} }}\n",
            Sha256Digest::of(b"2"),
            Sha256Digest::of(b"1"),
            serde_json::to_string(&model()).unwrap(),
        );
        let bytes = Tenants::canonical_of(written.as_bytes(), &model()).unwrap();
        let read = Tenants::read(&bytes, &model()).unwrap();
        assert_eq!((read.tenants[0].id.as_str(), read.tenants[0].max_tokens), ("a", Some(7)));
        assert_eq!(read.tenants[1].id, "b");
        for bad in [written.replace("max_tokens", "tokens"), written.replace("\"a\"", "\"b\""), "[]".to_owned()] {
            assert!(Tenants::canonical_of(bad.as_bytes(), &model()).is_err(), "{bad}");
        }
    }
}
