// SPDX-License-Identifier: Apache-2.0
//! Two questions to the provisioning certificate caching service (PCCS), by HTTPS: Intel's root revocation list, and the identity
//! of the TD quoting enclave. They need no certificates of this machine, and a PCCS that has neither of them cannot have those.
//! Both say until when they are to be renewed: a PCCS that does not ask Intel any more serves what every verifier refuses.
//!
//! PCCS makes its own certificate when it is installed, so any is taken here, and nothing that was said over such a connection
//! is believed beyond that somebody says something of the right form. What a PCCS serves is signed by Intel and verified by who
//! uses it. Not shown: that there are certificates for this machine's processors, without which no quote is made.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::CertificateList;
use x509_cert::der::{DateTime, Decode as _};

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
    /// Of the right form, and its time is over.
    pub(crate) const STALE: &str = "stale";
}

/// What the service at `HOST:PORT` says to both questions, within `patience` for everything.
///
/// # Errors
/// A reason that begins with one of [`word`]. Of the service's own words only a status and a date are in it.
pub(crate) fn ask(address: &str, patience: Duration) -> Result<String, String> {
    ask_by(address, patience, |address| Ok(address.to_socket_addrs()?.collect()))
}

/// As [`ask`]; `resolve` gives the addresses of a name.
fn ask_by(
    address: &str,
    patience: Duration,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<String, String> {
    let now = Instant::now();
    let until = now.checked_add(patience).unwrap_or(now);
    let (host, _) = address.rsplit_once(':').ok_or_else(|| format!("{}: it is not HOST:PORT", word::NAME))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let config = config().map_err(|error| format!("{}: {error}", word::TLS))?;
    let service = Service { address, host, at: addresses(address, until, resolve).map_err(|fault| fault.reason(""))? };
    let clock =
        SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| DateTime::from_unix_duration(now).ok());
    let mut stale = None;
    for (path, renewal) in QUESTIONS {
        let answer = get(&service, path, &config, until).map_err(|fault| fault.reason(path))?;
        let renewal = renewal(&answer).ok_or_else(|| format!("{}: {path} gave something else", word::MALFORMED))?;
        if let Some(clock) = clock.filter(|clock| *clock > renewal) {
            stale.get_or_insert_with(|| {
                format!("{}: {path} was to be renewed by {renewal}, and this machine's clock says {clock}", word::STALE)
            });
        }
    }
    stale.map_or_else(|| Ok("serves Intel's revocation list and the TD quoting enclave's identity".to_owned()), Err)
}

/// The service: as it is named, its name alone, and where that is.
struct Service<'a> {
    address: &'a str,
    host: &'a str,
    at: Vec<SocketAddr>,
}

/// Asks the resolver, which takes what time it likes, in a thread that may be left behind.
fn addresses(
    address: &str,
    until: Instant,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, Fault> {
    let (sender, found) = mpsc::sync_channel(1);
    let address = address.to_owned();
    let thread = std::thread::Builder::new().name("resolver".to_owned());
    // Nobody waits for it any more: then it has nobody to tell.
    thread.spawn(move || drop(sender.send(resolve(&address)))).map_err(Fault::Name)?;
    let late =
        |_| Fault::Name(io::Error::new(io::ErrorKind::TimedOut, "this machine's resolver did not answer in time"));
    found.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(late)?.map_err(Fault::Name)
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

fn get(service: &Service<'_>, path: &str, config: &Arc<ClientConfig>, until: Instant) -> Result<Vec<u8>, Fault> {
    let Service { address, host, at } = service;
    let stream = Timed { stream: connect(at, until)?, until };
    let name = ServerName::try_from((*host).to_owned()).map_err(|error| Fault::Name(io::Error::other(error)))?;
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
fn connect(addresses: &[SocketAddr], until: Instant) -> Result<TcpStream, Fault> {
    let mut last = Fault::Name(io::Error::other("the name has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(address, left(until).map_err(|_| Fault::Time)?) {
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

/// When a revocation list is to be renewed: DER, or DER in hexadecimal as PCCS has it. Intel's lists name it.
fn renewal_of_list(body: &[u8]) -> Option<DateTime> {
    let digits = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let trimmed = body.trim_ascii();
    let nibbles: Option<Vec<u8>> = trimmed.iter().map(digits).collect();
    let bytes = match nibbles {
        Some(nibbles) => {
            nibbles.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, half| (byte << 4) | half)).collect()
        }
        None => body.to_vec(),
    };
    let list = CertificateList::<Rfc5280>::from_der(&bytes).ok()?;
    Some(list.tbs_cert_list.next_update?.to_date_time())
}

/// When an enclave's identity is to be renewed.
fn renewal_of_identity(body: &[u8]) -> Option<DateTime> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    document.get("enclaveIdentity")?.get("nextUpdate")?.as_str()?.parse().ok()
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

/// When what was given is to be renewed; `None` for something else than what was asked for.
type Renewal = fn(&[u8]) -> Option<DateTime>;

/// Paths of Intel's API, version 4, and what reads their answers.
const QUESTIONS: [(&str, Renewal); 2] =
    [("/sgx/certification/v4/rootcacrl", renewal_of_list), ("/tdx/certification/v4/qe/identity", renewal_of_identity)];
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

    fn hexadecimal(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| format!("{byte:02X}").into_bytes()).collect()
    }

    #[test]
    fn bodies_have_the_form_of_what_was_asked_for() {
        let list = list(2033);
        let renewal = renewal_of_list(&list);
        assert_eq!(renewal.unwrap().to_string(), "2033-01-01T00:00:00Z");
        let text = hexadecimal(&list);
        for same in [text.clone(), text.to_ascii_lowercase(), [&text, b"\n".as_slice()].concat()] {
            assert_eq!(renewal_of_list(&same), renewal);
        }
        let longer = [list.as_slice(), &[0]].concat();
        for bad in [b"".as_slice(), b"<html>", &text[1..], &text[2..], &list[..6], &longer, b"30820003010203", b"0000"]
        {
            assert_eq!(renewal_of_list(bad), None, "{bad:?}");
        }
        let identity = br#"{"enclaveIdentity":{"id":"TD_QE","nextUpdate":"2033-01-01T00:00:00Z"},"signature":"00"}"#;
        assert_eq!(renewal_of_identity(identity), renewal);
        for bad in [
            "",
            "{}",
            r#"{"enclaveIdentity":1}"#,
            "[1]",
            r#"{"enclaveIdentity":{"id":"TD_QE"}}"#,
            r#"{"enclaveIdentity":{"nextUpdate":1}}"#,
            r#"{"enclaveIdentity":{"nextUpdate":"soon"}}"#,
            r#"{"enclaveIdentity":{"nextUpdate":"2033-01-01T00:00:00Z"}} x"#,
        ] {
            assert_eq!(renewal_of_identity(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_resolver_that_says_nothing_takes_no_longer_than_everything_may() {
        let (hold, held) = mpsc::channel::<()>();
        let began = Instant::now();
        let resolve = move |_: &str| {
            let _ = held.recv_timeout(Duration::from_secs(20));
            Ok(Vec::new())
        };
        let reason = ask_by("pccs.example:8081", Duration::from_millis(200), resolve).unwrap_err();
        assert!(reason.starts_with("name: this machine's resolver"), "{reason}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        drop(hold);
        for answer in [Ok(Vec::new()), Err(io::Error::other("no"))] {
            let reason = ask_by("pccs.example:8081", Duration::from_secs(10), move |_| answer).unwrap_err();
            assert!(reason.starts_with("name: "), "{reason}");
        }
    }

    fn list(until: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(until - 1, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&rcgen::Issuer::from_params(&authority, &key)).unwrap().der().to_vec()
    }
}
