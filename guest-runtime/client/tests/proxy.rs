// SPDX-License-Identifier: Apache-2.0
//! `attested-proxy` as a local client sees it; hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use attester_protocol::ServingAnswer;
use engine_protocol::Command;
use serde_json::Value;
use tdx_verify::TrustAnchors;
use types::Base64;
use world::{World, model};

/// A proxy in a thread, which ends with the process.
struct Proxy {
    address: SocketAddr,
    receipts: PathBuf,
    policy: PathBuf,
    anchors: TrustAnchors,
}

impl Proxy {
    async fn start(world: &World) -> Self {
        Self::start_at(world, &world.upstream).await
    }

    /// Reaches the guest at another address.
    async fn start_at(world: &World, upstream: &client::Upstream) -> Self {
        Self::start_with(world, upstream, 3600).await
    }

    /// Waits so many seconds for an answer to begin.
    async fn start_with(world: &World, upstream: &client::Upstream, patience: u32) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (receipts, policy) = (world.directory.path().join("receipts"), world.write_policy());
        let proxy = Self { address, receipts, policy, anchors: world.anchors() };
        let (upstream, listen, patience) = (upstream.to_string(), address.to_string(), patience.to_string());
        let arguments = [
            "--upstream".as_ref(),
            upstream.as_ref(),
            "--policy".as_ref(),
            proxy.policy.as_os_str(),
            "--listen".as_ref(),
            listen.as_ref(),
            "--receipts".as_ref(),
            proxy.receipts.as_os_str(),
            "--patience".as_ref(),
            patience.as_ref(),
            "--explain".as_ref(),
            "--json".as_ref(),
        ];
        let (anchors, arguments) = (proxy.anchors.clone(), command(&arguments));
        std::thread::spawn(move || client::run(&anchors, arguments));
        for _ in 0..3000 {
            if TcpStream::connect(address).is_ok() {
                return proxy;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the proxy did not start");
    }

    /// Status, and everything after the head.
    async fn send(&self, method: &str, path: &str, host: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.send_with("", method, path, host, body).await;
        (status, body)
    }

    /// With further lines in the head. Status, head, and everything after it.
    async fn send_with(&self, lines: &str, method: &str, path: &str, host: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{lines}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let address = self.address;
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
        .await
        .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    async fn chat(&self, prompt: &str, stream: bool) -> (u16, String) {
        let body = format!(
            r#"{{"model":"{}","messages":[{{"role":"user","content":"{prompt}"}}],"stream":{stream}}}"#,
            model()
        );
        self.send("POST", "/v1/chat/completions", "localhost:1", &body).await
    }

    fn verify(&self, arguments: &[&std::ffi::OsStr]) -> ExitCode {
        let arguments = [&["verify-receipt".as_ref()], arguments].concat();
        client::run(&self.anchors, command(&arguments))
    }

    fn receipts(&self) -> Vec<PathBuf> {
        let is_receipt = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("receipt-");
        let mut found: Vec<_> =
            std::fs::read_dir(&self.receipts).unwrap().map(|entry| entry.unwrap().path()).filter(is_receipt).collect();
        found.sort();
        found
    }
}

fn command(arguments: &[&std::ffi::OsStr]) -> Vec<OsString> {
    std::iter::once("attested-proxy".into()).chain(arguments.iter().map(|argument| (*argument).to_owned())).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap()
}

fn same(code: ExitCode, number: u8) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(number))
}

/// Changes one byte of a file's text.
fn tamper(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_through_and_receipts_verify_later() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    let (status, body) = proxy.send("GET", "/v1/models", "localhost", "").await;
    assert_eq!((status, json(&body)["data"][0]["id"].as_str().unwrap()), (200, model().to_string().as_str()));
    let (status, body) = proxy.chat("hi", false).await;
    assert_eq!((status, json(&body)["choices"][0]["message"]["content"].as_str().unwrap()), (200, "Paris."));
    let (status, body) = proxy.chat("hi", true).await;
    assert_eq!(status, 200);
    let place = |text: &str| body.find(text).unwrap();
    assert!(place("\"Par\"") < place("data: [DONE]\n\n") && place("data: [DONE]\n\n") < place(": chrysalis-receipt "));
    let (_, verdict) = proxy.send("GET", "/chrysalis/verdict", "127.0.0.1:9", "").await;
    assert_eq!((json(&verdict)["accepted"].clone(), json(&verdict)["instance"].clone()), (true.into(), "any".into()));

    let stored = proxy.receipts();
    assert_eq!(stored.len(), 2);
    let receipt = stored[0].as_os_str();
    assert!(same(proxy.verify(&[receipt, "--json".as_ref()]), 0));
    assert!(same(proxy.verify(&[receipt, "--policy".as_ref(), proxy.policy.as_os_str()]), 0));
    let request = world.directory.path().join("request");
    let response = world.directory.path().join("response");
    let body = format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hi"}}],"stream":false}}"#, model());
    std::fs::write(&request, body).unwrap();
    std::fs::write(&response, "Paris.").unwrap();
    let content = [receipt, "--request".as_ref(), request.as_os_str(), "--response".as_ref(), response.as_os_str()];
    assert!(same(proxy.verify(&content), 0));
    std::fs::write(&response, "London.").unwrap();
    assert!(same(proxy.verify(&content), 2));
    assert!(same(proxy.verify(&[receipt, "--policy".as_ref(), "/nonexistent".as_ref()]), 1));
    assert!(same(proxy.verify(&["/nonexistent".as_ref()]), 1));
    assert!(same(proxy.verify(&[]), 64));
    tamper(&stored[0], "\"completion_tokens\":4", "\"completion_tokens\":5");
    assert!(same(proxy.verify(&[receipt]), 2));
}

/// The guest closes what is idle, and each connection after its answer: what runs is answered to its end, and afterwards a
/// local client notices nothing, but for a request that crosses the end of its idle connection: nobody can know whether
/// it was read, so it is not sent again, and says so.
/// Attack 51's relative: what was accepted once is not for ever. A policy that no longer accepts the guest is obeyed by the
/// next request, also where a connection waits that the old one accepted; a file that cannot be read changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_read_again_voids_the_verdicts_of_before() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    assert_eq!(proxy.chat("hi", false).await.0, 200);
    let accepting = std::fs::read_to_string(&proxy.policy).unwrap();
    let mut other = json(&accepting);
    other["appraisal"]["service_pins"] = serde_json::json!(["00".repeat(32)]);
    let reread = |text: &str| {
        std::fs::write(&proxy.policy, text).unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
    };
    // Nothing tells when the signal was taken: asked again until the answer changes.
    let until = async |status: u16| {
        loop {
            let answer = proxy.chat("hi", false).await;
            if answer.0 == status {
                return answer.1;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    reread(&other.to_string());
    assert!(until(502).await.contains("service_pin_mismatch"));
    reread("{");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(proxy.chat("hi", false).await.1.contains("service_pin_mismatch"));
    reread(&accepting);
    until(200).await;
    // Receipts are kept and compared as before.
    let kept = proxy.receipts().len();
    assert!(kept >= 2, "{kept}");
    assert_eq!(proxy.chat("hi", true).await.0, 200);
    assert_eq!(proxy.receipts().len(), kept + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_finishes_costs_no_request() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    let ask = async |prompt: &str, stream: bool| {
        let (status, body) = proxy.chat(prompt, stream).await;
        assert!(status == 200 && body.contains("Par"), "{status} {body}");
    };
    let told = |prompt: &str| {
        let commands = world.engine.commands.lock().unwrap();
        let has = |command: &&Command| matches!(command, Command::Generate(request) if request.prompt.texts().any(|text| text == prompt));
        commands.iter().filter(has).count()
    };
    // As many connections as the pool shall have.
    tokio::join!(ask("hi", true), ask("hi", false), ask("hi", true), ask("hi", false));
    // While two are asked, and with others that wait.
    tokio::join!(ask("hang", true), ask("hang", false), async {
        while told("hang") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.drain();
        tokio::task::block_in_place(|| world.engine.answer_hanging());
    });
    // At most one for each connection that was idle when the guest was told.
    let mut crossed = 0;
    for at in 0..16 {
        let (status, body) = proxy.chat("hi", at % 2 == 0).await;
        if !(status == 200 && body.contains("Par")) {
            assert!(body.contains("upstream_broken"), "{status} {body}");
            crossed += 1;
        }
    }
    assert!(crossed <= 3, "{crossed}");
    assert_eq!(proxy.receipts().len(), 22 - crossed);
}

/// One pool of connections for several local users with keys of their own: the guest knows each request by its key.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_tenants_go_to_the_guest_and_tell_requests_apart() {
    let world = World::with_tenants(&[("a", Some(2)), ("b", None)]).await;
    let proxy = Proxy::start(&world).await;
    let ask = async |lines: &str| {
        let body = format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hi"}}]}}"#, model());
        proxy.send_with(lines, "POST", "/v1/chat/completions", "localhost", &body).await
    };
    let (a, b) = ("authorization: Bearer key-of-a\r\n", "authorization: Bearer key-of-b\r\n");
    let both = [a, b].concat();
    for lines in ["", "authorization: Bearer key-of-c\r\n", "authorization: key-of-a\r\n", &both] {
        let (status, head, body) = ask(lines).await;
        assert_eq!((status, json(&body)["error"]["code"].as_str()), (401, Some("invalid_api_key")), "{lines}");
        assert!(head.to_lowercase().contains("www-authenticate: bearer") && !body.contains("key-of"), "{head}");
    }
    assert!(world.engine.commands.lock().unwrap().is_empty());
    let (status, head, first) = ask(a).await;
    assert_eq!(status, 200);
    assert!(head.contains("x-ratelimit-limit-requests: 2") && head.contains("x-ratelimit-remaining-requests: 1"));
    assert_eq!(ask(b).await.0, 200);
    assert_eq!(ask(a).await.0, 200);
    let (status, head, _) = ask(a).await;
    assert_eq!(status, 429);
    assert!(head.contains("retry-after: "), "{head}");
    assert_eq!(ask(b).await.0, 200, "another tenant's limit is not reached");
    // By few connections, and still each request is its tenant's.
    let commands = world.engine.commands.lock().unwrap().clone();
    let of = |command: Command| if let Command::Generate(request) = command { Some(request.tenant) } else { None };
    let tenants: Vec<_> = commands.into_iter().filter_map(of).collect();
    assert!(tenants[0] == tenants[2] && tenants[1] == tenants[3] && tenants[0] != tenants[1]);
    let path = format!("/v1/receipts/{}", json(&first)["id"].as_str().unwrap());
    assert_eq!(proxy.send_with(a, "GET", &path, "localhost", "").await.0, 200);
    assert_eq!(proxy.send_with(b, "GET", &path, "localhost", "").await.0, 404, "another tenant's receipt");
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_come_through_with_their_receipts_alone() {
    let world = World::with_vectors().await;
    let proxy = Proxy::start(&world).await;
    let ask = |encoding: &str| format!(r#"{{"model":"{}","input":["a","b"],"encoding_format":"{encoding}"}}"#, model());
    for encoding in ["float", "base64"] {
        let request = ask(encoding);
        let (status, answer) = proxy.send("POST", "/v1/embeddings", "localhost", &request).await;
        assert_eq!(status, 200, "{answer}");
        let stored = proxy.receipts();
        let path = |name: &str| world.directory.path().join(name);
        std::fs::write(path("request"), request).unwrap();
        let verify = |answer: &str| {
            std::fs::write(path("answer"), answer).unwrap();
            let (request, answer) = (path("request"), path("answer"));
            let given = ["--request".as_ref(), request.as_os_str(), "--answer".as_ref(), answer.as_os_str()];
            stored.iter().filter(|r| same(proxy.verify(&[&[r.as_os_str()], &given[..]].concat()), 0)).count()
        };
        assert_eq!(verify(&answer), 1);
        let changed = answer.replacen(
            if encoding == "float" { "0.5" } else { "AAAAP" },
            if encoding == "float" { "0.25" } else { "AAABP" },
            1,
        );
        assert_ne!(changed, answer);
        assert_eq!(verify(&changed), 0);
    }
    world.lie_in_answers(|answer| {
        if let ServingAnswer::Receipt { signature, .. } = answer {
            *signature = Base64::new(vec![1; 64]).unwrap();
        }
    });
    let (status, answer) = proxy.send("POST", "/v1/embeddings", "localhost", &ask("float")).await;
    assert_eq!(status, 502);
    assert!(!answer.contains("embedding\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_for_the_guest_stay_here() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    let (status, body) = proxy.send("GET", "/v1/models", "evil.example", "").await;
    assert_eq!((status, json(&body)["error"]["code"].as_str().unwrap()), (403, "host_not_local"));
    for path in ["/v1/attestation", "/v1/attestation/evidence/x", "/", "/metrics"] {
        assert_eq!(proxy.send("POST", path, "localhost", "{}").await.0, 404);
    }
    let (status, body) = proxy.chat("overflow", false).await;
    assert_eq!((status, json(&body)["error"]["code"].as_str().unwrap()), (400, "context_length_exceeded"));
    assert_eq!(proxy.chat(&"x".repeat(2 << 20), false).await.0, 413);
}

/// A local client never gets a complete answer that has no valid receipt.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_valid_receipt_is_not_complete() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    world.lie_in_answers(|answer| {
        if let ServingAnswer::Receipt { signature, .. } = answer {
            *signature = Base64::new(vec![1; 64]).unwrap();
        }
    });
    let (status, body) = proxy.chat("hi", false).await;
    assert_eq!((status, json(&body)["error"]["code"].as_str().unwrap()), (502, "receipt_signature"));
    assert!(!body.contains("Paris"));
    let (_, body) = proxy.chat("hi", true).await;
    assert!(!body.contains("[DONE]") && body.contains("\"code\":\"receipt_signature\""));
    assert!(proxy.receipts().is_empty());
}

/// Attack 61: the receipt of one answer in the place of the next one's, though both say the same to the same question.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_good_for_one_answer() {
    let world = World::start().await;
    let proxy = Proxy::start(&world).await;
    let mut first = None;
    world.lie_in_answers(move |answer| {
        if let ServingAnswer::Receipt { .. } = answer {
            *answer = first.get_or_insert_with(|| answer.clone()).clone();
        }
    });
    assert_eq!(proxy.chat("hi", false).await.0, 200);
    let (status, body) = proxy.chat("hi", false).await;
    assert_eq!((status, json(&body)["error"]["code"].as_str().unwrap()), (502, "receipt_request_mismatch"));
    let (_, body) = proxy.chat("hi", true).await;
    assert!(!body.contains("[DONE]") && body.contains("\"code\":\"receipt_request_mismatch\""), "{body}");
    assert_eq!(proxy.receipts().len(), 1);
}

/// Passes connections on to a guest, and can cut all of them.
struct Cable {
    upstream: client::Upstream,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(guest: &client::Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = client::Upstream::new("127.0.0.1", listener.local_addr().unwrap().port());
        let (open, guest) = (Arc::<Mutex<Vec<TcpStream>>>::default(), (guest.host().to_owned(), guest.port()));
        let all = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect((guest.0.as_str(), guest.1)).unwrap();
                all.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { upstream, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// What reached the guest is not sent again, on whatever connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_once() {
    let world = World::start().await;
    let cable = Cable::to(&world.upstream);
    let proxy = Proxy::start_at(&world, &cable.upstream).await;
    assert_eq!(proxy.chat("hi", false).await.0, 200);
    let asked = |prompt: &str| {
        let commands = world.engine.commands.lock().unwrap();
        let has = |command: &&Command| matches!(command, Command::Generate(request) if request.prompt.texts().any(|text| text == prompt));
        commands.iter().filter(has).count()
    };
    for stream in [false, true] {
        let before = asked("hang");
        let answer = {
            let asking = proxy.chat("hang", stream);
            tokio::pin!(asking);
            loop {
                tokio::select! {
                    answer = &mut asking => break answer,
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
                if asked("hang") > before {
                    cable.cut();
                }
            }
        };
        assert!(answer.1.contains("upstream_broken"), "{answer:?}");
        assert_eq!(asked("hang"), before + 1);
    }
    // A connection that ended while nothing was asked costs nobody an error.
    assert_eq!(proxy.chat("hi", false).await.0, 200);
    cable.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(proxy.chat("hi", false).await.0, 200);
}

/// An answer begins with its first text: the head of a streamed one comes when the engine has taken the request.
#[tokio::test(flavor = "multi_thread")]
async fn patience_lasts_until_the_first_text() {
    let world = World::start().await;
    let proxy = Proxy::start_with(&world, &world.upstream, 1).await;
    for stream in [true, false] {
        let (_, body) = proxy.chat("hang", stream).await;
        assert!(body.contains("upstream_broken") && !body.contains("Par"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_guest_ends_the_start() {
    let world = World::launched(|registers| registers.rtmr_2 = types::Sha384Digest::ZERO).await;
    let (policy, upstream, anchors) = (world.write_policy(), world.upstream.to_string(), world.anchors());
    let run = move |arguments: Vec<OsString>| {
        let anchors = anchors.clone();
        tokio::task::spawn_blocking(move || client::run(&anchors, arguments))
    };
    let guest: [&std::ffi::OsStr; 4] =
        ["--upstream".as_ref(), upstream.as_ref(), "--policy".as_ref(), policy.as_os_str()];
    let check = command(&[["check".as_ref()].as_slice(), &guest, &["--json".as_ref()]].concat());
    assert!(same(run(check).await.unwrap(), 2));
    let serve = command(&[guest.as_slice(), &["--listen".as_ref(), "127.0.0.1:0".as_ref()]].concat());
    assert!(same(run(serve).await.unwrap(), 2));
    let nobody = ["--upstream".as_ref(), "https://127.0.0.1:1".as_ref(), "--policy".as_ref(), policy.as_os_str()];
    let check = command(&[["check".as_ref()].as_slice(), &nobody].concat());
    assert!(same(run(check).await.unwrap(), 1));
}

/// Runs an official client's script against the proxy.
async fn official_client(world: World, mut command: std::process::Command, script: &Path) {
    let proxy = Proxy::start(&world).await;
    command.arg(script).arg(format!("http://{}/v1", proxy.address)).arg(model().to_string());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// Python with the packages of the folder that `CHRYSALIS_PYTHON_PACKAGES` names, and no others of the user's.
fn python() -> Option<std::process::Command> {
    let Some(packages) = std::env::var_os("CHRYSALIS_PYTHON_PACKAGES") else {
        println!("SKIPPED: the official Python client (CHRYSALIS_PYTHON_PACKAGES is not set)");
        return None;
    };
    let mut python = std::process::Command::new("python3");
    python.args(["-s", "-B"]).env("PYTHONPATH", packages);
    Some(python)
}

/// A folder with a script and the packages of the folder that `CHRYSALIS_NODE_MODULES` names, where it has the package
/// `openai`: a module is looked up beside the script that imports it.
fn javascript(script: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let Some(modules) = std::env::var_os("CHRYSALIS_NODE_MODULES") else {
        println!("SKIPPED: the official JavaScript client (CHRYSALIS_NODE_MODULES is not set)");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(script);
    std::fs::copy(tests(script), &copy).unwrap();
    std::os::unix::fs::symlink(modules, folder.path().join("node_modules")).unwrap();
    Some((folder, copy))
}

fn tests(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script)
}

/// A guest with the engine that `CHRYSALIS_ENGINE` names and the model that `CHRYSALIS_TEST_MODEL` names.
async fn real_world() -> Option<World> {
    let (engine, weights) = (std::env::var_os("CHRYSALIS_ENGINE"), std::env::var_os("CHRYSALIS_TEST_MODEL"));
    let Some((engine, weights)) = engine.zip(weights) else {
        println!(
            "SKIPPED: official clients against a real model (CHRYSALIS_ENGINE or CHRYSALIS_TEST_MODEL is not set)"
        );
        return None;
    };
    Some(World::with_model(Path::new(&engine), Path::new(&weights)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_notices_nothing() {
    let Some(python) = python() else { return };
    official_client(World::start().await, python, &tests("official_client.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_javascript_client_notices_nothing() {
    let Some((_folder, script)) = javascript("official_client.mjs") else { return };
    official_client(World::start().await, std::process::Command::new("node"), &script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_gets_vectors() {
    let Some(python) = python() else { return };
    official_client(World::with_vectors().await, python, &tests("official_client_embeddings.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_javascript_client_gets_vectors() {
    let Some((_folder, script)) = javascript("official_client_embeddings.mjs") else { return };
    official_client(World::with_vectors().await, std::process::Command::new("node"), &script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_gets_well_formed_answers_from_a_real_model() {
    let Some(python) = python() else { return };
    let Some(world) = real_world().await else { return };
    official_client(world, python, &tests("official_client_real.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_javascript_client_gets_well_formed_answers_from_a_real_model() {
    let Some((_folder, script)) = javascript("official_client_real.mjs") else { return };
    let Some(world) = real_world().await else { return };
    official_client(world, std::process::Command::new("node"), &script).await;
}
