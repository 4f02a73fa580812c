// SPDX-License-Identifier: Apache-2.0
//! The subset of JSON Schema (draft 2020-12) that is enforced.

use crate::{
    Json,
    build::{Builder, byte, literal},
    grammar::{Grammar, RuleId, Symbol},
};
use std::collections::HashMap;
use thiserror::Error;

/// Why a schema is refused. Names of the schema's own properties are not shown, only where they stand.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SchemaError {
    /// A keyword that is not enforced here.
    #[error("the keyword '{keyword}' at {at} is not supported")]
    Keyword {
        /// The keyword.
        keyword: String,
        /// Where it stands.
        at: String,
    },
    /// A keyword's value is not what it must be.
    #[error("'{keyword}' at {at}: {rule}")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// Where it stands.
        at: String,
        /// What is expected.
        rule: &'static str,
    },
    /// Not a schema: neither an object nor `true`.
    #[error("the schema at {at} must be an object")]
    NoSchema {
        /// Where it stands.
        at: String,
    },
    /// Its grammar would have more than [`MAX_RULES`] rules, or too many ways to begin.
    #[error("the schema is too large")]
    TooLarge,
    /// No finite value satisfies it.
    #[error("the schema refers to itself so that no value can satisfy it")]
    Endless,
}

/// Takes the rules that it makes from `rules`, also where it refuses.
pub(crate) fn compile(schema: &Json, rules: &mut usize) -> Result<Grammar, SchemaError> {
    let (builder, references) = (Builder::new(), HashMap::new());
    let most = MAX_RULES.min(*rules);
    let mut compiler =
        Compiler { builder, root: schema, definitions: definitions(schema), references, open: Vec::new(), most };
    let result = compiler.run();
    *rules = rules.saturating_sub(compiler.builder.len());
    result.map(|root| compiler.builder.finish(root))
}

/// What `$ref` can name, looked up once: a schema may have thousands.
fn definitions(root: &Json) -> HashMap<(&'static str, &str), &Json> {
    let of = |place: &'static str| match root.field(place) {
        Some(Json::Object(fields)) => fields.iter().map(|(name, schema)| ((place, name.as_str()), schema)).collect(),
        _ => Vec::new(),
    };
    DEFINITIONS.into_iter().flat_map(of).collect()
}

struct Compiler<'s> {
    builder: Builder,
    root: &'s Json,
    definitions: HashMap<(&'static str, &'s str), &'s Json>,
    references: HashMap<String, RuleId>,
    /// Rules that were referred to and are still to be made.
    open: Vec<(RuleId, &'s Json, String)>,
    /// Most rules.
    most: usize,
}

type Alternatives = Vec<Vec<Symbol>>;

impl<'s> Compiler<'s> {
    fn run(&mut self) -> Result<RuleId, SchemaError> {
        let root = self.reference("#", "the root")?;
        while let Some((rule, target, at)) = self.open.pop() {
            let alternatives = self.alternatives(target, &at)?;
            self.builder.set(rule, alternatives);
        }
        self.builder.check(root)?;
        Ok(root)
    }

    fn reference(&mut self, name: &str, at: &str) -> Result<RuleId, SchemaError> {
        if let Some(rule) = self.references.get(name) {
            return Ok(*rule);
        }
        let value = |rule| SchemaError::Value { keyword: "$ref", at: at.to_owned(), rule };
        let target = match name.strip_prefix("#") {
            Some("") => self.root,
            Some(path) => {
                let (place, name) =
                    path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or(value(REFERENCE))?;
                let place = DEFINITIONS.into_iter().find(|known| *known == place).ok_or(value(REFERENCE))?;
                *self.definitions.get(&(place, name)).ok_or(value("nothing is there"))?
            }
            None => return Err(value(REFERENCE)),
        };
        let rule = self.builder.later();
        self.references.insert(name.to_owned(), rule);
        let at = if name == "#" { "the root".to_owned() } else { "a definition".to_owned() };
        self.open.push((rule, target, at));
        Ok(rule)
    }

    fn rule(&mut self, schema: &'s Json, at: &str) -> Result<RuleId, SchemaError> {
        let alternatives = self.alternatives(schema, at)?;
        Ok(self.builder.rule(alternatives))
    }

    fn alternatives(&mut self, schema: &'s Json, at: &str) -> Result<Alternatives, SchemaError> {
        if self.builder.len() > self.most {
            return Err(SchemaError::TooLarge);
        }
        if *schema == Json::Bool(true) {
            return Ok(one(self.builder.any_value()));
        }
        let Json::Object(fields) = schema else { return Err(SchemaError::NoSchema { at: at.to_owned() }) };
        let kind = kind(fields, at)?;
        check_keywords(fields, &kind, at)?;
        match kind {
            Kind::Any => Ok(one(self.builder.any_value())),
            Kind::Reference(name) => Ok(one(self.reference(name, at)?)),
            Kind::AnyOf(schemas) => {
                let rules = schemas
                    .iter()
                    .enumerate()
                    .map(|(index, schema)| Ok(vec![Symbol::Rule(self.rule(schema, &format!("{at}.anyOf[{index}]"))?)]));
                rules.collect()
            }
            Kind::Values(values) => Ok(values.iter().map(|value| literal(&value.to_text())).collect()),
            Kind::Types(types) => {
                let mut alternatives = Vec::new();
                for name in types {
                    alternatives.extend(self.of_type(name, schema, at)?);
                }
                Ok(alternatives)
            }
        }
    }

    fn of_type(&mut self, name: &str, schema: &'s Json, at: &str) -> Result<Alternatives, SchemaError> {
        match name {
            "null" => Ok(vec![literal("null")]),
            "boolean" => Ok(vec![literal("true"), literal("false")]),
            "integer" => Ok(one(self.builder.number(true))),
            "number" => Ok(one(self.builder.number(false))),
            "string" => {
                let (least, most) = bounds(schema, "minLength", "maxLength", at)?;
                Ok(one(self.builder.string(least, most)))
            }
            "array" => {
                let (least, most) = bounds(schema, "minItems", "maxItems", at)?;
                let item = match schema.field("items") {
                    Some(items) => self.rule(items, &format!("{at}.items"))?,
                    None => self.builder.any_value(),
                };
                Ok(one(self.builder.array(item, least, most)))
            }
            "object" => self.object(schema, at),
            _ => Err(SchemaError::Value { keyword: "type", at: at.to_owned(), rule: TYPES }),
        }
    }

    /// Fields in the order of `properties`, so that there is one way to write an object.
    fn object(&mut self, schema: &'s Json, at: &str) -> Result<Alternatives, SchemaError> {
        let refuse = |keyword, rule| SchemaError::Value { keyword, at: at.to_owned(), rule };
        let properties = match schema.field("properties") {
            Some(Json::Object(properties)) if properties.len() <= MAX_PROPERTIES => properties.as_slice(),
            Some(_) => return Err(refuse("properties", "an object of at most 128 schemas is expected")),
            None => &[],
        };
        let required: Vec<&str> = match schema.field("required") {
            Some(Json::Array(names)) if names.len() <= MAX_PROPERTIES => {
                let names: Option<Vec<_>> = names.iter().map(Json::as_str).collect();
                names.ok_or_else(|| refuse("required", "an array of texts is expected"))?
            }
            Some(_) => return Err(refuse("required", "an array of at most 128 texts is expected")),
            None => Vec::new(),
        };
        let known = |name: &&str| properties.iter().any(|(property, _)| property == name);
        if !required.iter().all(known) {
            return Err(refuse("required", "it names what 'properties' does not have"));
        }
        let extra = schema.field("additionalProperties");
        if properties.is_empty() {
            return match extra {
                None | Some(Json::Bool(true)) => Ok(one(self.builder.any_object())),
                Some(Json::Bool(false)) => Ok(vec![literal("{}")]),
                Some(values) => {
                    let value = self.rule(values, &format!("{at}.additionalProperties"))?;
                    Ok(one(self.builder.map(value)))
                }
            };
        }
        let (space, comma) = (self.builder.space(), byte(b','));
        let nothing = self.builder.rule(vec![vec![]]);
        let (mut first, mut further) = (nothing, nothing);
        for (index, (name, value)) in properties.iter().enumerate().rev() {
            let value = self.rule(value, &format!("{at}.properties[{index}]"))?;
            let mut member = literal(&Json::String(name.clone()).to_text());
            member.extend([byte(b':'), space, Symbol::Rule(value), Symbol::Rule(further)]);
            let member = Symbol::Rule(self.builder.rule(vec![member]));
            let (mut starts, mut goes_on) = (vec![vec![member]], vec![vec![comma, space, member]]);
            if !required.contains(&name.as_str()) {
                starts.push(vec![Symbol::Rule(first)]);
                goes_on.push(vec![Symbol::Rule(further)]);
            }
            (first, further) = (self.builder.rule(starts), self.builder.rule(goes_on));
        }
        Ok(vec![vec![byte(b'{'), space, Symbol::Rule(first), byte(b'}')]])
    }
}

/// What a schema says first of all.
enum Kind<'s> {
    Any,
    Reference(&'s str),
    AnyOf(&'s [Json]),
    Values(Vec<&'s Json>),
    Types(Vec<&'s str>),
}

fn kind<'s>(fields: &'s [(String, Json)], at: &str) -> Result<Kind<'s>, SchemaError> {
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
    let refuse = |keyword, rule| SchemaError::Value { keyword, at: at.to_owned(), rule };
    if let Some(name) = field("$ref") {
        return name.as_str().map(Kind::Reference).ok_or_else(|| refuse("$ref", REFERENCE));
    }
    if let Some(schemas) = field("anyOf") {
        return match schemas {
            Json::Array(schemas) if (1..=MAX_ENUM).contains(&schemas.len()) => Ok(Kind::AnyOf(schemas)),
            _ => Err(refuse("anyOf", "an array of 1 to 256 schemas is expected")),
        };
    }
    let types = match field("type") {
        None => None,
        Some(Json::String(name)) => Some(vec![name.as_str()]),
        Some(Json::Array(names)) if (1..=7).contains(&names.len()) => {
            Some(names.iter().map(Json::as_str).collect::<Option<Vec<_>>>().ok_or_else(|| refuse("type", TYPES))?)
        }
        Some(_) => return Err(refuse("type", TYPES)),
    };
    let of_type = |value: &&Json| types.as_ref().is_none_or(|types| types.iter().any(|name| is_of_type(value, name)));
    let values: Option<Vec<&Json>> = match (field("const"), field("enum")) {
        (Some(value), None) => Some(vec![value]),
        (None, Some(Json::Array(values))) if (1..=MAX_ENUM).contains(&values.len()) => Some(values.iter().collect()),
        (None, None) => None,
        _ => return Err(refuse("enum", "an array of 1 to 256 values is expected, without 'const'")),
    };
    if let Some(values) = values {
        let values: Vec<_> = values.into_iter().filter(of_type).collect();
        return if values.is_empty() {
            Err(refuse("enum", "no value is of the type"))
        } else {
            Ok(Kind::Values(values))
        };
    }
    Ok(match types {
        Some(types) => Kind::Types(types),
        None if field("properties").is_some() || field("additionalProperties").is_some() => Kind::Types(vec!["object"]),
        None if field("items").is_some() => Kind::Types(vec!["array"]),
        None => Kind::Any,
    })
}

fn is_of_type(value: &Json, name: &str) -> bool {
    match value {
        Json::Null => name == "null",
        Json::Bool(_) => name == "boolean",
        Json::Number(number) => name == "number" || (name == "integer" && !number.is_f64()),
        Json::String(_) => name == "string",
        Json::Array(_) => name == "array",
        Json::Object(_) => name == "object",
    }
}

/// What is not enforced must not be there, or somebody would rely on it.
fn check_keywords(fields: &[(String, Json)], kind: &Kind<'_>, at: &str) -> Result<(), SchemaError> {
    let types = if let Kind::Types(types) = kind { types.as_slice() } else { &[] };
    let enforced = |keyword: &str| match keyword {
        "$ref" => matches!(kind, Kind::Reference(_)),
        "anyOf" => matches!(kind, Kind::AnyOf(_)),
        "type" => matches!(kind, Kind::Values(_) | Kind::Types(_)),
        "const" | "enum" => matches!(kind, Kind::Values(_)),
        "properties" | "required" | "additionalProperties" => types.contains(&"object"),
        "items" | "minItems" | "maxItems" => types.contains(&"array"),
        "minLength" | "maxLength" => types.contains(&"string"),
        _ => ANNOTATIONS.contains(&keyword),
    };
    match fields.iter().find(|(name, _)| !enforced(name)) {
        Some((keyword, _)) => Err(SchemaError::Keyword { keyword: keyword.clone(), at: at.to_owned() }),
        None => Ok(()),
    }
}

fn bounds(
    schema: &Json,
    least_name: &'static str,
    most_name: &'static str,
    at: &str,
) -> Result<(usize, Option<usize>), SchemaError> {
    let refuse = |keyword, rule| SchemaError::Value { keyword, at: at.to_owned(), rule };
    let read = |name: &'static str| match schema.field(name) {
        None => Ok(None),
        Some(value) => {
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            count
                .filter(|count| *count <= MAX_REPEAT)
                .map(Some)
                .ok_or(refuse(name, "an integer from 0 to 1024 is expected"))
        }
    };
    let (least, most) = (read(least_name)?.unwrap_or(0), read(most_name)?);
    if most.is_some_and(|most| most < least) {
        return Err(refuse(most_name, "it is below the least"));
    }
    Ok((least, most))
}

fn one(rule: RuleId) -> Alternatives {
    vec![vec![Symbol::Rule(rule)]]
}

/// Most fields of an object.
pub const MAX_PROPERTIES: usize = 128;
/// Most values of an `enum`, and schemas of an `anyOf`.
pub const MAX_ENUM: usize = 256;
/// Largest bound of a length.
pub const MAX_REPEAT: usize = 1024;
/// Most rules of a grammar.
pub const MAX_RULES: usize = 20_000;

const TYPES: &str = "one or more of object, array, string, number, integer, boolean, null are expected";
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
const REFERENCE: &str = "'#', '#/$defs/NAME' or '#/definitions/NAME' is expected";
/// They constrain nothing. (`format` is an annotation by the specification, too.)
const ANNOTATIONS: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "format",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "deprecated",
    "readOnly",
];

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
