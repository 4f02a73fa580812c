// SPDX-License-Identifier: Apache-2.0
//! A PCCS on loopback. It answers one request for each connection, until it is dropped.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tdx_sim::Collateral;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Good,
    /// Closes every connection.
    Down,
    Status(u16),
    /// A byte now and then, without end.
    Slow,
    NotHttp,
    LargeBody,
    EndlessBody,
    LargeHead,
    /// Less than it says.
    CutBody,
    NoChain,
    BadChain,
    BadList,
    NotJson,
    MoreFields,
}

pub(crate) struct Pccs {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

struct State {
    collateral: Collateral,
    /// `None`: the same as in force.
    early: Option<Collateral>,
    mode: Mode,
}

impl Pccs {
    pub(crate) fn start(collateral: Collateral) -> Self {
        Self::listen(collateral, "http", answer)
    }

    /// With TLS; the certificate that it is known by, too.
    pub(crate) fn start_tls(collateral: Collateral) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let pccs = Self::listen(collateral, "https", move |stream, state| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            answer(StreamOwned::new(connection, stream), state);
        });
        (pccs, made.cert.pem())
    }

    fn listen(
        collateral: Collateral,
        scheme: &'static str,
        serve: impl Fn(TcpStream, &Mutex<State>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { collateral, early: None, mode: Mode::Good }));
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, end, serve) = (Arc::clone(&state), Arc::clone(&ended), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let (shared, serve) = (Arc::clone(&shared), Arc::clone(&serve));
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(300)));
                    serve(stream, &shared);
                });
            }
        });
        Self { address, scheme, state, ended }
    }

    pub(crate) fn url(&self) -> String {
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}/sgx/certification/v4/", self.scheme, self.address.port())
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = mode;
    }

    pub(crate) fn serve(&self, collateral: Collateral) {
        self.state.lock().unwrap().collateral = collateral;
    }

    pub(crate) fn serve_early(&self, early: Option<Collateral>) {
        self.state.lock().unwrap().early = early;
    }
}

impl Drop for Pccs {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// A peer that went away is no failure of the test.
fn answer<S: Read + Write>(mut stream: S, state: &Mutex<State>) {
    let Some(target) = request(&mut stream) else { return };
    let (mode, collateral) = {
        let state = state.lock().unwrap();
        let early = target.contains("update=early");
        let collateral = if early { state.early.as_ref().unwrap_or(&state.collateral) } else { &state.collateral };
        (state.mode, collateral.clone())
    };
    let found = resource(&target, &collateral, mode);
    let text = |head: &str, body: &[u8]| [head.as_bytes(), b"\r\n", body].concat();
    let _ = match (mode, found) {
        (Mode::Down, _) => Ok(()),
        (Mode::NotHttp, _) => stream.write_all(b"220 ready\r\n\r\n"),
        (Mode::Status(code), _) => {
            stream.write_all(&text(&format!("HTTP/1.1 {code} X\r\nlocation: /\r\ncontent-length: 0\r\n"), b""))
        }
        (Mode::Slow, _) => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'x'));
            bytes.try_for_each(|byte| {
                thread::sleep(Duration::from_millis(100));
                stream.write_all(&[*byte]).and_then(|()| stream.flush())
            })
        }
        (Mode::LargeHead, _) => stream
            .write_all(&text(&format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n", "x".repeat(100_000)), b"")),
        (Mode::LargeBody, _) => {
            stream.write_all(&text("HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n", &vec![b'0'; 400_000]))
        }
        (Mode::EndlessBody, _) => {
            let head = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n".as_slice(), &[b'0'; 0x10000], b"\r\n"].concat();
            head.and_then(|()| (0..1000).try_for_each(|_| stream.write_all(&chunk)))
        }
        (Mode::CutBody, _) => stream.write_all(&text("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n", b"30")),
        (_, None) => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        (_, Some((header, body))) => {
            let head = format!("HTTP/1.1 200 OK\r\n{header}content-length: {}\r\n", body.len());
            stream.write_all(&text(&head, &body))
        }
    };
    let _ = stream.flush();
}

fn request<S: Read>(stream: &mut S) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first).ok()?;
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    first.strip_prefix("GET ")?.split(' ').next().map(str::to_owned)
}

/// Header lines and body, as Intel's interface has them; the root's list in hexadecimal, as PCCS serve it.
fn resource(target: &str, collateral: &Collateral, mode: Mode) -> Option<(String, Vec<u8>)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let chain = |name: &str, pem: &str| match mode {
        Mode::NoChain => String::new(),
        Mode::BadChain => format!("{name}: %zz\r\n"),
        _ => format!("{name}: {}\r\n", encode(pem)),
    };
    let signed = |name: &str, document: &str, signature: &[u8]| {
        let more = if mode == Mode::MoreFields { ",\"x\":1" } else { "" };
        match mode {
            Mode::NotJson => b"<html>".to_vec(),
            _ => format!("{{\"{name}\":{document},\"signature\":\"{}\"{more}}}", hex::encode(signature)).into_bytes(),
        }
    };
    match path {
        "/sgx/certification/v4/pckcrl" if query == "ca=platform&encoding=der" => {
            let list = if mode == Mode::BadList { b"list".to_vec() } else { collateral.pck_crl.clone() };
            Some((chain("SGX-PCK-CRL-Issuer-Chain", &collateral.pck_crl_issuer_chain), list))
        }
        "/sgx/certification/v4/rootcacrl" => Some((String::new(), hex::encode(&collateral.root_ca_crl).into_bytes())),
        "/tdx/certification/v4/tcb" if query.starts_with("fmspc=53494D000000") => Some((
            chain("TCB-Info-Issuer-Chain", &collateral.tcb_info_issuer_chain),
            signed("tcbInfo", &collateral.tcb_info, &collateral.tcb_info_signature),
        )),
        "/tdx/certification/v4/qe/identity" => Some((
            chain("SGX-Enclave-Identity-Issuer-Chain", &collateral.qe_identity_issuer_chain),
            signed("enclaveIdentity", &collateral.qe_identity, &collateral.qe_identity_signature),
        )),
        _ => None,
    }
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
