// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::Matcher;
use proptest::prelude::*;

fn grammar(schema: &str) -> Result<Grammar, SchemaError> {
    Grammar::of_schema(&Json::parse(schema.as_bytes()).unwrap())
}

fn accepts(schema: &str, text: &str) -> bool {
    complete(grammar(schema).unwrap(), text)
}

fn complete(grammar: Grammar, text: &str) -> bool {
    let mut matcher = Matcher::new(grammar);
    let whole = matcher.allows(text.as_bytes());
    // Byte by byte is the same as at once.
    assert_eq!(text.bytes().all(|byte| matcher.take(&[byte])), whole, "{text}");
    whole && matcher.may_end()
}

#[test]
fn each_type_is_enforced() {
    for (schema, good, bad) in [
        (r#"{"type":"null"}"#, &["null"][..], &["nul", "0", ""][..]),
        (r#"{"type":"boolean"}"#, &["true", "false"], &["True", "truefalse"]),
        (r#"{"type":"integer"}"#, &["0", "-7", "120"], &["01", "1.0", "+1", "-", "1e3", "1234567890123456789"]),
        (r#"{"type":"number"}"#, &["0", "-7.25", "1e10", "2.5E-3"], &[".5", "1.", "1e", "1e999", "0x1"]),
        (r#"{"type":"string"}"#, &[r#""""#, r#""é\n\u00e9 😀""#], &[r#"""#, "\"\n\"", r#""\x""#, r#""\ud800""#, "'a'"]),
        (r#"{"type":"string","minLength":2,"maxLength":3}"#, &[r#""ab""#, r#""\né€""#], &[r#""a""#, r#""abcd""#]),
        (
            r#"{"type":"array","items":{"type":"null"}}"#,
            &["[]", "[null]", "[null, null]", "[ null,null]"],
            &["[null,]", "[1]", "[null null]"],
        ),
        (r#"{"type":"array","minItems":1,"maxItems":2}"#, &["[1]", "[1,{}]"], &["[]", "[1,2,3]"]),
        (r#"{"type":["string","null"]}"#, &["null", r#""a""#], &["1"]),
        (r#"{"enum":["a",1,null]}"#, &[r#""a""#, "1", "null"], &[r#""b""#, "2"]),
        (r#"{"type":"string","enum":["a",1]}"#, &[r#""a""#], &["1"]),
        (r#"{"const":{"b":[1]}}"#, &[r#"{"b":[1]}"#], &[r#"{"b":[2]}"#]),
        (r#"{"anyOf":[{"type":"integer"},{"const":"x"}]}"#, &["5", r#""x""#], &[r#""y""#]),
        ("{}", &["1", r#"{"a":[{}, "b"]}"#, "[[]]"], &["", "a", "{1:2}", "[1 2]"]),
        ("true", &["1"], &["x"]),
        (r#"{"type":"object"}"#, &["{}", r#"{"a": 1, "b":{}}"#], &["[]", r#"{"a"}"#, r#"{"a":1,}"#]),
        (r#"{"type":"object","additionalProperties":false}"#, &["{}"], &[r#"{"a":1}"#]),
        (r#"{"additionalProperties":{"type":"null"}}"#, &[r#"{"a":null}"#], &[r#"{"a":1}"#]),
    ] {
        for text in good {
            assert!(accepts(schema, text), "{schema} {text}");
        }
        for text in bad {
            assert!(!accepts(schema, text), "{schema} {text}");
        }
    }
}

#[test]
fn fields_come_in_order_and_optional_ones_may_miss() {
    let schema = r#"{"type":"object","properties":{"b":{"type":"null"},"a":{"type":"null"},"c":{"type":"null"}},
        "required":["a"],"additionalProperties":false}"#;
    for good in
        [r#"{"a":null}"#, r#"{"b":null,"a":null,"c":null}"#, r#"{"b": null, "a":null}"#, r#"{"a":null,"c":null}"#]
    {
        assert!(accepts(schema, good), "{good}");
    }
    for bad in [
        "{}",
        r#"{"b":null}"#,
        r#"{"a":null,"b":null}"#,
        r#"{"a":null,"a":null}"#,
        r#"{"a":null,"d":null}"#,
        r#"{,"a":null}"#,
    ] {
        assert!(!accepts(schema, bad), "{bad}");
    }
}

#[test]
fn a_schema_may_refer_to_itself_where_a_value_can_end() {
    let tree = r##"{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"anyOf":[
        {"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["next"]}}}"##;
    assert!(accepts(tree, r#"{"next":{"next":null}}"#));
    assert!(!accepts(tree, r#"{"next":{}}"#));
    for endless in [
        r##"{"$ref":"#"}"##,
        r##"{"anyOf":[{"$ref":"#"},{"type":"null"}]}"##,
        r##"{"properties":{"a":{"$ref":"#"}},"required":["a"]}"##,
        r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##,
    ] {
        assert_eq!(grammar(endless), Err(SchemaError::Endless), "{endless}");
    }
}

#[test]
fn what_is_not_enforced_is_refused_by_name() {
    for (schema, keyword) in [
        (r#"{"type":"string","pattern":"a"}"#, "pattern"),
        (r#"{"type":"integer","minimum":3}"#, "minimum"),
        (r#"{"oneOf":[]}"#, "oneOf"),
        (r#"{"type":"array","items":{"uniqueItems":true}}"#, "uniqueItems"),
        (r#"{"type":"integer","minLength":3}"#, "minLength"),
        (r##"{"$ref":"#","type":"null"}"##, "type"),
    ] {
        let error = grammar(schema).unwrap_err();
        assert!(matches!(&error, SchemaError::Keyword { keyword: found, .. } if found == keyword), "{error}");
    }
    for (schema, keyword) in [
        (r#"{"type":"text"}"#, "type"),
        (r#"{"type":[]}"#, "type"),
        (r#"{"type":"object","required":["a"]}"#, "required"),
        (r#"{"enum":[]}"#, "enum"),
        (r#"{"type":"string","maxLength":99999}"#, "maxLength"),
        (r#"{"type":"array","minItems":3,"maxItems":2}"#, "maxItems"),
        (r##"{"$ref":"#/x/y"}"##, "$ref"),
        (r##"{"$ref":"https://example.com"}"##, "$ref"),
        (r##"{"$ref":"#/$defs/none"}"##, "$ref"),
    ] {
        let error = grammar(schema).unwrap_err();
        assert!(matches!(&error, SchemaError::Value { keyword: found, .. } if *found == keyword), "{error}");
    }
    assert!(matches!(grammar("7"), Err(SchemaError::NoSchema { .. })));
    let error = grammar(r#"{"properties":{"secret":{"type":"array","items":{"not":{}}}}}"#).unwrap_err();
    assert_eq!(error.to_string(), "the keyword 'not' at the root.properties[0].items is not supported");
}

#[test]
fn large_schemas_are_refused() {
    let long = r#"{"type":"string","maxLength":1024}"#;
    let many: Vec<String> = (0..64).map(|index| format!(r#""p{index}":{long}"#)).collect();
    assert_eq!(grammar(&format!(r#"{{"properties":{{{}}}}}"#, many.join(","))), Err(SchemaError::TooLarge));
}

#[test]
fn nesting_by_the_model_is_bounded() {
    let mut matcher = Matcher::new(Grammar::of_any_object());
    let nested = r#"{"a":"#.repeat(1000);
    let depth = nested.as_bytes().chunks(5).take_while(|level| matcher.take(level)).count();
    assert!((16..200).contains(&depth), "{depth}");
    let open = depth;
    assert!(matcher.take(b"1") || matcher.take(b"{"), "the deepest level can hold nothing");
    assert!((0..open).all(|_| matcher.take(b"}")));
    assert!(matcher.may_end() && matcher.must_end());
}

#[test]
fn tool_calls_stand_in_free_text() {
    let calls = || grammar(r#"{"properties":{"name":{"const":"f"}},"required":["name"]}"#).unwrap().within_tool_calls();
    let one = r#"<tool_call>{"name":"f"}</tool_call>"#;
    for good in [
        "",
        "Hello <b>!",
        "<tool_cal",
        one,
        &format!("Hi\n{one}\n{one} bye"),
        "<<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
        "é",
    ] {
        assert!(complete(calls(), good), "{good}");
    }
    for bad in [
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>{\"name\":\"g\"}</tool_call>",
        "<<tool_call>x",
        "<tool_<tool_call>x",
    ] {
        assert!(!complete(calls(), bad), "{bad}");
    }
}

/// Values and a schema that each of them satisfies.
fn schemas() -> impl Strategy<Value = (String, Json)> {
    let leaf = prop_oneof![
        Just((r#"{"type":"null"}"#.to_owned(), Json::Null)),
        any::<bool>().prop_map(|value| (r#"{"type":"boolean"}"#.to_owned(), Json::Bool(value))),
        (-1_000_000_i64..1_000_000).prop_map(|n| (r#"{"type":"integer"}"#.to_owned(), Json::Number(n.into()))),
        ".{0,12}".prop_map(|text| (r#"{"type":"string"}"#.to_owned(), Json::String(text))),
        ".{0,5}"
            .prop_map(|text| (format!(r#"{{"const":{}}}"#, Json::String(text.clone()).to_text()), Json::String(text))),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 1..4), any::<bool>()).prop_map(|(items, closed)| {
                let options: Vec<&str> = items.iter().map(|(schema, _)| schema.as_str()).collect();
                let most = if closed { format!(r#","maxItems":{}"#, items.len()) } else { String::new() };
                let schema = format!(r#"{{"type":"array","items":{{"anyOf":[{}]}}{most}}}"#, options.join(","));
                (schema, Json::Array(items.into_iter().map(|(_, value)| value).collect()))
            }),
            (prop::collection::vec(inner, 1..4), any::<u8>()).prop_map(|(fields, required)| {
                let names: Vec<String> = (0..fields.len()).map(|index| format!("f{index}")).collect();
                let properties: Vec<_> =
                    names.iter().zip(&fields).map(|(name, (schema, _))| format!(r#""{name}":{schema}"#)).collect();
                let needed: Vec<_> = (0..names.len()).filter(|index| required & (1 << index) != 0).collect();
                let required_names: Vec<_> = needed.iter().map(|index| format!("\"f{index}\"")).collect();
                let schema = format!(
                    r#"{{"type":"object","properties":{{{}}},"required":[{}]}}"#,
                    properties.join(","),
                    required_names.join(",")
                );
                let kept = names.into_iter().zip(fields).enumerate();
                let kept = kept
                    .filter(|(index, _)| needed.contains(index) || index % 2 == 0)
                    .map(|(_, (name, (_, value)))| (name, value));
                (schema, Json::Object(kept.collect()))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn values_of_a_schema_are_accepted_and_damaged_ones_are_not_json((schema, value) in schemas(), at in any::<prop::sample::Index>()) {
        let text = value.to_text();
        prop_assert!(accepts(&schema, &text), "{} {}", schema, text);
        let mut cut = at.index(text.len());
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        // A start of a value is a value only where it is JSON by itself (numbers).
        let start = &text[..cut];
        if accepts(&schema, start) {
            prop_assert!(Json::parse(start.as_bytes()).is_ok());
        }
    }

    /// Follows the grammar at random: whatever it lets through to its end is JSON.
    #[test]
    fn what_is_accepted_is_json((schema, _) in schemas(), choices in prop::collection::vec(any::<u8>(), 1..400)) {
        let mut matcher = Matcher::new(grammar(&schema).unwrap());
        let mut text = Vec::new();
        for choice in choices {
            let allowed: Vec<u8> = (0..=255).filter(|byte| matcher.allows(&[*byte])).collect();
            prop_assert!(!allowed.is_empty() || matcher.may_end());
            if matcher.may_end() {
                prop_assert!(Json::parse(&text).is_ok());
            }
            let Some(byte) = allowed.get(usize::from(choice) % allowed.len().max(1)) else { break };
            prop_assert!(matcher.take(&[*byte]));
            text.push(*byte);
        }
    }

    #[test]
    fn arbitrary_schemas_never_panic(text in "[\\[\\]{}:,\"a-z0-9#$/]{0,80}") {
        if let Ok(json) = Json::parse(text.as_bytes()) {
            let _ = Grammar::of_schema(&json).map(|grammar| Matcher::new(grammar).allows(b"{\"a\""));
        }
    }
}
