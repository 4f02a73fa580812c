// SPDX-License-Identifier: Apache-2.0
//! One question to Intel's quote generation service: what its enclaves are (`qgs_msg_lib.h` of Intel's DCAP, message
//! version 1: `GET_PLATFORM_INFO_REQ`). An answer shows that SGX works and both enclaves load; it does not show that the
//! service has certificates for this machine, without which no quote is made.

use std::io::{Read, Write};

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PlatformAnswer {
    /// Security versions of the TD quoting enclave and of the provisioning certification enclave.
    Versions { quoting: u16, provisioning: u16 },
    /// The service reports this error.
    Fault(u32),
    /// It ended the connection, or said something else.
    Nothing,
}

/// Asks over a connected socket. The identifier of the enclave in the answer is thrown away.
pub(crate) fn ask(mut stream: impl Read + Write) -> std::io::Result<PlatformAnswer> {
    let mut request = Vec::new();
    request.extend(HEADER_BYTES.to_be_bytes());
    request.extend(MAJOR_VERSION.to_le_bytes());
    request.extend(0_u16.to_le_bytes());
    request.extend(PLATFORM_INFO_REQUEST.to_le_bytes());
    request.extend(HEADER_BYTES.to_le_bytes());
    request.extend(0_u32.to_le_bytes());
    stream.write_all(&request)?;
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(PlatformAnswer::Nothing),
        result => result?,
    }
    let length = u32::from_be_bytes(length);
    let mut answer = Vec::new();
    stream.take(u64::from(length.min(MAX_ANSWER))).read_to_end(&mut answer)?;
    Ok(if answer.len() as u64 == u64::from(length) { read(&answer) } else { PlatformAnswer::Nothing })
}

fn read(answer: &[u8]) -> PlatformAnswer {
    let half = |at: usize| Some(u16::from_le_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let size = u32::try_from(answer.len()).ok();
    if half(0) != Some(MAJOR_VERSION) || word(4) != Some(PLATFORM_INFO_ANSWER) || word(8) != size {
        return PlatformAnswer::Nothing;
    }
    match (word(12), half(16), half(18)) {
        (Some(0), Some(quoting), Some(provisioning)) => PlatformAnswer::Versions { quoting, provisioning },
        (Some(fault), _, _) if fault != 0 => PlatformAnswer::Fault(fault),
        _ => PlatformAnswer::Nothing,
    }
}

/// Of a message's header.
const HEADER_BYTES: u32 = 16;
const MAJOR_VERSION: u16 = 1;
const PLATFORM_INFO_REQUEST: u32 = 4;
const PLATFORM_INFO_ANSWER: u32 = 5;
/// The answer has 60 bytes.
const MAX_ANSWER: u32 = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn answer(kind: u32, fault: u32, body: &[u8]) -> Vec<u8> {
        let size = 16 + u32::try_from(body.len()).unwrap();
        let mut message = vec![1, 0, 1, 0];
        message.extend(kind.to_le_bytes());
        message.extend(size.to_le_bytes());
        message.extend(fault.to_le_bytes());
        message.extend(body);
        let mut framed = size.to_be_bytes().to_vec();
        framed.extend(message);
        framed
    }

    /// A service that reads the request and says `answer`.
    fn asked(answer: Vec<u8>) -> PlatformAnswer {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let service = std::thread::spawn(move || {
            let mut request = [0; 20];
            theirs.read_exact(&mut request).unwrap();
            theirs.write_all(&answer).unwrap();
            request
        });
        let result = ask(ours).unwrap();
        let request = service.join().unwrap();
        assert_eq!(request, [0, 0, 0, 16, 1, 0, 0, 0, 4, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        result
    }

    #[test]
    fn versions_faults_and_silence_are_told_apart() {
        let body = [5, 0, 15, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0xaa];
        assert_eq!(asked(answer(5, 0, &body)), PlatformAnswer::Versions { quoting: 5, provisioning: 15 });
        assert_eq!(asked(answer(5, 0x1_2001, &[0; 12])), PlatformAnswer::Fault(0x1_2001));
        assert_eq!(asked(Vec::new()), PlatformAnswer::Nothing);
    }

    #[test]
    fn other_and_malformed_answers_are_none() {
        assert_eq!(asked(answer(1, 0, &[5, 0, 15, 0])), PlatformAnswer::Nothing);
        assert_eq!(asked(answer(5, 0, &[5, 0])), PlatformAnswer::Nothing);
        assert_eq!(asked(vec![0xff; 64]), PlatformAnswer::Nothing);
        assert_eq!(asked(vec![0, 0, 0, 0]), PlatformAnswer::Nothing);
        let mut cut = answer(5, 0, &[5, 0, 15, 0]);
        cut.pop();
        assert_eq!(asked(cut), PlatformAnswer::Nothing);
        let mut wrong_size = answer(5, 0, &[5, 0, 15, 0]);
        *wrong_size.get_mut(12).unwrap() += 1;
        assert_eq!(asked(wrong_size), PlatformAnswer::Nothing);
        let mut other_version = answer(5, 0, &[5, 0, 15, 0]);
        *other_version.get_mut(4).unwrap() = 2;
        assert_eq!(asked(other_version), PlatformAnswer::Nothing);
    }
}
