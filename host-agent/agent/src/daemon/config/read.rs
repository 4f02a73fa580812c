// SPDX-License-Identifier: Apache-2.0
//! From text to sections, with a path for whatever is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};
use types::Refusal;

use super::Config;
use crate::files;

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// All reasons that can be told apart, never none.
    pub(crate) fn load(path: &Path) -> Result<Self, Vec<Refusal>> {
        let unreadable = |detail: String| {
            vec![Refusal::new(
                "config_unreadable",
                &path.display().to_string(),
                detail,
                "name a readable file with --config",
            )]
        };
        let bytes = files::read_capped(path, MAX_BYTES).map_err(|error| unreadable(format!("{error:#}")))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".to_owned()))?;
        Self::parse(&text)
    }

    /// Reads text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Refusal>> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line =
                error.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
            vec![Refusal::new("config_syntax", &format!("line {line}"), error.message(), "correct the TOML")]
        })?;
        let mut reader = Reader { reasons: Vec::new() };
        let sections = (
            reader.section(&mut table, "agent"),
            reader.section(&mut table, "cache"),
            reader.section(&mut table, "hardware"),
            reader.optional(&mut table, "simulate"),
            reader.optional(&mut table, "tcb"),
            reader.named(&mut table, "buckets"),
            reader.named(&mut table, "models"),
            reader.named(&mut table, "releases"),
            reader.named(&mut table, "services"),
            reader.named(&mut table, "guests"),
        );
        for key in table.keys() {
            let rule = "the sections are agent, cache, hardware, simulate, tcb, buckets, models, releases, services and guests";
            reader.reasons.push(Refusal::new("config_unknown_field", key, rule, "remove it, or correct its name"));
        }
        let (Some(agent), Some(cache), Some(hardware), simulate, tcb, buckets, models, releases, services, named) =
            sections
        else {
            return Err(reader.reasons);
        };
        let mut guests = BTreeMap::new();
        for (name, guest) in named {
            match name.parse() {
                Ok(name) => drop(guests.insert(name, guest)),
                Err(error) => reader.reasons.push(Refusal::new(
                    "config_value",
                    &format!("guests.{name}"),
                    format!("{error}"),
                    "name the guest otherwise",
                )),
            }
        }
        let config = Self { agent, cache, hardware, simulate, tcb, buckets, models, releases, services, guests };
        reader.reasons.extend(config.check());
        if reader.reasons.is_empty() { Ok(config) } else { Err(reader.reasons) }
    }
}

struct Reader {
    reasons: Vec<Refusal>,
}

impl Reader {
    /// A section whose fields have defaults.
    fn section<T: DeserializeOwned + Default>(&mut self, table: &mut Table, name: &str) -> Option<T> {
        match table.remove(name) {
            None => Some(T::default()),
            Some(value) => self.value(value, name),
        }
    }

    fn optional<T: DeserializeOwned>(&mut self, table: &mut Table, name: &str) -> Option<T> {
        table.remove(name).and_then(|value| self.value(value, name))
    }

    /// A section of named sections.
    fn named<T: DeserializeOwned>(&mut self, table: &mut Table, name: &str) -> BTreeMap<String, T> {
        let sections = match table.remove(name) {
            None => return BTreeMap::new(),
            Some(Value::Table(sections)) => sections,
            Some(_) => {
                let rule = format!("it must be a table of tables, as [{name}.NAME]");
                self.reasons.push(Refusal::new("config_value", name, rule, "write a section with a name"));
                return BTreeMap::new();
            }
        };
        let mut read = BTreeMap::new();
        for (key, value) in sections {
            if let Some(section) = self.value(value, &format!("{name}.{key}")) {
                read.insert(key, section);
            }
        }
        read
    }

    fn value<T: DeserializeOwned>(&mut self, value: Value, path: &str) -> Option<T> {
        let error = match T::deserialize(value) {
            Ok(section) => return Some(section),
            Err(error) => error.to_string(),
        };
        let error = error.trim();
        let quoted = error.split('`').nth(1).unwrap_or_default();
        let (code, field, fix) = if error.starts_with("unknown field") {
            ("config_unknown_field", format!("{path}.{quoted}"), "remove it, or correct its name")
        } else if error.starts_with("missing field") {
            ("config_missing_field", format!("{path}.{quoted}"), "add it")
        } else {
            // The deserializer says where in a line of its own: in `field`.
            let place = error.rsplit_once("\nin `").and_then(|(_, rest)| rest.split('`').next());
            let field = place.map_or(path.to_owned(), |place| format!("{path}.{place}"));
            ("config_value", field, "correct the value")
        };
        let detail = error.split("\nin `").next().unwrap_or(error).trim();
        self.reasons.push(Refusal::new(code, &field, detail, fix));
        None
    }
}

const MAX_BYTES: usize = 1 << 20;
