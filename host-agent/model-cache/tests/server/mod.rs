// SPDX-License-Identifier: Apache-2.0
//! Packs, and a web server that serves them well or badly. It is a task of the test's own runtime and ends with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use model::{Key, KeyName, Labels, Limits};
use model_cache::Source;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use types::Blake3Digest;

pub(crate) struct Pack {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) root: Blake3Digest,
    pub(crate) identity: Blake3Digest,
    pub(crate) objects: usize,
}

/// A pack of a file with `size` bytes, in objects of 256 KiB.
pub(crate) fn pack(directory: &Path, name: &str, size: usize) -> Pack {
    let input = directory.join(format!("{name}-files"));
    std::fs::create_dir(&input).unwrap();
    let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    std::fs::write(input.join("weights.gguf"), bytes).unwrap();
    let path = directory.join(name);
    let labels = Labels { name, revision: "1", key: KeyName { id: "k".to_owned(), version: 1 } };
    let limits = Limits { object_size: 256 * 1024, segment_size: 64 * 1024 };
    model::create(&labels, &input, &Key::new(&[7; 32]), &path, limits, &|_| ()).unwrap();
    let directory = model::Directory::open(&path).unwrap();
    let index = model::Source::index(&directory);
    let (root, identity, objects) = (model_cache::root_of(index).unwrap(), index.identity, index.objects.len());
    assert_eq!(root.as_bytes(), blake3::hash(&std::fs::read(path.join("pack.json")).unwrap()).as_bytes());
    Pack { name: name.to_owned(), path, root, identity, objects }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Good,
    /// Every answer about an object breaks off after these bytes.
    CutAfter(usize),
    /// Ranges are not known.
    NoRanges,
    /// The last byte of each object is another.
    WrongByte,
    /// Chunks without an end.
    Endless,
    /// The head promises more than `pack.json`.
    TooLong,
    /// An answer elsewhere.
    Redirect,
    /// Nothing after the head.
    Silent,
    /// Compressed, it says.
    Encoded,
    /// No such file.
    Missing,
    /// No HTTP at all.
    Noise,
    /// Another pack.json.
    WrongIndex,
    /// A byte of pack.json at a time, each before it would be given up.
    DrippingIndex,
}

pub(crate) struct Server {
    pub(crate) source: Source,
    /// Requests: path and first byte.
    pub(crate) requests: Arc<Mutex<Vec<(String, usize)>>>,
}

impl Server {
    pub(crate) fn asked(&self, what: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|(path, _)| path.contains(what)).count()
    }
}

pub(crate) async fn serve(pack: &Pack, manner: Manner) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (path, log) = (pack.path.clone(), Arc::clone(&requests));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (path, log) = (path.clone(), Arc::clone(&log));
            // The client may hang up at any time.
            tokio::spawn(async move { drop(answer(stream, &path, manner, &log).await) });
        }
    });
    let source = Source::parse(&format!("http://{address}/bucket/pack"), || Ok(Vec::new())).unwrap();
    Server { source, requests }
}

/// An authority of the test's own, and what it certifies.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub(crate) pem: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority for a test");
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    fn server(&self, name: &str) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The same over TLS, with a certificate of `authority` for `name`, from a source that believes `believed`.
pub(crate) async fn serve_tls(
    pack: &Pack,
    manner: Manner,
    authority: &Authority,
    name: &str,
    believed: &[u8],
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (path, log, acceptor) = (pack.path.clone(), Arc::clone(&requests), authority.server(name));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (path, log, acceptor) = (path.clone(), Arc::clone(&log), acceptor.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await?;
                answer(stream, &path, manner, &log).await
            });
        }
    });
    let source = Source::parse(&format!("https://{address}/bucket/pack"), || Ok(believed.to_vec())).unwrap();
    Server { source, requests }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    root: &Path,
    manner: Manner,
    log: &Mutex<Vec<(String, usize)>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut path, mut from) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap().to_owned();
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    log.lock().unwrap().push((path.clone(), from));
    let mut body = std::fs::read(root.join(path.strip_prefix("/bucket/pack/").unwrap()))?;
    let about_object = path.contains("/objects/");
    let length = body.len();
    match manner {
        Manner::WrongByte if about_object => *body.last_mut().unwrap() ^= 1,
        Manner::WrongIndex if !about_object => body.push(b' '),
        Manner::NoRanges => from = 0,
        _ => {}
    }
    let mut body = &body[from..];
    let mut head = if from > 0 {
        format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{length}\r\n", length - 1)
    } else {
        "HTTP/1.1 200 OK\r\n".to_owned()
    };
    let mut said = body.len();
    match manner {
        Manner::Redirect => head = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n".to_owned(),
        Manner::Missing => head = "HTTP/1.1 404 Not Found\r\n".to_owned(),
        Manner::Noise => head = "SSH-2.0-hello\r\n".to_owned(),
        Manner::Encoded if about_object => head.push_str("content-encoding: gzip\r\n"),
        Manner::TooLong if about_object => said += 1,
        Manner::CutAfter(bytes) if about_object => body = &body[..bytes.min(body.len())],
        Manner::Endless if about_object => {
            stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
            loop {
                stream.write_all(format!("{:x}\r\n", 65536).as_bytes()).await?;
                stream.write_all(&[0; 65536]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
        _ => {}
    }
    stream.write_all(format!("{head}content-length: {said}\r\n\r\n").as_bytes()).await?;
    if manner == Manner::Silent && about_object {
        return std::future::pending().await;
    }
    if manner == Manner::DrippingIndex && !about_object {
        for byte in body {
            stream.write_all(&[*byte]).await?;
            stream.flush().await?;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    stream.write_all(body).await?;
    stream.flush().await
}
