// SPDX-License-Identifier: Apache-2.0
//! Reads one file over HTTP, never more than its lock states.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use sha2::{Digest as _, Sha256};
use types::Sha256Digest;

use super::FetchError;
use crate::command::Tool;
use crate::files::FileError;
use crate::locks::NamedLock;
use crate::progress::{Progress, Unit};

/// Writes the file at `address` to `target` (inside a directory that is thrown away on failure).
pub(super) fn download(
    lock: &NamedLock,
    address: &str,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let tool = Tool::new("curl", "install the Debian package curl")
        .args(["--fail", "--silent", "--show-error", "--location", "--max-redirs", "5"])
        .args(["--proto", "=http,https", "--connect-timeout", "30", "--speed-limit", "100", "--speed-time", "60"])
        .args(["--output", "-", "--", address]);
    let mut command = tool.command()?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| tool.not_run(e))?;
    let copied = copy(lock, &mut child, target, progress);
    progress.finish();
    if copied.is_err() {
        // Our own child, still sending: it has nothing more to say.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|e| tool.not_run(e))?;
    let (size, digest) = copied?;
    if !output.status.success() {
        return Err(client_error(lock, output.status.code(), size, &String::from_utf8_lossy(&output.stderr)));
    }
    judge(lock, size, digest)
}

/// Copies what the client sends; stops at the first byte too many.
fn copy(
    lock: &NamedLock,
    child: &mut Child,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(u64, Sha256Digest), FetchError> {
    let at = |e| FetchError::from(FileError::at(target, e));
    let mut file = File::create(target).map_err(at)?;
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    let mut buffer = vec![0; 256 << 10];
    let Some(stream) = child.stdout.as_mut() else { return Ok((0, Sha256Digest::of(&[]))) };
    loop {
        let count = stream.read(&mut buffer).map_err(at)?;
        let Some(piece) = buffer.get(..count).filter(|p| !p.is_empty()) else { break };
        size = size.saturating_add(count as u64);
        if size > lock.lock.size {
            return Err(FetchError::TooLong { input: lock.name.clone(), expected: lock.lock.size });
        }
        hash.update(piece);
        file.write_all(piece).map_err(at)?;
        progress.advance(lock.file_name(), size, Some(lock.lock.size), Unit::Bytes);
    }
    file.sync_all().map_err(at)?;
    Ok((size, Sha256Digest::from_bytes(hash.finalize().into())))
}

fn judge(lock: &NamedLock, size: u64, found: Sha256Digest) -> Result<(), FetchError> {
    let (input, expected) = (lock.name.clone(), lock.lock.size);
    if size < expected {
        return Err(FetchError::TooShort { input, expected, found: size });
    }
    if found != lock.lock.sha256 {
        return Err(FetchError::DigestMismatch { input, expected: lock.lock.sha256, found });
    }
    Ok(())
}

/// curl(1), EXIT CODES: 22 is an HTTP status of 400 and above, 18 a transfer that ended early.
fn client_error(lock: &NamedLock, code: Option<i32>, size: u64, said: &str) -> FetchError {
    let input = lock.name.clone();
    match code {
        Some(22) if ["404", "410"].iter().any(|s| said.contains(s)) => {
            FetchError::NotFound { input, path: lock.lock.path.clone() }
        }
        Some(18) => FetchError::TooShort { input, expected: lock.lock.size, found: size },
        _ => FetchError::Unreachable { input, detail: said.trim().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::{Sources, fetch_input};
    use super::*;
    use crate::cache::Cache;
    use crate::locks::{Kind, Lock};
    use crate::progress::Silent;

    fn lock(content: &[u8]) -> NamedLock {
        let lock = Lock {
            kind: Kind::Debian,
            package: "p".into(),
            version: "1".into(),
            path: "pool/p_1.deb".into(),
            size: content.len() as u64,
            sha256: Sha256Digest::of(content),
            licence: "x".into(),
            reason: "x".into(),
            suite: None,
            members: Vec::new(),
        };
        NamedLock { name: "p".into(), lock, lock_sha256: Sha256Digest::ZERO }
    }

    /// Answers one request with `response` on loopback and closes.
    fn serve(response: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/debian", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /debian/pool/p_1.deb "), "{request:?}");
            // The client may hang up first; that is what some tests are about.
            let _ = stream.write_all(&response);
        });
        address
    }

    fn ok(length: usize, body: &[u8]) -> Vec<u8> {
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        response.extend_from_slice(body);
        response
    }

    fn fetch(lock: &NamedLock, mirrors: Vec<String>) -> (Result<super::super::Input, FetchError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { cache: Cache::at(dir.path()).unwrap(), debian_mirrors: mirrors };
        (fetch_input(lock, &sources, &Silent), dir)
    }

    fn left(dir: &tempfile::TempDir) -> usize {
        crate::files::list_files(dir.path()).unwrap().iter().filter(|f| !f.starts_with("locks")).count()
    }

    #[test]
    fn the_locked_bytes_are_kept_and_not_asked_for_again() {
        let lock = lock(b"content");
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let sources = Sources { cache: cache.clone(), debian_mirrors: vec![serve(ok(7, b"content"))] };
        let input = fetch_input(&lock, &sources, &Silent).unwrap();
        assert_eq!(std::fs::read(&input.path).unwrap(), b"content");
        let nowhere = Sources { cache, debian_mirrors: vec!["http://127.0.0.1:1/debian".into()] };
        assert_eq!(fetch_input(&lock, &nowhere, &Silent).unwrap(), input);
    }

    #[test]
    fn other_bytes_are_removed_and_named() {
        let (result, dir) = fetch(&lock(b"content"), vec![serve(ok(7, b"c0ntent"))]);
        let Err(FetchError::DigestMismatch { expected, found, .. }) = result else { panic!("{result:?}") };
        assert_eq!((expected, found), (Sha256Digest::of(b"content"), Sha256Digest::of(b"c0ntent")));
        assert_eq!(left(&dir), 0);
    }

    #[test]
    fn a_longer_file_is_cut_off() {
        let (result, dir) = fetch(&lock(b"content"), vec![serve(ok(8, b"content+"))]);
        assert!(matches!(result, Err(FetchError::TooLong { expected: 7, .. })), "{result:?}");
        assert_eq!(left(&dir), 0);
    }

    #[test]
    fn a_shorter_file_is_named() {
        for response in [ok(3, b"con"), ok(7, b"con")] {
            let (result, dir) = fetch(&lock(b"content"), vec![serve(response)]);
            assert!(matches!(result, Err(FetchError::TooShort { expected: 7, found: 3, .. })), "{result:?}");
            assert_eq!(left(&dir), 0);
        }
    }

    #[test]
    fn a_missing_file_is_asked_for_at_the_next_mirror() {
        let gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        let (result, _dir) = fetch(&lock(b"content"), vec![serve(gone.clone()), serve(ok(7, b"content"))]);
        result.unwrap();
        let (result, _dir) = fetch(&lock(b"content"), vec![serve(gone)]);
        assert!(matches!(result, Err(FetchError::NotFound { .. })), "{result:?}");
    }

    #[test]
    fn an_unreachable_source_is_named() {
        let (result, _dir) = fetch(&lock(b"content"), vec!["http://127.0.0.1:1/debian".into()]);
        assert!(matches!(result, Err(FetchError::Unreachable { .. })), "{result:?}");
        let (result, _dir) = fetch(&lock(b"content"), vec!["file:///srv/debian".into()]);
        assert!(matches!(result, Err(FetchError::BadMirror(_))), "{result:?}");
    }
}
