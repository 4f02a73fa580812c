// SPDX-License-Identifier: Apache-2.0
//! A store that computes the signature of each request by itself, from what arrived, with other code than the cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the store knows and how it behaves.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) id: &'static str,
    pub(super) secret: &'static str,
    pub(super) token: Option<&'static str>,
    /// After so many requests another token counts, and the first has expired.
    pub(super) later: Option<(usize, &'static str)>,
    pub(super) region: &'static str,
    /// How far its clock is ahead.
    pub(super) ahead: i64,
    /// Answers break off after these bytes.
    pub(super) cut: usize,
    /// Redirects instead of answering.
    pub(super) redirect: bool,
    /// The bucket's name comes with the host.
    pub(super) virtual_host: bool,
    /// Done before a refusal is sent.
    pub(super) on_refusal: Option<Arc<dyn Fn() + Send + Sync>>,
}

pub(super) const GOOD: Settings = Settings {
    id: "AKID",
    secret: "se/cr+et",
    token: None,
    later: None,
    region: "eu-central-1",
    ahead: 0,
    cut: usize::MAX,
    redirect: false,
    virtual_host: false,
    on_refusal: None,
};

/// Path and range of each request.
type Taken = Vec<(String, Option<String>)>;

pub(super) struct Store {
    pub(super) port: u16,
    /// What was taken: path, and the range's header.
    pub(super) taken: Arc<Mutex<Taken>>,
    /// Codes of what was refused.
    pub(super) refused: Arc<Mutex<Vec<String>>>,
}

/// Serves `files` as the objects of the bucket `models`, below `packs/a b`.
pub(super) async fn start(files: &Path, settings: Settings) -> Store {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let store = Store { port, taken: Arc::default(), refused: Arc::default() };
    let (files, taken, refused) = (files.to_owned(), Arc::clone(&store.taken), Arc::clone(&store.refused));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (files, settings) = (files.clone(), settings.clone());
            let (taken, refused) = (Arc::clone(&taken), Arc::clone(&refused));
            tokio::spawn(async move { drop(answer(stream, files, &settings, &taken, &refused).await) });
        }
    });
    store
}

async fn answer(
    stream: TcpStream,
    files: PathBuf,
    settings: &Settings,
    taken: &Mutex<Vec<(String, Option<String>)>>,
    refused: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    if settings.redirect {
        let head = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        return stream.flush().await;
    }
    let token = match settings.later {
        Some((after, token)) if taken.lock().unwrap().len() >= after => Some(token),
        _ => settings.token,
    };
    let host = header(&headers, "host").unwrap_or_default();
    let outcome =
        judge(&path, &headers, settings, token).and_then(|()| object(host, &path, &files, settings.virtual_host));
    let body = match outcome {
        Ok(body) => body,
        Err((status, code)) => {
            refused.lock().unwrap().push(code.to_owned());
            if let Some(act) = &settings.on_refusal {
                act();
            }
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{BAIT}</Message></Error>");
            let head = format!("HTTP/1.1 {status} No\r\ncontent-length: {}\r\nx-bait: {BAIT}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            return stream.flush().await;
        }
    };
    let range = header(&headers, "range");
    taken.lock().unwrap().push((path, range.map(str::to_owned)));
    let from = range.map_or(0, |range| range["bytes=".len()..].split('-').next().unwrap().parse().unwrap());
    let (length, rest) = (body.len(), &body[from..]);
    let head = if from > 0 {
        format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{length}\r\n", length - 1)
    } else {
        "HTTP/1.1 200 OK\r\n".to_owned()
    };
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", rest.len()).as_bytes()).await?;
    stream.write_all(&rest[..rest.len().min(settings.cut)]).await?;
    stream.flush().await
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn object(host: &str, path: &str, files: &Path, virtual_host: bool) -> Result<Vec<u8>, (u16, &'static str)> {
    if host.starts_with("models.") != virtual_host {
        return Err((404, "NoSuchBucket"));
    }
    let bucket = if virtual_host { "/packs/a%20b/" } else { "/models/packs/a%20b/" };
    let name = path.strip_prefix(bucket).ok_or((404, "NoSuchBucket"))?;
    std::fs::read(files.join(name)).map_err(|_| (404, "NoSuchKey"))
}

fn judge(
    path: &str,
    headers: &[(String, String)],
    settings: &Settings,
    token: Option<&str>,
) -> Result<(), (u16, &'static str)> {
    let authorization = header(headers, "authorization").ok_or((403, "AccessDenied"))?;
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or((400, "AuthorizationHeaderMalformed"))?;
    let field = |name: &str| fields.split(", ").find_map(|field| field.strip_prefix(name)).unwrap_or_default();
    let (credential, signed) = (field("Credential="), field("SignedHeaders="));
    let parts: Vec<&str> = credential.split('/').collect();
    let [id, day, region, service, end] = parts[..] else { return Err((400, "AuthorizationHeaderMalformed")) };
    if id != settings.id {
        return Err((403, "InvalidAccessKeyId"));
    }
    let stamp = header(headers, "x-amz-date").ok_or((403, "AccessDenied"))?;
    if (region, service, end) != (settings.region, "s3", "aws4_request") || !stamp.starts_with(day) {
        return Err((400, "AuthorizationHeaderMalformed"));
    }
    // All that changes what is asked must be signed.
    for (name, _) in headers {
        let counts = name == "host" || name == "range" || name.starts_with("x-amz-");
        if counts && !signed.split(';').any(|signed| signed == name) {
            return Err((403, "AccessDenied"));
        }
    }
    let said = header(headers, "x-amz-security-token");
    if said != token {
        let expired = said.is_some() && said == settings.token;
        return Err((400, if expired { "ExpiredToken" } else { "InvalidToken" }));
    }
    if signature(path, headers, signed, credential, stamp, settings.secret) != field("Signature=") {
        return Err((403, "SignatureDoesNotMatch"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ahead = i64::try_from(now).unwrap() + settings.ahead - seconds(stamp);
    if ahead.abs() > 15 * 60 { Err((403, "RequestTimeTooSkewed")) } else { Ok(()) }
}

fn signature(
    path: &str,
    headers: &[(String, String)],
    signed: &str,
    credential: &str,
    stamp: &str,
    secret: &str,
) -> String {
    let named = signed.split(';').map(|name| format!("{name}:{}\n", header(headers, name).unwrap()));
    let named: String = named.collect();
    let body = header(headers, "x-amz-content-sha256").unwrap();
    let request = format!("GET\n{path}\n\n{named}\n{signed}\n{body}");
    let scope = credential.split_once('/').unwrap().1;
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(request)));
    let first = format!("AWS4{secret}").into_bytes();
    let key = scope.split('/').fold(first, |key, part| mac(&key, part));
    hex(&mac(&key, &text))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970 of `YYYYMMDDTHHMMSSZ`, day by day.
fn seconds(stamp: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| stamp[range].parse::<i64>().unwrap();
    let (year, month, day) = (number(0..4), number(4..6), number(6..8));
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: i64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let months: i64 = lengths.iter().take(usize::try_from(month - 1).unwrap()).sum();
    (years + months + day - 1) * 86_400 + number(9..11) * 3600 + number(11..13) * 60 + number(13..15)
}

/// Stands in every refusal and must be in no message.
pub(super) const BAIT: &str = "StringToSign-and-more";
