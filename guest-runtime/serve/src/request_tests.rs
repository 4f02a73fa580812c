// SPDX-License-Identifier: Apache-2.0
use engine_protocol::Role;

use super::*;

fn parse(json: &str) -> Result<ApiRequest, ApiError> {
    ApiRequest::parse(Kind::Chat, json.as_bytes(), &Limits::default())
}

fn with(extra: &str) -> Result<ApiRequest, ApiError> {
    parse(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"secret"}}]{extra}}}"#))
}

fn completion(extra: &str) -> Result<ApiRequest, ApiError> {
    ApiRequest::parse(Kind::Text, format!(r#"{{"model":"m","prompt":"secret"{extra}}}"#).as_bytes(), &Limits::default())
}

fn chat(request: &ApiRequest) -> &[Message] {
    match &request.generate.prompt {
        Prompt::Chat(messages) => messages,
        Prompt::Text(_) => panic!("no chat"),
    }
}

#[test]
fn what_clients_send_is_understood() {
    let request = parse(
        r#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"user","content":"c","name":null}],"max_completion_tokens":7,"temperature":0,"top_p":0.5,"seed":-1,
        "stop":"x","stream":true,"stream_options":{"include_usage":true},"n":8,"user":"u","tools":null,"logprobs":true,
        "top_logprobs":20,"frequency_penalty":-2,"presence_penalty":2.0,"store":false,"service_tier":"auto"}"#,
    )
    .unwrap();
    assert_eq!((chat(&request)[0].role, chat(&request)[0].content.as_str()), (Role::System, "ab"));
    assert_eq!(request.generate.max_tokens, Some(7));
    assert_eq!((request.generate.sampling.seed, request.has_seed), (u64::MAX, true));
    assert_eq!(request.generate.stop, ["x"]);
    assert_eq!((request.generate.choices, request.generate.logprobs), (8, Some(20)));
    assert!(request.stream && request.include_usage && request.pad);
    let plain = with("").unwrap();
    assert!(!plain.stream && plain.generate.max_tokens.is_none() && !plain.has_seed);
    assert!((plain.generate.sampling.temperature - 1.0).abs() < f32::EPSILON);
    let text = completion(r#","logprobs":5,"echo":false,"best_of":2,"n":2"#).unwrap();
    assert_eq!(text.generate.prompt, Prompt::Text("secret".into()));
    assert_eq!((text.generate.max_tokens, text.generate.logprobs), (Some(16), Some(5)));
}

#[test]
fn refusals_name_the_parameter_and_never_a_value() {
    let long = format!(r#","stop":["{}"]"#, "y".repeat(300));
    let tool = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    let both = format!(r#"{tool},"response_format":{{"type":"json_object"}}"#);
    // Both too long and wrong: it is not looked into.
    let long_schema = format!(
        r#","response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{{"description":"{}","not":{{}}}}}}}}"#,
        "y".repeat(70_000)
    );
    for (extra, code, param) in [
        (r#","tools":[{"secret":1}]"#, "unsupported_parameter", "tools[0].secret"),
        (r#","logit_bias":{"1":200}"#, "invalid_value", "logit_bias"),
        (r#","sec ret":1"#, "unsupported_parameter", "(not shown)"),
        (r#","n":1000"#, "invalid_value", "n"),
        (r#","n":0"#, "invalid_value", "n"),
        (r#","max_tokens":0"#, "invalid_value", "max_tokens"),
        (r#","max_tokens":1,"max_completion_tokens":2"#, "invalid_value", "max_tokens"),
        (r#","max_tokens":4294967297"#, "invalid_value", "max_tokens"),
        (r#","temperature":3"#, "invalid_value", "temperature"),
        (r#","temperature":"secret""#, "invalid_value", "temperature"),
        (r#","top_p":0"#, "invalid_value", "top_p"),
        (r#","frequency_penalty":2.5"#, "invalid_value", "frequency_penalty"),
        (r#","presence_penalty":"secret""#, "invalid_value", "presence_penalty"),
        (r#","seed":1.5"#, "invalid_value", "seed"),
        (long.as_str(), "invalid_value", "stop"),
        (r#","stream":"secret""#, "invalid_value", "stream"),
        (r#","stream_options":{"include_usage":true}"#, "invalid_value", "stream_options"),
        (r#","stream":true,"stream_options":{"x":1}"#, "unsupported_parameter", "stream_options.x"),
        (r#","logprobs":5"#, "invalid_value", "logprobs"),
        (r#","top_logprobs":5"#, "invalid_value", "top_logprobs"),
        (r#","logprobs":true,"top_logprobs":21"#, "invalid_value", "top_logprobs"),
        (r#","store":true"#, "invalid_value", "store"),
        (r#","tool_choice":"required""#, "invalid_value", "tool_choice"),
        (&both, "invalid_value", "response_format"),
        (r#","response_format":{"type":"secret"}"#, "invalid_value", "response_format"),
        (r#","response_format":{"type":"json_schema"}"#, "missing_required_parameter", "response_format.json_schema"),
        (
            r#","response_format":{"type":"json_schema","json_schema":{"name":"x"}}"#,
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (&long_schema, "invalid_value", "response_format"),
        (
            r#","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"properties":{"secret":{"pattern":"secret"}}}}}"#,
            "invalid_value",
            "response_format.json_schema.schema",
        ),
    ] {
        let error = with(extra).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{extra}");
        let json = String::from_utf8(error.to_json()).unwrap();
        assert!(!json.replace("tools[0].secret", "").contains("secret"), "{json}");
    }
    for (extra, param) in [
        (r#","prompt":["a","b"]"#, None),
        (r#","echo":true"#, Some("echo")),
        (r#","best_of":3"#, Some("best_of")),
        (r#","messages":[]"#, Some("messages")),
        (r#","logprobs":true"#, Some("logprobs")),
        (r#","suffix":"x""#, Some("suffix")),
    ] {
        assert_eq!(completion(extra).unwrap_err().param.as_deref(), param, "{extra}");
    }
}

#[test]
fn broken_conversations_are_refused() {
    let many = vec![r#"{"role":"user","content":"x"}"#; 257].join(",");
    let bomb = "[".repeat(100_000);
    for (messages, param) in [
        ("[]", "messages"),
        ("7", "messages"),
        ("[7]", "messages[0]"),
        (r#"[{"role":"tool","content":"x"}]"#, "messages[0].tool_call_id"),
        (r#"[{"role":"function","content":"x"}]"#, "messages[0].role"),
        (r#"[{"role":"user"}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":"x","tool_calls":[]}]"#, "messages[0].tool_calls"),
        (r#"[{"role":"assistant","tool_calls":[{"id":"1"}]}]"#, "messages[0].tool_calls"),
        (r#"[{"role":"user","content":"\u0000"}]"#, "messages"),
        (&format!("[{many}]"), "messages"),
    ] {
        let error = parse(&format!(r#"{{"model":"m","messages":{messages}}}"#)).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{messages}");
    }
    let twice = r#"{"model":"m","model":"m"}"#;
    for json in [bomb.as_str(), "", "[]", "{", r#"{"model":"m"} x"#, "\u{feff}{}", twice] {
        assert_eq!(parse(json).unwrap_err().code, "invalid_json");
    }
    assert_eq!(parse("{}").unwrap_err().code, "missing_required_parameter");
}

#[test]
fn tools_and_their_results_become_text() {
    let request = parse(
        r#"{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"parallel_tool_calls":false,
        "messages":[{"role":"user","content":"q"},
        {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"42"},{"role":"tool","tool_call_id":"c2","content":"43"}]}"#,
    )
    .unwrap();
    let messages = chat(&request);
    assert_eq!(
        messages.iter().map(|message| message.role).collect::<Vec<_>>(),
        [Role::System, Role::User, Role::Assistant, Role::User]
    );
    assert!(messages[0].content.contains("<tools>\n{\"type\":\"function\""));
    assert_eq!(messages[2].content, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>");
    assert_eq!(messages[3].content, "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>");
    assert_eq!(
        (request.reading, request.generate.stop.as_slice()),
        (Reading::Marked, ["</tool_call>".to_owned()].as_slice())
    );
    let none = with(r#","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none""#).unwrap();
    assert_eq!((none.reading, chat(&none).len()), (Reading::Content, 1));
    let schema = with(
        r#","response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{"type":"object"}}}"#,
    );
    assert_eq!(schema.unwrap().generate.form, Form::JsonSchema(r#"{"type":"object"}"#.into()));
}

#[test]
fn changes_of_logits_are_read_strictly() {
    let of = |value: &str| with(&format!(r#","logit_bias":{value}"#));
    let good = of(r#"{"7":-100,"0":1.5,"12":100}"#).unwrap().generate.logit_bias;
    let expected = [(0, 1.5), (7, -100.0), (12, 100.0)].map(|(token, bias)| Bias { token, bias });
    assert_eq!(good, expected);
    assert!(of("{}").unwrap().generate.logit_bias.is_empty() && of("null").is_ok());
    let many = |count: u32| format!("{{{}}}", (0..count).map(|n| format!("\"{n}\":1")).collect::<Vec<_>>().join(","));
    assert_eq!(of(&many(300)).unwrap().generate.logit_bias.len(), 300);
    for bad in [
        "[]",
        "5",
        r#"{"a":1}"#,
        r#"{"":1}"#,
        r#"{"-1":1}"#,
        r#"{"+1":1}"#,
        r#"{"01":1}"#,
        r#"{"1.0":1}"#,
        r#"{"4294967296":1}"#,
        r#"{"1":101}"#,
        r#"{"1":-100.5}"#,
        r#"{"1":"1"}"#,
        r#"{"1":null}"#,
        r#"{"1":true}"#,
        &many(301),
    ] {
        let refused = of(bad).unwrap_err();
        assert_eq!((refused.code, refused.param.as_deref()), ("invalid_value", Some("logit_bias")), "{bad}");
    }
}
