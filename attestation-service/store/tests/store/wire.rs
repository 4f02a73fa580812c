// SPDX-License-Identifier: Apache-2.0
//! A server's socket with a way there that is cut at a chosen moment.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a connection is cut: when the client sends this.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    Before(&'static [u8]),
    After(&'static [u8]),
}

/// A server's socket that is cut.
pub(crate) struct Wire {
    pub(crate) dir: tempfile::TempDir,
}

impl Wire {
    pub(crate) fn to(url: &str, cut: Cut) -> Self {
        let server = url.split("host=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        // They end with the process: whoever connects later finds nobody who answers.
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let to = UnixStream::connect(Path::new(&server).join(SOCKET)).unwrap();
                std::thread::spawn(move || _ = forward(&client, &to, cut));
            }
        });
        Self { dir }
    }
}

fn forward(mut client: &UnixStream, mut server: &UnixStream, cut: Cut) -> std::io::Result<()> {
    let (Cut::Before(words) | Cut::After(words)) = cut;
    let mut answers = server.try_clone()?;
    let mut back = client.try_clone()?;
    let cutting = Arc::new(AtomicBool::new(false));
    let quiet = Arc::clone(&cutting);
    std::thread::spawn(move || {
        let mut bytes = [0; 65_536];
        while let Ok(1..) = answers.read(&mut bytes).and_then(|read| {
            if quiet.load(Ordering::SeqCst) {
                // The server has done it: now the client loses its connection.
                back.shutdown(Shutdown::Both)?;
            } else {
                back.write_all(&bytes[..read])?;
            }
            Ok(read)
        }) {}
    });
    let mut bytes = [0; 65_536];
    loop {
        let read = client.read(&mut bytes)?;
        if read == 0 {
            return server.shutdown(Shutdown::Both);
        }
        if bytes[..read].windows(words.len()).any(|window| window == words) {
            if matches!(cut, Cut::Before(_)) {
                server.shutdown(Shutdown::Both)?;
                return client.shutdown(Shutdown::Both);
            }
            cutting.store(true, Ordering::SeqCst);
        }
        server.write_all(&bytes[..read])?;
    }
}

const SOCKET: &str = ".s.PGSQL.5432";
