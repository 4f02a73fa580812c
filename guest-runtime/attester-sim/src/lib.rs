// SPDX-License-Identifier: Apache-2.0
//! Development only: a quote device that is not hardware. It asks the simulator on the host (vsock port 7002), and so
//! anybody who runs the host. It stands in a crate and a binary of its own, and no release image holds them.

use std::io::{Read, Write};

use attester_protocol::frame::{FrameError, read_capped, write_capped};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tee::{DeviceError, MAX_QUOTE, QuoteDevice};
use types::{Base64, Sha384Digest};

/// The simulated device at the other end of a stream.
#[derive(Debug)]
pub struct Simulated<S> {
    stream: S,
}

impl<S: Read + Write> Simulated<S> {
    /// Speaks to the simulator over `stream`.
    pub const fn new(stream: S) -> Self {
        Self { stream }
    }

    fn ask<A: DeserializeOwned>(&mut self, question: &Question) -> Result<A, DeviceError> {
        write_capped(&mut self.stream, question, MAX_FRAME).map_err(device_error)?;
        let answer = read_capped(&mut self.stream, MAX_FRAME).map_err(device_error)?;
        match answer.ok_or(DeviceError::Answer("the simulator closed the connection"))? {
            Answer::Done(answer) => Ok(answer),
            Answer::Failed(Error { error: _ }) => Err(DeviceError::Answer("the simulator refused")),
        }
    }
}

impl<S: Read + Write> QuoteDevice for Simulated<S> {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        let Report { mr_config_id } = self.ask(&Question::Report {})?;
        Ok(mr_config_id)
    }

    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError> {
        let Extended {} = self.ask(&Question::Extend { register: RTMR3, digest: *digest })?;
        Ok(())
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        let Quote { quote } = self.ask(&Question::Quote { report_data: hex(report_data) })?;
        if quote.as_slice().is_empty() {
            return Err(DeviceError::Answer("the quote is empty"));
        }
        Ok(quote.into_vec())
    }

    fn firmware_log(&mut self) -> Option<Vec<u8>> {
        let EventLog { event_log } = self.ask(&Question::EventLog {}).ok()?;
        Some(event_log.into_vec())
    }
}

/// vsock port of the simulator.
pub const PORT: u32 = 7002;

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum Question {
    Report {},
    Extend { register: u8, digest: Sha384Digest },
    Quote { report_data: String },
    EventLog {},
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<A> {
    Failed(Error),
    Done(A),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Error {
    #[allow(dead_code, reason = "its presence says that the request failed; the host's text is not passed on")]
    error: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    mr_config_id: Sha384Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extended {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quote {
    quote: Base64<MAX_QUOTE>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLog {
    event_log: Base64<MAX_FRAME>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn device_error(error: FrameError) -> DeviceError {
    match error {
        FrameError::Io(source) => DeviceError::Io { what: "speak to the simulator", source },
        _ => DeviceError::Answer("the simulator's frame is malformed"),
    }
}

const RTMR3: u8 = 3;
const MAX_FRAME: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    /// Answers one question with raw JSON and gives the question back.
    fn with_answer<T>(json: &'static str, ask: impl FnOnce(&mut Simulated<UnixStream>) -> T) -> (serde_json::Value, T) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let simulator = thread::spawn(move || {
            let question = read_capped::<serde_json::Value>(&mut theirs, MAX_FRAME).unwrap().unwrap();
            let length = u32::try_from(json.len()).unwrap().to_be_bytes();
            theirs.write_all(&[length.as_slice(), json.as_bytes()].concat()).unwrap();
            question
        });
        let result = ask(&mut Simulated::new(ours));
        (simulator.join().unwrap(), result)
    }

    #[test]
    fn questions_have_the_documented_form() {
        let digest = Sha384Digest::of(b"e");
        let (question, result) = with_answer("{}", |device| device.extend_rtmr3(&digest));
        assert!(result.is_ok());
        assert_eq!(question, serde_json::json!({"op": "extend", "register": 3, "digest": digest.to_string()}));
        let (question, result) = with_answer(r#"{"quote":"cXVvdGU="}"#, |device| device.quote(&[0xab; 64]));
        assert_eq!(result.unwrap(), b"quote");
        assert_eq!(question, serde_json::json!({"op": "quote", "report_data": "ab".repeat(64)}));
        let (question, result) = with_answer(r#"{"error":"x"}"#, Simulated::mr_config_id);
        assert!(matches!(result, Err(DeviceError::Answer("the simulator refused"))));
        assert_eq!(question, serde_json::json!({"op": "report"}));
    }

    #[test]
    fn a_log_is_passed_on_and_its_absence_is_no_failure() {
        let (question, log) = with_answer(r#"{"event_log":"bG9n"}"#, Simulated::firmware_log);
        assert_eq!(log.unwrap(), b"log");
        assert_eq!(question, serde_json::json!({"op": "event-log"}));
        assert!(with_answer(r#"{"error":"x"}"#, Simulated::firmware_log).1.is_none());
    }

    #[test]
    fn other_answers_are_refused() {
        for json in [r#"{"quote":""}"#, r#"{"quote":"cXVvdGU=","x":1}"#, "{}", "[]", r#"{"quote":"*"}"#] {
            assert!(with_answer(json, |device| device.quote(&[0; 64])).1.is_err(), "{json}");
        }
        assert!(with_answer(r#"{"x":1}"#, |device| device.extend_rtmr3(&Sha384Digest::ZERO)).1.is_err());
    }
}
