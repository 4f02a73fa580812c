// SPDX-License-Identifier: Apache-2.0
//! Attack 57 where something crashes: of what was asked or answered nothing is printed and nothing is dumped.

use std::{
    io::Read as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use signals::{ABORT, ILLEGAL};

use crate::support::{Client, FakeAttester, FakeEngine, sockets};

/// Which dump where dumps are not forbidden. Not SIGSEGV: a handler of the Rust runtime lets the first one pass that no access
/// has caused.
mod signals {
    pub(super) const ABORT: &str = "-ABRT";
    pub(super) const ILLEGAL: &str = "-ILL";
}

const CANARY: &str = "canary-51c7e9";

/// A program whose output is kept, in a directory of its own for what it might leave there.
struct Program {
    child: Child,
    directory: PathBuf,
}

impl Program {
    fn start(command: &mut Command, directory: &Path) -> Self {
        std::fs::create_dir(directory).unwrap();
        // It would dump and chatter if it could.
        let limits = format!("ulimit -S -c unlimited 2>/dev/null; exec {:?} \"$@\"", command.get_program());
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(limits).arg("sh").args(command.get_args()).current_dir(directory);
        shell.env("RUST_BACKTRACE", "full").env("RUST_LOG", "trace");
        let child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, directory: directory.to_owned() }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// The limits on dumps that it has set itself.
    fn may_dump(&self) -> bool {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        line.split_ascii_whitespace().rev().skip(1).take(2).any(|limit| limit != "0")
    }

    /// How it ended, what it had printed, and the files that it left.
    fn ended(mut self) -> (ExitStatus, String, Vec<PathBuf>) {
        let status = self.child.wait().unwrap();
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        let files = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        (status, printed, files)
    }

    /// The first line of its output.
    fn line(&mut self) -> String {
        let (mut line, mut byte) = (Vec::new(), [0]);
        let output = self.child.stdout.as_mut().unwrap();
        while byte != *b"\n" {
            output.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(attester: &Path, engine: &Path, directory: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_serve"));
    command.args(["--listen", "127.0.0.1:0", "--print-address", "--attester-socket"]).arg(attester);
    Program::start(command.arg("--engine-socket").arg(engine), directory)
}

/// A conversation about the canary, whose answer begins and does not end: the stand-in looks at the last message.
fn conversation(last: &str) -> String {
    format!(
        r#"{{"model":"m","stream":true,"messages":[{{"role":"system","content":"{CANARY}"}},{{"role":"user","content":"{last}"}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_while_it_answers_says_and_leaves_nothing() {
    for (signal, number) in [(ABORT, 6), (ILLEGAL, 4)] {
        let (directory, attester_path, engine_path) = sockets();
        let _attester = FakeAttester::start(&attester_path);
        let _engine = FakeEngine::start(&engine_path);
        let mut server = serve(&attester_path, &engine_path, &directory.path().join("serve"));
        let address = server.line().parse().unwrap();
        let (mut client, _) = Client::proven(address).await;
        let response = client.start(Method::POST, "/v1/chat/completions", conversation("hang")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!server.may_dump());
        server.signal(signal);
        let (status, printed, files) = server.ended();
        assert_eq!((status.signal(), status.core_dumped()), (Some(number), false));
        assert_eq!((printed.as_str(), files.len()), ("", 0), "{files:?}");
        assert!(response.into_body().collect().await.is_err(), "an answer that broke off is not a whole one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_engine_is_gone_names_that_and_nothing_else() {
    let (directory, attester_path, engine_path) = sockets();
    let _attester = FakeAttester::start(&attester_path);
    let engine = FakeEngine::start(&engine_path);
    let mut server = serve(&attester_path, &engine_path, &directory.path().join("serve"));
    let address = server.line().parse().unwrap();
    let (mut client, _) = Client::proven(address).await;
    let response = client.start(Method::POST, "/v1/chat/completions", conversation("hang")).await;
    assert_eq!(response.status(), StatusCode::OK);
    engine.stop();
    let (status, printed, files) = server.ended();
    assert_eq!((status.code(), printed.as_str()), (Some(1), "serve: the engine closed the connection\n"));
    assert!(files.is_empty(), "{files:?}");
    // Whatever still came, the answer has no end and no receipt.
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("[DONE]") && !rest.contains("chrysalis-receipt"), "{rest}");
}

/// The real engine, in the middle of an answer about the canary.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_crashes_while_it_computes_says_and_leaves_nothing() {
    let (engine, weights) = (std::env::var_os("CHRYSALIS_ENGINE"), std::env::var_os("CHRYSALIS_TEST_MODEL"));
    let Some((engine, weights)) = engine.zip(weights) else {
        println!("SKIPPED: an engine that crashes (CHRYSALIS_ENGINE or CHRYSALIS_TEST_MODEL is not set)");
        return;
    };
    for (signal, number) in [(ABORT, 6), (ILLEGAL, 4)] {
        let (directory, attester_path, engine_path) = sockets();
        let _attester = FakeAttester::start(&attester_path);
        let mut command = Command::new(&engine);
        command.arg("--model").arg(&weights).arg("--socket").arg(&engine_path).args(["--context", "512"]);
        let computing = Program::start(&mut command, &directory.path().join("engine"));
        while !engine_path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut server = serve(&attester_path, &engine_path, &directory.path().join("serve"));
        let address = server.line().parse().unwrap();
        let (mut client, _) = Client::proven(address).await;
        let response =
            client.start(Method::POST, "/v1/chat/completions", conversation("Say it again and again.")).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        assert!(!computing.may_dump());
        computing.signal(signal);
        let (status, printed, files) = computing.ended();
        assert_eq!((status.signal(), status.core_dumped()), (Some(number), false));
        assert!(!printed.contains(CANARY) && files.is_empty(), "{printed} {files:?}");
        let (status, printed, files) = server.ended();
        assert_eq!((status.code(), printed.as_str()), (Some(1), "serve: the engine closed the connection\n"));
        assert!(files.is_empty(), "{files:?}");
    }
}
