// SPDX-License-Identifier: Apache-2.0
//! What is said of a certificate cache that works, and of each way in which one does not, against a stand-in on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod tree;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preflight::{Answer, LiveProbes, Probes as _, Question, Status};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tree::Tree;
use vfio::HostTree;

/// Serves by TLS with a certificate that nobody knows; `answer` gives the bytes for a path.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["pccs.invalid".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the test's process.
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && tls.read_exact(&mut byte).is_ok() {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default();
            // The client may have hung up.
            let _ = tls.write_all(&answer(path));
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    // Both addresses of the name are tried, as PCCS listens at one of them.
    format!("localhost:{port}")
}

fn ask(address: &str) -> Answer {
    let tree = HostTree::open(std::path::Path::new("/")).unwrap();
    let probes = LiveProbes { qemu: "qemu".into(), tree: &tree, gpu_mode: None };
    probes.ask(&Question::Pccs(address.to_owned()))
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn good(path: &str) -> Vec<u8> {
    match path {
        LIST => http("200 OK", &list(2100)),
        IDENTITY => http("200 OK", &identity(2100)),
        other => panic!("{other} was not to be asked for"),
    }
}

/// A revocation list in hexadecimal, which is to be renewed in this year.
fn list(year: i32) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(year, 6, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&rcgen::Issuer::from_params(&authority, &key)).unwrap();
    list.der().iter().map(|byte| format!("{byte:02X}")).collect()
}

fn identity(year: i32) -> String {
    format!(r#"{{"enclaveIdentity":{{"id":"TD_QE","nextUpdate":"{year}-06-01T00:00:00Z"}},"signature":"ab"}}"#)
}

fn failed(address: &str) -> String {
    match ask(address) {
        Answer::Failed(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cache_with_a_certificate_of_its_own_passes() {
    assert!(matches!(ask(&serve(good)), Answer::Given(found) if found.contains("revocation list")));
}

#[test]
fn what_was_to_be_renewed_before_now_is_told_with_its_date() {
    for (path, old) in [(LIST, http("200 OK", &list(2021))), (IDENTITY, http("200 OK", &identity(2021)))] {
        let address = serve(move |asked| if asked == path { old.clone() } else { good(asked) });
        let reason = failed(&address);
        assert!(reason.starts_with(&format!("stale: {path} was to be renewed by 2021-06-01T00:00:00Z")), "{reason}");
    }
    // A fault of the second question counts more.
    let old = http("200 OK", &list(2021));
    let address = serve(move |path| if path == LIST { old.clone() } else { http("404 Not Found", BAIT) });
    assert!(failed(&address).starts_with("status 404: /tdx/"));
}

#[test]
fn a_stale_cache_is_a_warning_with_the_command_that_refreshes_it() {
    let reason = "stale: /sgx/… was to be renewed by 2021-06-01T00:00:00Z, and this machine's clock says …";
    let mut tree = Tree::server();
    tree.answer("pccs localhost:8081", &format!("failed {reason}"));
    let report = tree.report();
    let check = report.checks.iter().find(|check| check.id == "pccs").unwrap();
    assert_eq!((check.status, check.evidence[0].found.as_str()), (Status::Warn, reason));
    let command = "curl -k -X POST -H 'admin-token: TOKEN' https://localhost:8081/sgx/certification/v4/refresh ";
    assert!(check.fix.contains(command) && check.fix.contains("date -u"), "{}", check.fix);
}

#[test]
fn each_fault_is_told_by_its_word() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(failed(&free.to_string()).starts_with("refused: "), "{}", failed(&free.to_string()));
    for name in ["pccs.invalid:8081", "8081", "localhost:port"] {
        assert!(failed(name).starts_with("name: "), "{name}: {}", failed(name));
    }
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "502 Bad Gateway", "302 Found"] {
        let address = serve(move |_| http(status, BAIT));
        let reason = failed(&address);
        assert!(reason.starts_with(&format!("status {}: /sgx/", &status[..3])), "{reason}");
        assert!(!reason.contains(BAIT), "{reason}");
    }
    // A service of SGX's time has the first and not the second.
    let old = serve(|path| if path.starts_with("/sgx") { good(path) } else { http("404 Not Found", BAIT) });
    assert!(failed(&old).starts_with("status 404: /tdx/"));
    let endless = vec![b'a'; 1 << 20];
    let bodies: [Vec<u8>; 5] =
        [http("200 OK", "<html>"), http("200 OK", ""), b"SSH-2.0-x\r\n".to_vec(), Vec::new(), endless];
    for body in bodies {
        let address = serve(move |_| body.clone());
        assert!(failed(&address).starts_with("malformed: "), "{}", failed(&address));
    }
}

#[test]
fn what_speaks_no_tls_is_told_apart_from_what_says_nothing() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = plain.accept() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    assert!(failed(&address).starts_with("tls: "), "{}", failed(&address));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    let reason = failed(&silent.local_addr().unwrap().to_string());
    assert!(reason.starts_with("timeout: "), "{reason}");
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn each_fault_has_its_fix() {
    let mut fixes: Vec<String> = Vec::new();
    for (reason, fix) in [
        ("name: no such name", "--pccs"),
        ("refused: Connection refused", "enable --now pccs"),
        ("timeout: /sgx/… had no whole answer in time", "firewall"),
        ("tls: received corrupt message", "HTTPS"),
        ("status 401: /sgx/…", "password"),
        ("status 404: /tdx/…", "update sgx-dcap-pccs"),
        ("status 502: /sgx/…", "ApiKey"),
        ("status 302: /sgx/…", "redirections"),
        ("malformed: /sgx/… gave something else", "something else"),
    ] {
        let mut tree = Tree::server();
        tree.answer("pccs localhost:8081", &format!("failed {reason}"));
        let report = tree.report();
        let check = report.checks.iter().find(|check| check.id == "pccs").unwrap();
        assert_eq!((check.status, check.evidence[0].found.as_str()), (Status::Fail, reason));
        assert!(check.fix.contains(fix) && !fixes.contains(&check.fix), "{reason}: {}", check.fix);
        fixes.push(check.fix.clone());
    }
}

const LIST: &str = "/sgx/certification/v4/rootcacrl";
const IDENTITY: &str = "/tdx/certification/v4/qe/identity";
const BAIT: &str = "words-of-the-service";
