// SPDX-License-Identifier: Apache-2.0
//! Two questions to the provisioning certificate caching service (PCCS), by HTTPS: Intel's root revocation list, and the identity
//! of the TD quoting enclave. They need no certificates of this machine, and a PCCS that has neither of them cannot have those.
//!
//! PCCS makes its own certificate when it is installed, so any is taken here, and nothing that was said over such a connection
//! is believed beyond that somebody says something of the right form. What a PCCS serves is signed by Intel and verified by who
//! uses it. Not shown: that there are certificates for this machine's processors, without which no quote is made.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// What went wrong; the first word of a reason, by which a check knows its fix, also from a recording.
pub(crate) mod word {
    /// The name has no address.
    pub(crate) const NAME: &str = "name";
    /// Nobody listens.
    pub(crate) const REFUSED: &str = "refused";
    /// No connection for another reason.
    pub(crate) const UNREACHABLE: &str = "unreachable";
    /// Somebody listens, and it takes too long.
    pub(crate) const TIMEOUT: &str = "timeout";
    /// No TLS.
    pub(crate) const TLS: &str = "tls";
    /// Another status than 200, which follows.
    pub(crate) const STATUS: &str = "status";
    /// No HTTP, too much of it, or not what was asked for.
    pub(crate) const MALFORMED: &str = "malformed";
}

/// What the service at `HOST:PORT` says to both questions, within `patience` for everything.
///
/// # Errors
/// A reason that begins with one of [`word`]. Of the service's own words only the status is in it.
pub(crate) fn ask(address: &str, patience: Duration) -> Result<String, String> {
    let now = Instant::now();
    let until = now.checked_add(patience).unwrap_or(now);
    let (host, _) = address.rsplit_once(':').ok_or_else(|| format!("{}: it is not HOST:PORT", word::NAME))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let config = config().map_err(|error| format!("{}: {error}", word::TLS))?;
    for (path, is_good) in QUESTIONS {
        let answer = get(address, host, path, &config, until).map_err(|fault| fault.reason(path))?;
        if !is_good(&answer) {
            return Err(format!("{}: {path} gave something else", word::MALFORMED));
        }
    }
    Ok("serves Intel's revocation list and the TD quoting enclave's identity".to_owned())
}

enum Fault {
    Name(io::Error),
    Connect(io::Error),
    Tls(io::Error),
    Time,
    Status(u16),
    Malformed,
}

impl Fault {
    fn reason(self, path: &str) -> String {
        match self {
            Self::Name(error) => format!("{}: {error}", word::NAME),
            Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                format!("{}: {error}", word::REFUSED)
            }
            Self::Connect(error) => format!("{}: {error}", word::UNREACHABLE),
            Self::Tls(error) => format!("{}: {error}", word::TLS),
            Self::Time => format!("{}: {path} had no whole answer in time", word::TIMEOUT),
            Self::Status(status) => format!("{} {status}: {path}", word::STATUS),
            Self::Malformed => {
                format!("{}: {path} gave no whole HTTP answer of at most {MAX_ANSWER} bytes", word::MALFORMED)
            }
        }
    }
}

fn get(address: &str, host: &str, path: &str, config: &Arc<ClientConfig>, until: Instant) -> Result<Vec<u8>, Fault> {
    let stream = Timed { stream: connect(address, until)?, until };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Fault::Name(io::Error::other(error)))?;
    let connection =
        ClientConnection::new(Arc::clone(config), name).map_err(|error| Fault::Tls(io::Error::other(error)))?;
    let mut tls = StreamOwned::new(connection, stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(|error| timed(error, Fault::Tls))?;
    }
    // HTTP/1.0 has no chunks: the answer ends with the connection, or is as long as it says.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: chrysalis-preflight\r\n\r\n");
    tls.write_all(request.as_bytes()).and_then(|()| tls.flush()).map_err(|error| timed(error, |_| Fault::Malformed))?;
    let mut answer = Vec::new();
    match tls.take(MAX_ANSWER.saturating_add(1)).read_to_end(&mut answer) {
        // Many end a connection without saying so before; the length tells whether it was the end.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        other => drop(other.map_err(|error| timed(error, |_| Fault::Malformed))?),
    }
    if answer.len() as u64 > MAX_ANSWER {
        return Err(Fault::Malformed);
    }
    let (status, body) = read(&answer).ok_or(Fault::Malformed)?;
    if status == 200 { Ok(body.to_vec()) } else { Err(Fault::Status(status)) }
}

/// The first address that takes a connection: `localhost` has two as a rule, and PCCS listens at one.
fn connect(address: &str, until: Instant) -> Result<TcpStream, Fault> {
    let addresses = address.to_socket_addrs().map_err(Fault::Name)?;
    let mut last = Fault::Name(io::Error::other("the name has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(until).map_err(|_| Fault::Time)?) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => last = Fault::Time,
            Err(error) => last = Fault::Connect(error),
        }
    }
    Err(last)
}

/// Status and body, where the body is as long as the head says, if it says so.
fn read(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end.checked_add(4)?)?;
    let head = core::str::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    if !matches!(words.next(), Some("HTTP/1.0" | "HTTP/1.1")) {
        return None;
    }
    let status = words.next().filter(|text| text.len() == 3)?.parse().ok()?;
    let length =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let whole = length.is_none_or(|(_, length)| length.trim().parse() == Ok(body.len()));
    whole.then_some((status, body))
}

/// DER, or DER in hexadecimal as PCCS has it: one sequence, whole.
fn is_revocation_list(body: &[u8]) -> bool {
    let digits = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let trimmed = body.trim_ascii();
    let nibbles: Option<Vec<u8>> = trimmed.iter().map(digits).collect();
    let bytes = match nibbles {
        Some(nibbles) => {
            nibbles.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, half| (byte << 4) | half)).collect()
        }
        None => body.to_vec(),
    };
    match bytes.as_slice() {
        [0x30, 0x82, high, low, content @ ..] => content.len() == usize::from(u16::from_be_bytes([*high, *low])),
        [0x30, 0x81, length, content @ ..] => content.len() == usize::from(*length),
        _ => false,
    }
}

fn is_identity(body: &[u8]) -> bool {
    let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    document.is_some_and(|document| document.get("enclaveIdentity").is_some_and(serde_json::Value::is_object))
}

fn config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth()))
}

/// Takes whatever certificate there is: see the top of this file. Nor is it read: PCCS makes one of X.509's first version.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A stream whose every read and write ends when all the time is over, however little came before.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.until)?))?;
        self.stream.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.until)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A time-out is one whatever was being done; a socket's own says `WouldBlock`.
fn timed(error: io::Error, otherwise: impl FnOnce(io::Error) -> Fault) -> Fault {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Fault::Time,
        _ => otherwise(error),
    }
}

type IsGood = fn(&[u8]) -> bool;

/// Paths of Intel's API, version 4, and what an answer must look like.
const QUESTIONS: [(&str, IsGood); 2] =
    [("/sgx/certification/v4/rootcacrl", is_revocation_list), ("/tdx/certification/v4/qe/identity", is_identity)];
/// Real ones have at most about four KiB, with a chain of certificates in the head.
const MAX_ANSWER: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_none() {
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"), Some((200, b"ab".as_slice())));
        assert_eq!(read(b"HTTP/1.0 404 No\r\n\r\n"), Some((404, b"".as_slice())));
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nab",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert_eq!(read(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn bodies_have_the_form_of_what_was_asked_for() {
        let list = [vec![0x30, 0x82, 0, 3], vec![1, 2, 3]].concat();
        assert!(
            is_revocation_list(&list)
                && is_revocation_list(b"30820003010203")
                && is_revocation_list(b"30820003010203\n")
        );
        for bad in [b"".as_slice(), b"<html>", b"3082000301020", b"30820004010203", &list[..6], b"0000"] {
            assert!(!is_revocation_list(bad), "{bad:?}");
        }
        assert!(is_identity(br#"{"enclaveIdentity":{"id":"TD_QE"},"signature":"00"}"#));
        for bad in ["", "{}", r#"{"enclaveIdentity":1}"#, "[1]", r#"{"enclaveIdentity":{}} x"#] {
            assert!(!is_identity(bad.as_bytes()), "{bad}");
        }
    }
}
