// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests to a guest's API.

use engine_protocol::{Command, Decoder, encode};
use serde_json::Value;
use serve::{Limits, order};

/// `c` and a body of a chat, `t` of a completion, `e` of a request for embeddings.
///
/// What is accepted keeps the engine's own rules and reaches it unchanged. A refusal is a client's error in OpenAI's form,
/// short, and holds nothing that its own program did not choose.
pub fn api(bytes: &[u8]) -> bool {
    let (path, body) = match bytes.split_first() {
        Some((b'c', body)) => ("/v1/chat/completions", body),
        Some((b't', body)) => ("/v1/completions", body),
        Some((b'e', body)) => ("/v1/embeddings", body),
        _ => return false,
    };
    let limits = Limits::default();
    let decided = order(path, body, &limits).expect("a path with bodies");
    assert_eq!(order(path, body, &limits).as_ref(), Some(&decided), "the same body, another answer");
    let command = match decided {
        Ok(command) => command,
        Err(refused) => {
            assert_eq!(refused.status, 400, "a body is the client's own fault");
            assert!(refused.json.len() < MAX_ERROR, "an error of {} bytes", refused.json.len());
            assert!(refused.json.iter().all(|byte| (b' '..=b'~').contains(byte)), "bytes that only a value brings");
            let error: Value = serde_json::from_slice(&refused.json).expect("an error is JSON");
            assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string(), "{error}");
            return false;
        }
    };
    let checked = match &command {
        Command::Generate(generate) => Some(generate.check()),
        Command::Embed(embed) => Some(embed.check()),
        Command::Cancel { .. } | Command::Forget { .. } => None,
    };
    assert_eq!(checked, Some(Ok(())), "a body orders work, by rules that the engine has, too");
    let mut decoder = Decoder::<Command>::new();
    decoder.push(&encode(&command).expect("what is accepted fits into a frame"));
    assert_eq!(decoder.next_message(), Ok(Some(command)), "the engine reads something else");
    assert!(decoder.is_empty(), "a frame has one message");
    true
}

/// Names are cut at 64 characters; the path to a part of a schema is as long as the schema is deep.
const MAX_ERROR: usize = 4096;
