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
    let mut matcher = Matcher::new(grammar).unwrap();
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
    let mut matcher = Matcher::new(Grammar::of_any_object()).unwrap();
    let nested = r#"{"a":"#.repeat(1000);
    let depth = nested.as_bytes().chunks(5).take_while(|level| matcher.take(level)).count();
    assert!((16..200).contains(&depth), "{depth}");
    let open = depth;
    assert!(matcher.take(b"1") || matcher.take(b"{"), "the deepest level can hold nothing");
    assert!((0..open).all(|_| matcher.take(b"}")));
    assert!(matcher.may_end() && matcher.must_end());
}

/// Definitions `a0` to `aN`, each made from the name of the next one; the last is 1.
fn chain(length: usize, link: impl Fn(&str) -> String) -> String {
    let reference = |index: usize| format!(r##"{{"$ref":"#/$defs/a{index}"}}"##);
    let mut definitions: Vec<String> =
        (0..length).map(|index| format!(r#""a{index}":{}"#, link(&reference(index + 1)))).collect();
    definitions.push(format!(r#""a{length}":{{"const":1}}"#));
    // Named last to first, so that no pass over the rules is long.
    let from_end: Vec<String> = (0..=length).rev().map(reference).collect();
    let groups: Vec<String> =
        from_end.chunks(MAX_ENUM).map(|group| format!(r#"{{"anyOf":[{}]}}"#, group.join(","))).collect();
    format!(r#"{{"anyOf":[{}],"$defs":{{{}}}}}"#, groups.join(","), definitions.join(","))
}

#[test]
fn each_way_to_a_place_is_not_gone_again() {
    // 2^60 ways to "1".
    let doubling = chain(60, |next| format!(r#"{{"anyOf":[{next},{next}]}}"#));
    assert!(accepts(&doubling, "1") && !accepts(&doubling, "2"));
    // Behind a byte, too.
    let inner =
        chain(60, |next| format!(r#"{{"anyOf":[{next},{next}]}}"#)).replacen('{', r#"{"type":"array","items":{"#, 1);
    let inner = inner.replacen(r#","$defs""#, r#"},"$defs""#, 1);
    assert!(accepts(&inner, "[1,1]") && !accepts(&inner, "[1,2]"));
    // Stacks that are alike but not shared.
    let deep = chain(30, |next| format!(r#"{{"type":"array","items":{{"anyOf":[{next},{next}]}}}}"#));
    let text = format!("{}1{}", "[".repeat(30), "]".repeat(30));
    assert!(accepts(&deep, &text));
}

#[test]
fn a_long_chain_of_references_needs_no_stack() {
    let long = chain(1500, str::to_owned);
    let small = std::thread::Builder::new().stack_size(128 << 10);
    assert!(small.spawn(move || accepts(&long, "1")).unwrap().join().unwrap());
}

/// What a step costs has a bound, whatever the schema; what is too large at its start is refused.
#[test]
fn too_many_places_are_refused_and_enumerations_are_not() {
    let texts = |prefix: &str| {
        let texts: Vec<String> = (0..MAX_ENUM).map(|index| format!(r#""{prefix}{index}""#)).collect();
        format!(r#"{{"enum":[{}]}}"#, texts.join(","))
    };
    let two = format!(r#"{{"anyOf":[{},{}]}}"#, texts("same"), texts("same "));
    assert!(accepts(&two, r#""same255""#) && accepts(&two, r#""same 7""#) && !accepts(&two, r#""same256""#));
    // Arrays of 128 kinds of item, each of 200 kinds: all that may come behind "[".
    let items: Vec<String> = (0..200).map(|index| format!(r#"{{"const":{index}}}"#)).collect();
    let kinds: Vec<String> = (1..=128)
        .map(|most| format!(r##"{{"type":"array","items":{{"$ref":"#/$defs/i"}},"maxItems":{most}}}"##))
        .collect();
    let many = format!(r#"{{"anyOf":[{}],"$defs":{{"i":{{"anyOf":[{}]}}}}}}"#, kinds.join(","), items.join(","));
    let mut matcher = Matcher::new(grammar(&many).unwrap()).unwrap();
    assert!(matcher.allows(b"[") == matcher.take(b"[") && !matcher.may_end());
    let optional: Vec<String> = (0..100).map(|index| format!(r#""p{index}":{{"const":1}}"#)).collect();
    let object = format!(r#"{{"type":"object","properties":{{{}}}}}"#, optional.join(","));
    let start: Vec<String> = (0..200).map(|_| r##"{"$ref":"#/$defs/n"}"##.to_owned()).collect();
    let number = r##""n":{"anyOf":[{"type":"number"},{"type":"integer"}]}"##;
    assert!(accepts(&object, r#"{"p0":1, "p99":1}"#));
    let many = format!(r#"{{"anyOf":[{}],"$defs":{{{number}}}}}"#, start.join(","));
    assert!(accepts(&many, "-12"));
}

/// Between two tokens only so much is computed; what was computed is kept.
#[test]
fn the_work_between_two_tokens_has_a_bound() {
    let strings: Vec<String> = (300..=318).map(|most| format!(r#"{{"type":"string","maxLength":{most}}}"#)).collect();
    let mut matcher = Matcher::new(grammar(&format!(r#"{{"anyOf":[{}]}}"#, strings.join(","))).unwrap()).unwrap();
    assert!(matcher.take(b"\""));
    let long = "a".repeat(300);
    assert!(!matcher.allows(long.as_bytes()), "one token of 300 characters, each with 19 places to go on");
    assert!(!matcher.allows(b"b") || matcher.allows(b"a"));
    for piece in long.as_bytes().chunks(5) {
        assert!(matcher.allows(piece) && matcher.take(piece));
    }
    assert!(matcher.allows(&[b'a'; 18]) && matcher.take(&[b'a'; 18]) && !matcher.allows(b"a"));
    assert!(matcher.take(b"\"") && matcher.must_end());
}

#[test]
fn the_table_of_first_bytes_says_what_may_come() {
    let mut matcher = Matcher::new(grammar(r#"{"anyOf":[{"type":"integer"},{"const":"é"}]}"#).unwrap()).unwrap();
    let table = matcher.first_bytes();
    for byte in 0..=u8::MAX {
        assert_eq!(table[usize::from(byte)], matcher.allows(&[byte]), "{byte}");
    }
}

/// Thousands of references over thousands of definitions cost as much as they are long.
#[test]
fn definitions_are_found_without_a_search() {
    let definitions: Vec<String> = (0..20_000).map(|index| format!(r#""d{index}":{{"const":1}}"#)).collect();
    let references: Vec<String> =
        (0..15_000).map(|index| format!(r##"{{"$ref":"#/$defs/d{}"}}"##, 19_999 - index)).collect();
    let groups: Vec<String> =
        references.chunks(MAX_ENUM).map(|group| format!(r#"{{"anyOf":[{}]}}"#, group.join(","))).collect();
    let schema = format!(r#"{{"anyOf":[{}],"$defs":{{{}}}}}"#, groups.join(","), definitions.join(","));
    assert_eq!(grammar(&schema), Err(SchemaError::TooLarge));
    let mut rules = 100;
    let json = |text: &str| Json::parse(text.as_bytes()).unwrap();
    let refused =
        Grammar::of_schema_within(&json(r#"{"properties":{"a":{"type":"string"},"b":{"not":{}}}}"#), &mut rules);
    assert!(refused.is_err() && rules < 100, "{rules}");
    rules = 3;
    let two = json(r#"{"type":"array","items":{"type":"array","items":{"type":"array","items":{"type":"number"}}}}"#);
    assert!(Grammar::of_schema_within(&two, &mut rules).is_ok() && rules == 0);
    assert_eq!(Grammar::of_schema_within(&two, &mut rules), Err(SchemaError::TooLarge));
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
        let mut matcher = Matcher::new(grammar(&schema).unwrap()).unwrap();
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
            let _ = Grammar::of_schema(&json).and_then(Matcher::new).map(|mut matcher| matcher.allows(b"{\"a\""));
        }
    }
}
