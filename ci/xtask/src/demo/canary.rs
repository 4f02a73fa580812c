// SPDX-License-Identifier: Apache-2.0
//! Attack 57: a word that nobody has said before goes through the running system, and then every byte that the host can
//! see is searched for it: disks, logs, events, records, and what passed on the wire.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use memchr::memmem::Finder;
use serde_json::{Value, json};

use crate::process;

use super::chat::Conversation;
use super::guest::Guest;
use super::report::Report;
use super::scene::Scene;

/// Asks something with a canary in it, and looks for question and answer.
pub(crate) fn run(
    scene: &Scene,
    guest: &Guest,
    conversation: &Conversation,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.title("a canary in what the host can see (hardware simulated)");
    let start = Instant::now();
    let canary = word();
    let client = scene.directory().join(CLIENT);
    std::fs::create_dir(&client).context("the client's directory")?;
    let answer = ask(scene, conversation, &canary, &client)?;
    let mut secrets = vec![Secret::new(&canary)];
    // A short answer stands somewhere by chance.
    let said = [Some(answer), report.answer.clone()].into_iter().flatten();
    secrets.extend(
        said.map(|text| text.trim().to_owned()).filter(|text| text.len() >= LONG).map(|text| Secret::new(&text)),
    );
    let controls = controls(scene, &client, &canary)?;

    let mut seen = Seen::new(&secrets);
    seen.directory(scene.directory())?;
    seen.look("the agent's events", guest.said().as_bytes());
    for (name, wire) in [("clients and guest", conversation.wire()), ("guest and service", scene.wire())] {
        check_recorded(name, &wire)?;
        for (number, stream) in wire.iter().enumerate() {
            seen.look(&format!("stream {number} between {name}"), stream);
        }
    }
    for pid in guest.processes() {
        for file in ["cmdline", "environ"] {
            // A process that has ended shows nothing any more.
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            seen.look(&format!("{file} of process {pid}"), &bytes);
        }
    }
    let Seen { places, bytes, found, .. } = seen;
    anyhow::ensure!(found.is_empty(), "the host can read what was asked or answered: it is in {}", found.join(", "));
    anyhow::ensure!(places > 30 && bytes > 1 << 20, "the search saw {places} places with {bytes} bytes only");
    report.line(&format!(
        "✓ {places} places, {} MiB: in none, in no encoding; {controls} planted ones are found",
        bytes >> 20
    ));
    report.part("a canary and the search for it", start.elapsed().as_secs_f64());
    report.canary = Some(json!({ "places": places, "bytes": bytes, "secrets": secrets.len(), "controls": controls }));
    Ok(())
}

/// Asks without a stream, as the question before was asked with one; keeps what the client knows.
fn ask(scene: &Scene, conversation: &Conversation, canary: &str, client: &Path) -> anyhow::Result<String> {
    let body = json!({
        "model": scene.model_name(),
        "temperature": 0,
        "max_tokens": 8,
        "prompt": format!("{canary}, {canary}, "),
    })
    .to_string();
    std::fs::write(client.join("request"), &body).context("the client's record")?;
    let mut curl = process::command("curl");
    curl.args(["-sS", "--fail-with-body", "--max-time", "180", "-H", "content-type: application/json", "-d"])
        .arg(body)
        .arg(format!("http://{}/v1/completions", conversation.proxy_address()));
    let answer = process::json("curl", &mut curl)?;
    std::fs::write(client.join("answer"), answer.to_string()).context("the client's record")?;
    let text = answer.pointer("/choices/0/text").and_then(Value::as_str).context("the canary was not answered")?;
    Ok(text.to_owned())
}

/// The search finds what is there: the client's own record, and the canary as the host would see it in any encoding and
/// at any place. Gives how often it did.
fn controls(scene: &Scene, client: &Path, canary: &str) -> anyhow::Result<usize> {
    let secret = [Secret::new(canary)];
    let finds = |directory: &Path| {
        let mut seen = Seen::new(&secret);
        seen.directory(directory).map(|()| !seen.found.is_empty())
    };
    anyhow::ensure!(finds(client)?, "the search does not find the canary in the client's own record");
    let mut found = 1_usize;
    let planted = scene.directory().join("planted");
    std::fs::create_dir(&planted).context("planted")?;
    for text in forms(canary) {
        for before in 0..3 {
            let bytes = [&vec![b'.'; 9000 + before], text.as_slice(), b"..."].concat();
            std::fs::write(planted.join("log"), bytes).context("planted")?;
            anyhow::ensure!(finds(&planted)?, "the search does not find what was planted: {text:?}");
            found = found.saturating_add(1);
        }
    }
    std::fs::remove_dir_all(&planted).context("planted")?;
    Ok(found)
}

/// The canary among other text, in each encoding that logs and protocols have.
fn forms(canary: &str) -> Vec<Vec<u8>> {
    let wide = |bytes: [u8; 2], byte: u8| bytes.map(|part| if part == 1 { byte } else { 0 });
    let mut forms = vec![
        canary.as_bytes().to_vec(),
        hex(canary.as_bytes()).into_bytes(),
        hex(canary.as_bytes()).to_uppercase().into_bytes(),
        canary.bytes().flat_map(|byte| wide([1, 0], byte)).collect(),
        canary.bytes().flat_map(|byte| wide([0, 1], byte)).collect(),
    ];
    forms.extend(["", "x", "xy"].map(|before| base64(format!("{before}{canary}after").as_bytes()).into_bytes()));
    forms
}

/// A text, and what shows it.
struct Secret(Vec<Finder<'static>>);

impl Secret {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut wide: Vec<u8> = bytes.iter().flat_map(|byte| [*byte, 0]).collect();
        // Without its last byte it stands in the text in either order of bytes.
        wide.pop();
        let mut needles = vec![bytes.to_vec(), hex(bytes).into_bytes(), hex(bytes).to_uppercase().into_bytes(), wide];
        needles.extend((0..3).map(|skipped| {
            // Groups of three bytes, whatever comes before and after.
            let whole = bytes.get(skipped..).unwrap_or_default();
            let groups = whole.get(..whole.len() / 3 * 3).unwrap_or_default();
            base64(groups).into_bytes()
        }));
        Self(needles.iter().map(|needle| Finder::new(needle).into_owned()).collect())
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|finder| finder.find(bytes).is_some())
    }
}

/// What was searched.
struct Seen<'a> {
    secrets: &'a [Secret],
    places: usize,
    bytes: usize,
    /// Where one of them was.
    found: Vec<String>,
}

impl<'a> Seen<'a> {
    fn new(secrets: &'a [Secret]) -> Self {
        Self { secrets, places: 0, bytes: 0, found: Vec::new() }
    }

    fn look(&mut self, place: &str, bytes: &[u8]) {
        self.places = self.places.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.secrets.iter().any(|secret| secret.is_in(bytes)) {
            self.found.push(place.to_owned());
        }
    }

    /// Names and contents below a directory, but what is the client's own.
    fn directory(&mut self, directory: &Path) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            process::check_interrupt()?;
            let entry = entry.with_context(|| directory.display().to_string())?;
            let (path, kind) = (entry.path(), entry.file_type().context("file type")?);
            if OWN.iter().any(|own| entry.file_name() == *own) {
                continue;
            }
            let name = path.display().to_string();
            self.look(&format!("the name {name}"), name.as_bytes());
            if kind.is_dir() {
                self.directory(&path)?;
            } else if kind.is_file() {
                self.file(&path, &name)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &PathBuf, name: &str) -> anyhow::Result<()> {
        match std::fs::read(path) {
            Ok(bytes) => {
                self.look(name, &bytes);
                Ok(())
            }
            // A temporary file of somebody who works.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| name.to_owned()),
        }
    }
}

/// The wire was recorded: there is TLS in both directions. Otherwise nothing was searched.
fn check_recorded(name: &str, wire: &[Vec<u8>]) -> anyhow::Result<()> {
    let tls = wire.iter().filter(|stream| stream.starts_with(&TLS_HANDSHAKE) && stream.len() > 1000).count();
    anyhow::ensure!(tls >= 2, "nothing was recorded between {name}");
    Ok(())
}

/// A word that stands nowhere: letters at random.
fn word() -> String {
    let letter = |number: u64| char::from(b'a'.saturating_add(u8::try_from(number % 26).unwrap_or(0)));
    (0..LETTERS).map(|at| letter(RandomState::new().hash_one(at))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 4648 section 4; letters alone have no form of their own in section 5.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let all = number(0) << 16 | number(1) << 8 | number(2);
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let index = usize::try_from(all >> shift & 63).unwrap_or(0);
            text.push(if at > group.len() { '=' } else { ALPHABET.get(index).copied().map_or('=', char::from) });
        }
    }
    text
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const LETTERS: u64 = 16;
/// Fewest bytes of an answer that is looked for.
const LONG: usize = 12;
/// Record type and version of a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [22, 3];
/// What the client itself writes down.
const CLIENT: &str = "client";
/// The client's own, which in life is on another machine.
const OWN: [&str; 4] = [CLIENT, "receipts", "proxy.log", "curl.log"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_the_standard_has_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn every_form_is_found_wherever_it_stands_and_nothing_else_is() {
        let canary = word();
        let secret = Secret::new(&canary);
        for form in forms(&canary) {
            for before in 0..7 {
                assert!(secret.is_in(&[&vec![b'-'; before], form.as_slice(), b"-"].concat()), "{form:?}");
            }
            assert!(!secret.is_in(&form[..form.len() / 2]), "half of it is another word");
        }
        for form in forms(&word()) {
            assert!(!secret.is_in(&form));
        }
    }

    #[test]
    fn names_and_contents_are_searched_and_the_client_s_own_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let canary = word();
        let secrets = [Secret::new(&canary)];
        let find = || {
            let mut seen = Seen::new(&secrets);
            seen.directory(directory.path()).unwrap();
            !seen.found.is_empty()
        };
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::create_dir(path(CLIENT)).unwrap();
        std::fs::write(path("a/b/file"), "nothing").unwrap();
        std::fs::write(path("client/request"), &canary).unwrap();
        assert!(!find());
        std::fs::write(path("a/b/file"), format!("x{canary}x")).unwrap();
        assert!(find());
        std::fs::write(path("a/b/file"), "").unwrap();
        std::fs::write(path(&format!("a/{canary}")), "").unwrap();
        assert!(find());
    }
}
