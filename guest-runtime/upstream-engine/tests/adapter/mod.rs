// SPDX-License-Identifier: Apache-2.0
//! The adapter as a process, with a stand-in for the server behind it.

pub(crate) mod stand_in;

use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

pub(crate) const CONTEXT: u32 = 2048;

/// A running adapter. It ends when this is dropped.
pub(crate) struct Adapter {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) directory: tempfile::TempDir,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A model's directory, without weights: the stand-in has none.
fn write_model(directory: &Path) -> PathBuf {
    let model = directory.join("model");
    std::fs::create_dir(&model).unwrap();
    let config = json!({"vocab_size": stand_in::VOCAB, "model_type": "bytes"});
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let added = json!([{"id": 1, "content": "<|im_start|>", "special": true},
        {"id": 2, "content": "<|im_end|>", "special": true}, {"id": 3, "content": "<tool_call>", "special": false}]);
    std::fs::write(model.join("tokenizer.json"), json!({"added_tokens": added}).to_string()).unwrap();
    model
}

/// The stand-in, which the adapter starts as this test's own program.
pub(crate) fn server() -> Value {
    let program = std::env::current_exe().unwrap();
    json!({
        "program": program,
        "arguments": ["--exact", "stand_in", "--nocapture", "--test-threads=1"],
        "environment": {"STAND_IN": "{socket}"},
        "execute": ["/usr", "/lib", "/lib64"],
        "read": ["/proc", "/etc/ld.so.cache"],
        "start_seconds": 120,
        "silence_seconds": 120,
    })
}

impl Adapter {
    pub(crate) fn start(server: &Value, context: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (model, server_file) = (write_model(directory.path()), directory.path().join("server.json"));
        std::fs::write(&server_file, server.to_string()).unwrap();
        let run = directory.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let socket = run.join("engine.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_upstream-engine"))
            .arg("--server")
            .arg(server_file)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .args(["--context", &context.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, socket, directory }
    }

    /// Waits until it listens. `false` where this machine cannot confine it; the test is then skipped.
    pub(crate) fn listens(&mut self) -> bool {
        while !self.socket.exists() {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // Confinement is the first thing that it does then.
        std::thread::sleep(std::time::Duration::from_millis(50));
        if self.child.try_wait().unwrap().is_some() {
            let said = self.said();
            assert!(said.contains("find Landlock in the kernel"), "it ended: {said}");
            println!("SKIPPED: an adapter needs a kernel with Landlock");
            return false;
        }
        true
    }

    /// Its exit code and all that it has printed, when it has ended.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        (code, self.said())
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        for stream in
            [&mut self.child.stdout.take().unwrap() as &mut dyn std::io::Read, &mut self.child.stderr.take().unwrap()]
        {
            stream.read_to_string(&mut said).unwrap();
        }
        said
    }
}
