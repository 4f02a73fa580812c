// SPDX-License-Identifier: Apache-2.0
//! What the configuration says of buckets and of signed files for guests reaches what it configures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;
#[path = "../../model-cache/tests/buckets/store.rs"]
mod store;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blob_protocol::{ANSWER_HEAD, Answer, Kind, Name, PORT, Request};
use rig::Rig;
use store::{GOOD, Settings};

/// A daemon fills its cache from a private bucket, and takes a key that is written meanwhile without being told.
#[test]
fn a_guests_model_comes_from_the_bucket_that_the_configuration_names() {
    let mut rig = Rig::new(&["a"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let settings = Settings { token: Some("TOKEN"), ..GOOD };
    let store = runtime.block_on(store::start(&rig.pack_directory(), settings));
    let keys = rig.root.join("keys");
    let wrong = "aws_access_key_id = AKID\naws_secret_access_key = other\naws_session_token = TOKEN\n";
    std::fs::write(&keys, wrong).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    rig.sources = "[\"s3://packs/packs/a b\"]".to_owned();
    rig.sections = format!(
        "[buckets.packs]\nendpoint = \"http://127.0.0.1:{}\"\nregion = \"eu-central-1\"\nbucket = \"models\"\n\
         credentials = \"{}\"\n",
        store.port,
        keys.display()
    );
    rig.start();
    rig.wait("the store's refusal", |rig| rig.guest("a").to_string().contains("\"store_signature_refused\""));
    assert!(rig.guest("a").to_string().contains("\"buckets.packs.credentials\""), "{}", rig.guest("a"));
    assert!(store.taken.lock().unwrap().is_empty());
    std::fs::write(&keys, wrong.replace("other", GOOD.secret)).unwrap();
    rig.wait_serving();
    let taken = store.taken.lock().unwrap().clone();
    assert!(taken.len() >= 2 && taken.iter().all(|(path, _)| path.starts_with("/models/packs/a%20b/")), "{taken:?}");
    assert!(rig.metrics().contains("chrysalis_cache_packs 1"));
}

/// A guest that asks at port 7004 of its host gets the files of `gpu_blobs`, from the start after which that is set.
#[test]
fn a_guest_gets_the_signed_files_that_the_configuration_names() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    assert!(host_of_guest(&rig).is_none(), "nobody listens");
    for (file, bytes) in [("rim/NV_GPU_DRIVER_GH100_1", "a manifest"), ("ocsp/ab", "an answer"), ("secret", "none")] {
        let path = rig.root.join("signed").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    rig.hardware = format!("gpu_blobs = \"{}/signed\"", rig.root.display());
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait("the next generation", |rig| rig.serves("a") && rig.guest("a")["active"]["number"] == 2);
    let mut host = host_of_guest(&rig).unwrap();
    assert_eq!(ask(&mut host, Kind::Rim, "NV_GPU_DRIVER_GH100_1").as_deref(), Some(b"a manifest".as_slice()));
    assert_eq!(ask(&mut host, Kind::Ocsp, "ab").as_deref(), Some(b"an answer".as_slice()));
    for (kind, name) in [(Kind::Ocsp, "NV_GPU_DRIVER_GH100_1"), (Kind::Rim, "secret")] {
        assert_eq!(ask(&mut host, kind, name), None, "{name}");
    }
}

/// A connection of the guest to port 7004 of its host, as `vhost-device-vsock` makes it.
fn host_of_guest(rig: &Rig) -> Option<UnixStream> {
    let number = rig.guest("a")["active"]["number"].as_u64().unwrap();
    let stream = UnixStream::connect(rig.root.join(format!("s/guests/a/g{number}/vsock_{PORT}"))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Some(stream)
}

fn ask(host: &mut UnixStream, kind: Kind, name: &str) -> Option<Vec<u8>> {
    let request = Request { kind, name: Name::new(name).unwrap() };
    host.write_all(&request.to_bytes()).unwrap();
    let mut head = [0; ANSWER_HEAD];
    host.read_exact(&mut head).unwrap();
    let Answer::Present(length) = Answer::head(kind, head).unwrap() else { return None };
    let mut bytes = vec![0; length];
    host.read_exact(&mut bytes).unwrap();
    Some(bytes)
}
