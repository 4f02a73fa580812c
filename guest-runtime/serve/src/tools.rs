// SPDX-License-Identifier: Apache-2.0
//! Tools: how they are described to the model, what its calls must look like, and how they are read.

use engine_protocol::{Form, MAX_SCHEMA_BYTES, Message, Role};
use output_schema::{Grammar, Json, MAX_RULES, Matcher, SchemaError};

use crate::error::ApiError;

/// The tools of a request.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// As they came, for the description.
    definitions: Vec<Json>,
    names: Vec<String>,
    /// What the arguments of each must be.
    parameters: Vec<Json>,
}

/// Whether the model shall call one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    None,
    Auto,
    Required,
    /// The one with this name.
    Named(String),
}

/// How an answer's text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// All of it is content.
    Content,
    /// It may hold calls between marks.
    Marked,
    /// It is one call or an array of calls.
    Calls {
        /// The client said which tool.
        named: bool,
    },
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

impl Tools {
    /// Reads `tools`.
    pub(crate) fn parse(value: Json) -> Result<Self, ApiError> {
        let Json::Array(items) = value else {
            return Err(ApiError::invalid_value("tools", "an array is expected"));
        };
        if items.is_empty() || items.len() > MAX_TOOLS {
            return Err(ApiError::invalid_value("tools", &format!("1 to {MAX_TOOLS} tools are expected")));
        }
        let mut tools = Self::default();
        let mut allowance = Allowance { bytes: MAX_SCHEMA_BYTES, rules: MAX_RULES.saturating_mul(2) };
        for (index, item) in items.into_iter().enumerate() {
            let (name, parameters) = tool(index, &item, &mut allowance)?;
            if tools.names.contains(&name) {
                return Err(ApiError::invalid_value(&format!("tools[{index}].function.name"), "it is there twice"));
            }
            tools.names.push(name);
            tools.parameters.push(parameters);
            tools.definitions.push(item);
        }
        Ok(tools)
    }

    /// Reads `tool_choice`.
    pub(crate) fn choice(&self, value: Option<Json>) -> Result<Choice, ApiError> {
        let refuse = || {
            let rule = "none, auto, required or {\"type\":\"function\",\"function\":{\"name\"}} of a tool is expected";
            ApiError::invalid_value("tool_choice", rule)
        };
        let is_empty = self.names.is_empty();
        match value {
            None if is_empty => Ok(Choice::None),
            None => Ok(Choice::Auto),
            Some(Json::String(choice)) => match choice.as_str() {
                "none" => Ok(Choice::None),
                "auto" if !is_empty => Ok(Choice::Auto),
                "required" if !is_empty => Ok(Choice::Required),
                _ => Err(refuse()),
            },
            Some(choice) => {
                let is_function = choice.field("type").and_then(Json::as_str) == Some("function");
                let name = choice.field("function").and_then(|function| function.field("name")).and_then(Json::as_str);
                let name = name.filter(|name| is_function && self.names.iter().any(|known| known == name));
                name.map(|name| Choice::Named(name.to_owned())).ok_or_else(refuse)
            }
        }
    }

    /// The form of the answer, and how to read it. `several` when more calls than one are wanted together.
    pub(crate) fn form(&self, choice: &Choice, several: bool) -> Result<(Form, Reading), ApiError> {
        let calls = |only: Option<&str>, several| {
            let schema = self.schema(only, several);
            // Each was checked alone; together they may be too many.
            let text = short_text(&schema).filter(|_| Grammar::of_schema(&schema).and_then(Matcher::new).is_ok());
            text.ok_or_else(|| ApiError::invalid_value("tools", "together they are too large"))
        };
        Ok(match choice {
            Choice::None => (Form::Free, Reading::Content),
            Choice::Auto => (Form::ToolCalls(calls(None, false)?), Reading::Marked),
            Choice::Required => (Form::JsonSchema(calls(None, several)?), Reading::Calls { named: false }),
            Choice::Named(name) => (Form::JsonSchema(calls(Some(name), false)?), Reading::Calls { named: true }),
        })
    }

    /// Describes the tools in the conversation's system message.
    pub(crate) fn describe(&self, messages: &mut Vec<Message>, reading: Reading) {
        let tools: Vec<String> = self.definitions.iter().map(Json::to_text).collect();
        let how = match reading {
            Reading::Content => return,
            Reading::Marked => {
                "For each function call, return a json object with function name and arguments within \
                <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
                <args-json-object>}\n</tool_call>"
            }
            Reading::Calls { .. } => {
                "Answer with nothing but a json object with function name and arguments:\n\
                {\"name\": <function-name>, \"arguments\": <args-json-object>}"
            }
        };
        let text = format!(
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
             signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n{how}",
            tools.join("\n")
        );
        match messages.first_mut().filter(|first| first.role == Role::System) {
            Some(first) => {
                first.content.push_str("\n\n");
                first.content.push_str(&text);
            }
            None => messages.insert(0, Message { role: Role::System, content: text }),
        }
    }

    /// A schema of one call, or of an array of calls.
    fn schema(&self, only: Option<&str>, several: bool) -> Json {
        let (mut calls, mut definitions) = (Vec::new(), Vec::new());
        for (index, (name, parameters)) in self.names.iter().zip(&self.parameters).enumerate() {
            if only.is_some_and(|only| only != name) {
                continue;
            }
            let prefix = format!("t{index}");
            for place in ["$defs", "definitions"] {
                if let Some(Json::Object(inner)) = parameters.field(place) {
                    let moved = inner.iter().map(|(name, schema)| (format!("{prefix}.{name}"), moved(schema, &prefix)));
                    definitions.extend(moved);
                }
            }
            definitions.push((prefix.clone(), without_definitions(moved(parameters, &prefix))));
            let arguments = object(vec![("$ref", string(&format!("#/$defs/{prefix}")))]);
            let properties = object(vec![("name", object(vec![("const", string(name))])), ("arguments", arguments)]);
            calls.push(object(vec![
                ("type", string("object")),
                ("properties", properties),
                ("required", Json::Array(vec![string("name"), string("arguments")])),
            ]));
        }
        let (call, definitions) = (object(vec![("anyOf", Json::Array(calls))]), Json::Object(definitions));
        if several {
            let (least, most) = (Json::Number(1.into()), Json::Number(MAX_CALLS.into()));
            object(vec![
                ("type", string("array")),
                ("items", call),
                ("minItems", least),
                ("maxItems", most),
                ("$defs", definitions),
            ])
        } else {
            let Json::Object(mut fields) = call else { return call };
            fields.push(("$defs".to_owned(), definitions));
            Json::Object(fields)
        }
    }
}

/// A call as the model writes it into a conversation.
pub(crate) fn call_text(name: &str, arguments: &str) -> String {
    let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
    format!("{OPEN}\n{{\"name\": {}, \"arguments\": {arguments}}}\n{CLOSE}", string(name).to_text())
}

/// How much of a growing text is certainly content, where calls may be marked in it.
pub(crate) fn certain_content(text: &str) -> usize {
    match text.find(OPEN) {
        Some(start) => start,
        None => {
            let starts = (1..OPEN.len()).rev().filter_map(|length| OPEN.get(..length));
            let held = starts.into_iter().find(|start| text.ends_with(start)).map_or(0, str::len);
            text.len().saturating_sub(held)
        }
    }
}

/// The content and the calls of a complete text. `None` when it is not what `reading` expects, as one that was cut off.
pub(crate) fn split(text: &str, reading: Reading) -> Option<(String, Vec<Call>)> {
    match reading {
        Reading::Content => Some((text.to_owned(), Vec::new())),
        Reading::Calls { .. } => {
            let calls = match Json::parse(text.as_bytes()).ok()? {
                Json::Array(calls) => calls.iter().map(call).collect::<Option<_>>()?,
                one => vec![call(&one)?],
            };
            Some((String::new(), calls))
        }
        Reading::Marked => {
            let mut parts = text.split(OPEN);
            let mut content = parts.next().unwrap_or_default().to_owned();
            let mut calls = Vec::new();
            for part in parts {
                // The end may be missing: it is a stop text where one call only is wanted.
                let (json, rest) = part.split_once(CLOSE).unwrap_or((part, ""));
                calls.push(call(&Json::parse(json.trim().as_bytes()).ok()?)?);
                content.push_str(rest.trim());
            }
            Some((content, calls))
        }
    }
}

fn call(json: &Json) -> Option<Call> {
    let name = json.field("name")?.as_str()?.to_owned();
    Some(Call { name, arguments: json.field("arguments")?.to_text() })
}

/// What the schemas of all tools may cost together, before it is known whether they can be enforced.
struct Allowance {
    bytes: usize,
    rules: usize,
}

impl Allowance {
    /// Whether a schema can be enforced within what is left.
    fn check(&mut self, schema: &Json) -> Result<(), SchemaError> {
        let bytes = short_text(schema).map(|text| text.len()).filter(|bytes| *bytes <= self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes.ok_or(SchemaError::TooLarge)?);
        let grammar = Grammar::of_schema_within(schema, &mut self.rules)?;
        Matcher::new(grammar).map(|_| ())
    }
}

/// The text of a schema that is not too long for the engine: to be asked before anything is made of it.
pub(crate) fn short_text(schema: &Json) -> Option<String> {
    Some(schema.to_text()).filter(|text| text.len() <= MAX_SCHEMA_BYTES)
}

/// A tool's name, and the schema of its arguments.
fn tool(index: usize, item: &Json, allowance: &mut Allowance) -> Result<(String, Json), ApiError> {
    let at = |field: &str| format!("tools[{index}]{field}");
    let Json::Object(fields) = item else { return Err(ApiError::invalid_value(&at(""), "an object is expected")) };
    if let Some((name, _)) = fields.iter().find(|(name, _)| !matches!(name.as_str(), "type" | "function")) {
        return Err(ApiError::unsupported_parameter(&at(&format!(".{name}"))));
    }
    if item.field("type").and_then(Json::as_str) != Some("function") {
        return Err(ApiError::invalid_value(&at(".type"), "function is expected"));
    }
    let Some(Json::Object(function)) = item.field("function") else {
        return Err(ApiError::missing_parameter(&at(".function")));
    };
    let (mut name, mut parameters, mut strict) = (None, None, false);
    for (field, value) in function.iter().filter(|(_, value)| !value.is_null()) {
        match field.as_str() {
            "name" => name = value.as_str().filter(|name| is_name(name)),
            "description" if value.as_str().is_some() => {}
            "parameters" => parameters = Some(value),
            "strict" => {
                strict = value
                    .as_bool()
                    .ok_or_else(|| ApiError::invalid_value(&at(".function.strict"), "true or false is expected"))?
            }
            other => return Err(ApiError::unsupported_parameter(&at(&format!(".function.{other}")))),
        }
    }
    let rule = "a name of 1 to 64 letters, digits, '_' and '-' is expected";
    let name = name.ok_or_else(|| ApiError::invalid_value(&at(".function.name"), rule))?.to_owned();
    let any = || object(vec![("type", string("object"))]);
    let parameters = match parameters {
        None => any(),
        Some(schema) => match allowance.check(schema) {
            Ok(()) => schema.clone(),
            Err(error) if strict => {
                return Err(ApiError::schema(&at(".function.parameters"), &error));
            }
            // What cannot be enforced is then the model's best effort.
            Err(_) => any(),
        },
    };
    Ok((name, parameters))
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// A schema whose definitions went to `#/$defs/PREFIX.…`, and its root to `#/$defs/PREFIX`.
fn moved(schema: &Json, prefix: &str) -> Json {
    let Json::Object(fields) = schema else { return schema.clone() };
    let map = |value: &Json| match value {
        Json::Object(fields) => {
            Json::Object(fields.iter().map(|(name, schema)| (name.clone(), moved(schema, prefix))).collect())
        }
        other => other.clone(),
    };
    let field = |(name, value): &(String, Json)| {
        let value = match (name.as_str(), value) {
            ("$ref", Json::String(target)) => {
                let name = target.strip_prefix("#/$defs/").or_else(|| target.strip_prefix("#/definitions/"));
                string(&name.map_or(format!("#/$defs/{prefix}"), |name| format!("#/$defs/{prefix}.{name}")))
            }
            ("properties", value) => map(value),
            ("items" | "additionalProperties", value) => moved(value, prefix),
            ("anyOf", Json::Array(schemas)) => {
                Json::Array(schemas.iter().map(|schema| moved(schema, prefix)).collect())
            }
            (_, value) => value.clone(),
        };
        (name.clone(), value)
    };
    Json::Object(fields.iter().map(field).collect())
}

fn without_definitions(schema: Json) -> Json {
    match schema {
        Json::Object(mut fields) => {
            fields.retain(|(name, _)| !matches!(name.as_str(), "$defs" | "definitions"));
            Json::Object(fields)
        }
        other => other,
    }
}

fn object(fields: Vec<(&str, Json)>) -> Json {
    Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn string(text: &str) -> Json {
    Json::String(text.to_owned())
}

const OPEN: &str = "<tool_call>";
/// What ends a call in free text.
pub(crate) const CLOSE: &str = "</tool_call>";
const MAX_TOOLS: usize = 64;
/// Most calls together, where the client asks for several.
const MAX_CALLS: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    fn tools() -> Tools {
        Tools::parse(json(
            r##"[{"type":"function","function":{"name":"weather","description":"d","strict":true,"parameters":
                {"type":"object","properties":{"at":{"$ref":"#/$defs/place"}},"required":["at"],"$defs":{"place":{"enum":["x","y"]}}}}},
               {"type":"function","function":{"name":"tree","parameters":{"type":"object","properties":{"sub":{"$ref":"#"}}}}},
               {"type":"function","function":{"name":"loose","parameters":{"type":"object","properties":{"n":{"minimum":3}}}}},
               {"type":"function","function":{"name":"none"}}]"##,
        ))
        .unwrap()
    }

    fn accepts(form: &Form, text: &str) -> bool {
        let mut matcher = match form {
            Form::JsonSchema(schema) => Matcher::new(Grammar::of_schema(&json(schema)).unwrap()).unwrap(),
            Form::ToolCalls(schema) => {
                Matcher::new(Grammar::of_schema(&json(schema)).unwrap().within_tool_calls()).unwrap()
            }
            _ => return true,
        };
        matcher.take(text.as_bytes()) && matcher.may_end()
    }

    #[test]
    fn calls_have_the_form_of_the_tools() {
        let (form, reading) = tools().form(&Choice::Required, false).unwrap();
        assert_eq!(reading, Reading::Calls { named: false });
        for good in [
            r#"{"name":"weather","arguments":{"at":"x"}}"#,
            r#"{"name":"tree","arguments":{"sub":{"sub":{}}}}"#,
            r#"{"name":"loose","arguments":{"n":"anything"}}"#,
            r#"{"name":"none","arguments":{}}"#,
        ] {
            assert!(accepts(&form, good), "{good}");
            let (content, calls) = split(good, reading).unwrap();
            assert!(content.is_empty() && good.contains(&calls[0].arguments));
        }
        for bad in [r#"{"name":"weather","arguments":{"at":"z"}}"#, r#"{"name":"other","arguments":{}}"#, "{}", "x"] {
            assert!(!accepts(&form, bad), "{bad}");
        }
        let (form, _) = tools().form(&Choice::Named("none".into()), true).unwrap();
        assert!(!accepts(&form, r#"{"name":"tree","arguments":{}}"#));
        let (form, reading) = tools().form(&Choice::Required, true).unwrap();
        let two = r#"[{"name":"none","arguments":{}}, {"name":"tree","arguments":{}}]"#;
        assert!(accepts(&form, two) && !accepts(&form, "[]"));
        assert_eq!(split(two, reading).unwrap().1.len(), 2);
    }

    /// What cannot be enforced, for being too much, costs no more than what can.
    #[test]
    fn all_tools_together_have_a_bound() {
        let tool = |index: usize, strict: bool, parameters: &str| {
            let function = format!(r#"{{"name":"f{index}","strict":{strict},"parameters":{parameters}}}"#);
            format!(r#"{{"type":"function","function":{function}}}"#)
        };
        let parse = |tools: &[String]| Tools::parse(json(&format!("[{}]", tools.join(","))));
        let field = |index| format!(r#""p{index}":{{"type":"string","maxLength":1024}}"#);
        let large = format!(r#"{{"properties":{{{}}}}}"#, (0..18).map(field).collect::<Vec<_>>().join(","));
        let long =
            format!(r#"{{"description":"{}","type":"object","properties":{{"a":{{"const":1}}}}}}"#, "x".repeat(30_000));
        for schema in [&large, &long] {
            let some: Vec<String> = (0..3).map(|index| tool(index, true, schema)).collect();
            assert_eq!(parse(&some).unwrap_err().param.as_deref(), Some("tools[2].function.parameters"));
            assert!(parse(&some[..2]).is_ok());
            let many: Vec<String> = (0..20).map(|index| tool(index, false, schema)).collect();
            let tools = parse(&many).unwrap();
            let is_free = |parameters: &&Json| parameters.field("properties").is_none();
            assert!(tools.parameters.iter().filter(is_free).count() >= 18);
        }
        let refused =
            format!(r#"{{"properties":{{{},"z":{{"not":{{}}}}}}}}"#, (0..18).map(field).collect::<Vec<_>>().join(","));
        let mut allowance = Allowance { bytes: MAX_SCHEMA_BYTES, rules: 2 * MAX_RULES };
        assert!(matches!(allowance.check(&json(&refused)), Err(SchemaError::Keyword { .. })));
        assert!(allowance.rules < 2 * MAX_RULES && allowance.bytes < MAX_SCHEMA_BYTES);
    }

    #[test]
    fn marked_calls_are_told_from_content() {
        let (form, reading) = tools().form(&Choice::Auto, true).unwrap();
        let text = "Let me see.\n<tool_call>\n{\"name\": \"none\", \"arguments\": {\"a\": 1.50}}\n</tool_call>\n<tool_call>{\"name\":\"tree\",\"arguments\":{}}</tool_call>";
        assert!(accepts(&form, text));
        let (content, calls) = split(text, reading).unwrap();
        assert_eq!(content, "Let me see.\n");
        assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["none", "tree"]);
        assert!(accepts(&form, "No tool needed <really>."));
        assert_eq!(split("<tool_call>{\"name\":", reading), None);
        assert_eq!(certain_content("ab <tool"), 3);
        assert_eq!(certain_content("ab <tool_call>{"), 3);
        assert_eq!(certain_content("ab <b>"), 6);
        // A call in the history reads as one that was just made.
        assert_eq!(split(&call_text("none", "{\"a\":1}"), reading).unwrap().1[0].arguments, "{\"a\":1}");
    }

    #[test]
    fn refusals_name_where() {
        for (text, param) in [
            ("{}", "tools"),
            ("[]", "tools"),
            ("[7]", "tools[0]"),
            (r#"[{"type":"x"}]"#, "tools[0].type"),
            (r#"[{"type":"function"}]"#, "tools[0].function"),
            (r#"[{"type":"function","function":{"name":"a b"}}]"#, "tools[0].function.name"),
            (r#"[{"type":"function","function":{"name":"a","x":1}}]"#, "tools[0].function.x"),
            (
                r#"[{"type":"function","function":{"name":"a"}},{"type":"function","function":{"name":"a"}}]"#,
                "tools[1].function.name",
            ),
            (
                r#"[{"type":"function","function":{"name":"a","strict":true,"parameters":{"not":{}}}}]"#,
                "tools[0].function.parameters",
            ),
        ] {
            assert_eq!(Tools::parse(json(text)).unwrap_err().param.as_deref(), Some(param), "{text}");
        }
        let unknown = json(r#"{"type":"function","function":{"name":"zzz"}}"#);
        assert_eq!(tools().choice(Some(unknown)).unwrap_err().param.as_deref(), Some("tool_choice"));
        assert!(Tools::default().choice(Some(json("\"required\""))).is_err());
        assert_eq!(tools().choice(None), Ok(Choice::Auto));
    }
}
