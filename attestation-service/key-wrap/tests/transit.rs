// SPDX-License-Identifier: Apache-2.0
//! A transit service that behaves as Vault's documentation says, fails as it says, or lies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use key_wrap::{KekError, KekSource, WrapError};
use serde_json::{Value, json};

/// How the service behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Honest,
    /// Answers with this status.
    Status(u16),
    /// Gives what it decrypted last time, whatever is asked.
    SamePlaintext,
    /// Decrypts under any associated data.
    IgnoresContext,
    /// Answers with something else.
    Nonsense,
    Endless,
    /// Closes the connection without an answer.
    Silent,
}

struct Vault {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    /// Plaintext and associated data of each ciphertext.
    sealed: BTreeMap<String, (String, String)>,
    last: String,
    asked: Vec<String>,
}

impl Vault {
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { mood: Mood::Honest, sealed: BTreeMap::new(), last: String::new(), asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                match &tls {
                    None => answer(&shared, stream),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                        answer(&shared, rustls::StreamOwned::new(connection, stream));
                    }
                }
            }
        });
        Self { address, state }
    }

    fn mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }
}

/// One request; a connection that breaks is the client's affair.
fn answer<S: Read + Write>(state: &Mutex<State>, stream: S) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        if let Some(found) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = found.parse().unwrap();
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let mut state = state.lock().unwrap();
    let mood = state.mood;
    let (status, body) = respond(&mut state, &head, &body);
    drop(state);
    let stream = reader.get_mut();
    match mood {
        Mood::Silent => {}
        Mood::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
            for _ in 0..100 {
                if stream.write_all(&[b'x'; 1 << 16]).is_err() {
                    return;
                }
            }
        }
        _ => {
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.flush();
        }
    }
}

fn respond(state: &mut State, head: &[String], body: &[u8]) -> (u16, String) {
    let header = |name: &str| {
        head.iter().find_map(|line| line.to_ascii_lowercase().starts_with(name).then(|| line[name.len()..].to_owned()))
    };
    let path = head[0].split(' ').nth(1).unwrap().to_owned();
    state.asked.push(format!("{path} {:?}", header("x-vault-namespace: ")));
    if !head[0].starts_with("POST ") || header("x-vault-token: ").as_deref() != Some("s.token") {
        return (403, json!({"errors": ["permission denied"]}).to_string());
    }
    let body: Value = serde_json::from_slice(body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    match (state.mood, path.as_str()) {
        (Mood::Status(status), _) => (status, json!({"errors": ["as asked"]}).to_string()),
        (Mood::Nonsense, _) => (200, "{\"data\":{}}".to_owned()),
        (_, "/v1/transit/encrypt/kek") => {
            let ciphertext = format!("vault:v1:{}", state.sealed.len());
            state.sealed.insert(ciphertext.clone(), (text("plaintext"), text("associated_data")));
            (200, json!({"data": {"ciphertext": ciphertext, "key_version": 1}}).to_string())
        }
        (mood, "/v1/transit/decrypt/kek") => {
            let (plaintext, context) = match state.sealed.get(&text("ciphertext")) {
                Some(sealed) => sealed.clone(),
                None => return (400, json!({"errors": ["invalid ciphertext"]}).to_string()),
            };
            if mood != Mood::IgnoresContext && context != text("associated_data") {
                return (400, json!({"errors": ["cipher: message authentication failed"]}).to_string());
            }
            let given = if mood == Mood::SamePlaintext { state.last.clone() } else { plaintext };
            state.last.clone_from(&given);
            (200, json!({"data": {"plaintext": given}}).to_string())
        }
        _ => (404, json!({"errors": []}).to_string()),
    }
}

fn token(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("token");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn source(base: &str, path: &str, token: &Path, more: &str) -> KekSource {
    format!("transit:{base}/{path}?token-file={}{more}", token.display()).parse().unwrap()
}

fn unavailable(error: &WrapError) -> bool {
    matches!(error, WrapError::Unavailable(_))
}

#[test]
fn what_a_transit_service_says_is_believed_only_as_far_as_it_can_be() {
    let vault = Vault::start(None);
    let dir = tempfile::tempdir().unwrap();
    let base = format!("http://{}", vault.address);
    let file = token(dir.path(), "s.token\n");
    let kek = source(&base, "transit/kek", &file, "&namespace=team").open().unwrap();
    let id = format!("transit:{base}/transit/kek?namespace=team");
    assert_eq!((kek.id(), kek.is_remote()), (id.as_str(), true));
    // Rows of another place of the service, and of the time when names did not say where it is, are tried.
    for (name, may) in [
        (id.as_str(), true),
        ("transit:transit/kek", true),
        ("transit:https://vault.example/transit/kek", true),
        ("transit:https://vault.example/other/kek", false),
        ("transit:https://vault.example/transit/other", false),
        ("transit:not-transit/kek", false),
        ("pkcs11:transit/kek", false),
    ] {
        assert_eq!(kek.may_open(name), may, "{name}");
    }
    assert_eq!(vault.state.lock().unwrap().asked[0], "/v1/transit/encrypt/kek Some(\"team\")");
    let (one, two) = (kek.wrap(b"one", b"context 1").unwrap(), kek.wrap(b"two", b"context 2").unwrap());
    assert!(one.starts_with(b"vault:v1:"));
    let opened = kek.open(&one, b"context 1").unwrap();
    assert_eq!(opened.as_slice(), b"one");
    assert_eq!(kek.open(&one, b"context 2").unwrap_err(), WrapError::Open);
    assert_eq!(kek.open(b"vault:v1:999", b"context 1").unwrap_err(), WrapError::Open);
    assert_eq!(kek.open(&[0xff; 9], b"context 1").unwrap_err(), WrapError::Open);
    assert_eq!(kek.open(&vec![b'a'; 20_000], b"context 1").unwrap_err(), WrapError::Open);
    // Lies: another row's plaintext, and no look at what it belongs to.
    vault.mood(Mood::SamePlaintext);
    assert_eq!(kek.open(&two, b"context 2").unwrap_err(), WrapError::Open);
    vault.mood(Mood::IgnoresContext);
    assert_eq!(kek.open(&one, b"context 2").unwrap_err(), WrapError::Open);
    assert_eq!(kek.open(&one, b"context 1").unwrap().as_slice(), b"one");
    // Failures: each says so, and the next use is as good as the first.
    for mood in [
        Mood::Status(403),
        Mood::Status(503),
        Mood::Status(404),
        Mood::Status(500),
        Mood::Status(302),
        Mood::Nonsense,
        Mood::Endless,
        Mood::Silent,
    ] {
        vault.mood(mood);
        assert!(unavailable(&kek.open(&one, b"context 1").unwrap_err()), "{mood:?}");
        assert!(unavailable(&kek.wrap(b"one", b"context 1").unwrap_err()), "{mood:?}");
        vault.mood(Mood::Honest);
        assert_eq!(kek.open(&one, b"context 1").unwrap().as_slice(), b"one", "{mood:?}");
    }
    // The token is read each time: another one counts at once, and one that others can read is not used.
    token(dir.path(), "s.other");
    assert!(unavailable(&kek.open(&one, b"context 1").unwrap_err()));
    token(dir.path(), "s.token");
    assert_eq!(kek.open(&one, b"context 1").unwrap().as_slice(), b"one");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(unavailable(&kek.open(&one, b"context 1").unwrap_err()));
    token(dir.path(), "s.token");
    // No secret in what is said.
    vault.mood(Mood::Status(403));
    assert!(!kek.open(&one, b"context 1").unwrap_err().to_string().contains("s.token"));
    vault.mood(Mood::Honest);
    // What is not there, or not reachable.
    let missing = source(&base, "transit/other", &file, "").open().err().unwrap();
    assert!(matches!(missing, KekError::Wrap(WrapError::Unavailable(text)) if text.contains("404")));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = source(&format!("http://{closed}"), "transit/kek", &file, "").open().err().unwrap();
    assert!(matches!(gone, KekError::Wrap(WrapError::Unavailable(_))));
}

#[test]
fn https_is_verified() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let vault = Vault::start(Some(Arc::new(config)));
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
    std::fs::write(&ca, certificate.pem()).unwrap();
    let stranger = rcgen::KeyPair::generate().unwrap();
    let stranger = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&stranger).unwrap();
    std::fs::write(&other, stranger.pem()).unwrap();
    let file = token(dir.path(), "s.token");
    let open = |host: &str, ca: &Path| {
        let base = format!("https://{host}:{}", vault.address.port());
        source(&base, "transit/kek", &file, &format!("&ca-file={}", ca.display())).open()
    };
    let kek = open("127.0.0.1", &ca).unwrap();
    let wrapped = kek.wrap(b"secret", b"context").unwrap();
    assert_eq!(kek.open(&wrapped, b"context").unwrap().as_slice(), b"secret");
    for refused in [open("127.0.0.1", &other), open("localhost", &ca)] {
        assert!(matches!(refused.err().unwrap(), KekError::Wrap(WrapError::Unavailable(_))));
    }
    assert!(matches!(open("127.0.0.1", &dir.path().join("missing")).err().unwrap(), KekError::Unfit(_)));
}
