// SPDX-License-Identifier: Apache-2.0
//! The rules that sections hold together.

use std::collections::BTreeMap;
use std::path::Path;

use fleet::Strategy;
use types::Refusal;

use super::{Config, GuestSection, source};

impl Config {
    /// All reasons why this cannot be run.
    pub(super) fn check(&self) -> Vec<Refusal> {
        let mut reasons = Vec::new();
        self.check_paths(&mut reasons);
        if let Some(address) = self.agent.metrics_listen.filter(|address| !address.ip().is_loopback()) {
            let rule = format!("{address} is not an address of the loopback interface");
            reasons.push(refuse(
                "agent.metrics_listen",
                rule,
                "use 127.0.0.1, and a reverse proxy that knows who asks",
            ));
        }
        if !(10..=60_000).contains(&self.agent.retry_first_ms) || !(1..=86_400).contains(&self.agent.retry_cap_s) {
            let rule = "retry_first_ms must be 10 to 60000, retry_cap_s 1 to 86400";
            reasons.push(refuse("agent.retry_first_ms", rule, "leave both out for 1000 and 300"));
        }
        if self.cache.quota_gib == 0 {
            reasons.push(refuse("cache.quota_gib", "it must be 1 or more", "name how much disk packs may take"));
        }
        if let Some(tcb) = &self.tcb {
            if tcb.accept.is_empty() {
                reasons.push(refuse("tcb.accept", "nothing is accepted", "leave it out for UpToDate"));
            }
            // Certificates are read when they are used.
            let source = tcb.pccs.as_deref().map(|url| collateral::Source::new(url, || Ok(Vec::new())));
            if let Some(Err(collateral::SourceError::Url { .. })) = &source {
                reasons.push(refuse("tcb.pccs", "it is no address", "write https://HOST:PORT"));
            }
        }
        reasons.extend(self.buckets.iter().filter_map(|(name, bucket)| bucket.check(name)));
        for (name, model) in &self.models {
            let field = format!("models.{name}.sources");
            if model.sources.is_empty() {
                reasons.push(refuse(&field, "no source is named", "name a directory or an address"));
            }
            for address in &model.sources {
                // Certificates are read when they are used; what is wrong with a bucket is said above.
                let parsed = source(&self.buckets, address, &field, || Err(std::io::ErrorKind::NotFound.into()));
                reasons.extend(parsed.err().filter(|reason| reason.field == field));
            }
        }
        for (name, guest) in &self.guests {
            self.check_guest(&format!("guests.{name}"), guest, &mut reasons);
        }
        self.check_shared(&mut reasons);
        reasons
    }

    fn check_paths(&self, reasons: &mut Vec<Refusal>) {
        let mut absolute = |field: &str, path: &Path| {
            if !path.is_absolute() {
                let rule = format!("{} is not an absolute path", path.display());
                reasons.push(refuse(field, rule, "begin it with /"));
            }
        };
        absolute("agent.state_dir", &self.agent.state_dir);
        absolute("agent.control_socket", &self.agent.control_socket);
        absolute("cache.dir", &self.cache.dir);
        self.hardware.gpu_blobs.iter().for_each(|path| absolute("hardware.gpu_blobs", path));
        if let Some(tcb) = &self.tcb {
            absolute("tcb.collateral_dir", &tcb.collateral_dir);
            tcb.quote.iter().for_each(|path| absolute("tcb.quote", path));
        }
        let most = MAX_SOCKET.saturating_sub(DEEPEST);
        let length = self.agent.state_dir.as_os_str().len();
        if length > most {
            let rule = format!("it has {length} bytes, at most {most} are allowed: sockets are made below it");
            reasons.push(refuse("agent.state_dir", rule, "choose a shorter path"));
        }
        if self.agent.control_socket.as_os_str().len() > MAX_SOCKET {
            let rule = format!("a socket's path has at most {MAX_SOCKET} bytes");
            reasons.push(refuse("agent.control_socket", rule, "choose a shorter path"));
        }
    }

    fn check_guest(&self, path: &str, guest: &GuestSection, reasons: &mut Vec<Refusal>) {
        let references = [
            ("release", &guest.release, self.releases.contains_key(&guest.release), "releases"),
            ("model", &guest.model, self.models.contains_key(&guest.model), "models"),
            ("service", &guest.service, self.services.contains_key(&guest.service), "services"),
        ];
        for (field, name, known, section) in references {
            if !known {
                let rule = format!("there is no [{section}.{name}]");
                reasons.push(refuse(&format!("{path}.{field}"), rule, "add the section, or correct the name"));
            }
        }
        let mut range = |field: &str, ok: bool, rule: &str| {
            if !ok {
                reasons.push(refuse(&format!("{path}.{field}"), rule, "correct the value"));
            }
        };
        range("listen", guest.listen.port() != 0, "clients must know the port: 0 is none");
        range("boot_deadline_s", (5..=86_400).contains(&guest.boot_deadline_s), "it must be 5 to 86400");
        let silence = guest.silence_deadline_s;
        range("silence_deadline_s", silence == 0 || (60..=86_400).contains(&silence), "it must be 0 or 60 to 86400");
        range("drain_deadline_s", guest.drain_deadline_s <= 86_400, "it must be at most 86400");
        let rows = guest.prompt_rows.unwrap_or(1);
        range("prompt_rows", (1..=512).contains(&rows), "it must be 1 to 512");
        range("gpus", guest.gpus.len() <= 16, "a guest has at most 16");
        let board = guest.nvswitches.is_empty() || (guest.gpus.len() == 8 && guest.nvswitches.len() == 4);
        range("nvswitches", board, "protected PCIe has eight GPUs and the four switches of their board");
        let beside = guest.strategy() == Strategy::Beside;
        range("strategy", guest.gpus.is_empty() || !beside, "with GPUs it must be replace: both guests need them");
    }

    /// What no two guests may have.
    fn check_shared(&self, reasons: &mut Vec<Refusal>) {
        let mut ports = BTreeMap::new();
        let mut gpus = BTreeMap::new();
        for (name, guest) in &self.guests {
            if let Some(other) = ports.insert(guest.listen, name) {
                let rule = format!("{} is that of guest {other}, too", guest.listen);
                reasons.push(Refusal::new(
                    "listen_twice",
                    &format!("guests.{name}.listen"),
                    rule,
                    "give each guest a port",
                ));
            }
            let named = guest.gpus.iter().map(|gpu| ("gpus", gpu));
            for (list, gpu) in named.chain(guest.nvswitches.iter().map(|switch| ("nvswitches", switch))) {
                if let Some(other) = gpus.insert(*gpu, name) {
                    let rule = format!("{} is named for guest {other}, too", gpu.0);
                    let field = format!("guests.{name}.{list}");
                    reasons.push(Refusal::new("gpu_twice", &field, rule, "give each GPU to one guest"));
                }
            }
        }
    }
}

fn refuse(field: &str, detail: impl Into<String>, fix: &str) -> Refusal {
    Refusal::new("config_value", field, detail, fix)
}

/// Below `state_dir`: `/guests/NAME/g12345/t/.tmp123456/qtest`, which the simulator makes; the guests' own are shorter.
const DEEPEST: usize = "/guests/".len() + 24 + "/g12345/t/.tmp123456/qtest".len();
/// `sun_path` without its NUL (unix(7)).
const MAX_SOCKET: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[models.smol]
model = "m@1:0000000000000000000000000000000000000000000000000000000000000000"
pack = "1111111111111111111111111111111111111111111111111111111111111111"
sources = ["/srv/pack", "https://models.example/m", "s3://packs/m"]
[buckets.packs]
endpoint = "https://s3.example"
region = "r1"
credentials = "/etc/keys"
[releases.r]
bundle = "/srv/b.json"
trust = "/srv/t.json"
image = "/srv/image"
[services.main]
address = "192.0.2.7:8443"
spki_sha256 = "2222222222222222222222222222222222222222222222222222222222222222"
[guests.a]
listen = "127.0.0.1:4431"
release = "r"
model = "smol"
service = "main"
vcpus = 2
memory_mib = 1024
gpus = []
"#;

    fn codes(text: &str) -> Vec<(String, String)> {
        let reasons = Config::parse(text).unwrap_err();
        assert!(reasons.iter().all(|reason| !reason.detail.is_empty() && !reason.fix.is_empty()));
        reasons.into_iter().map(|reason| (reason.code, reason.field)).collect()
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = Config::parse(GOOD).unwrap();
        let guest = &config.guests[&"a".parse().unwrap()];
        assert_eq!(guest.strategy(), Strategy::Beside);
        assert_eq!(config.agent.state_dir, Path::new("/var/lib/chrysalis/agent"));
        assert!(Config::parse("").unwrap().guests.is_empty());
    }

    #[test]
    fn each_mistake_is_named_by_its_path() {
        for (from, to, code, field) in [
            ("vcpus = 2", "vcpus = 2\nvpcus = 3", "config_unknown_field", "guests.a.vpcus"),
            ("vcpus = 2", "", "config_missing_field", "guests.a.vcpus"),
            ("vcpus = 2", "vcpus = \"two\"", "config_value", "guests.a.vcpus"),
            ("vcpus = 2", "vcpus = 70000", "config_value", "guests.a.vcpus"),
            ("vcpus = 2", "vcpus = 2\nprompt_rows = 513", "config_value", "guests.a.prompt_rows"),
            ("gpus = []", "gpus = [\"b8:00\"]", "config_value", "guests.a.gpus"),
            ("gpus = []", "gpus = [\"0000:b8:00.0\"]\nstrategy = \"beside\"", "config_value", "guests.a.strategy"),
            ("gpus = []", "gpus = [\"0000:b8:00.0\", \"0000:b8:00.0\"]", "gpu_twice", "guests.a.gpus"),
            ("gpus = []", "nvswitches = [\"0000:07:00.0\"]", "config_value", "guests.a.nvswitches"),
            (
                "gpus = []",
                "gpus = [\"0000:07:00.0\"]\nnvswitches = [\"0000:07:00.0\"]",
                "gpu_twice",
                "guests.a.nvswitches",
            ),
            ("[guests.a]", "[guests.A]", "config_value", "guests.A"),
            ("release = \"r\"", "release = \"s\"", "config_value", "guests.a.release"),
            ("127.0.0.1:4431", "127.0.0.1:0", "config_value", "guests.a.listen"),
            ("127.0.0.1:4431", "localhost", "config_value", "guests.a.listen"),
            ("https://models.example/m", "s3://b/k", "config_value", "models.smol.sources"),
            ("https://models.example/m", "s3://packs/../k", "config_value", "models.smol.sources"),
            ("\"r1\"", "\"r 1\"", "config_value", "buckets.packs.region"),
            ("\"r1\"", "\"r1\"\nsecret = \"x\"", "config_unknown_field", "buckets.packs.secret"),
            ("\"r1\"", "\"r1\"\nstyle = \"dns\"", "config_value", "buckets.packs.style"),
            ("\"r1\"", "\"r1\"\nbucket = \"P\"", "config_value", "buckets.packs.bucket"),
            ("https://s3.example", "s3.example", "config_value", "buckets.packs.endpoint"),
            ("\"/etc/keys\"", "\"keys\"", "config_value", "buckets.packs.credentials"),
            ("credentials = \"/etc/keys\"", "", "config_missing_field", "buckets.packs.credentials"),
            (
                "[models.smol]",
                "[agent]\nmetrics_listen = \"0.0.0.0:9\"\n[models.smol]",
                "config_value",
                "agent.metrics_listen",
            ),
            ("[models.smol]", "[agent]\nstate_dir = \"x\"\n[models.smol]", "config_value", "agent.state_dir"),
            (
                "[models.smol]",
                "[tcb]\ncollateral_dir = \"/c\"\npccs = \"localhost\"\n[models.smol]",
                "config_value",
                "tcb.pccs",
            ),
            (
                "[models.smol]",
                "[tcb]\ncollateral_dir = \"/c\"\naccept = []\n[models.smol]",
                "config_value",
                "tcb.accept",
            ),
            (
                "[models.smol]",
                "[tcb]\npccs = \"https://p\"\n[models.smol]",
                "config_missing_field",
                "tcb.collateral_dir",
            ),
            ("[models.smol]", "[tcb]\ncollateral_dir = \"c\"\n[models.smol]", "config_value", "tcb.collateral_dir"),
            ("[models.smol]", "[hardware]\ngpu_blobs = \"b\"\n[models.smol]", "config_value", "hardware.gpu_blobs"),
            ("[models.smol]", "[agnet]\n[models.smol]", "config_unknown_field", "agnet"),
            ("[models.smol]", "[models.smol", "config_syntax", "line 2"),
            ("m@1:00", "m1:00", "config_value", "models.smol.model"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let found = codes(&text);
            assert!(found.contains(&(code.to_owned(), field.to_owned())), "{to}: {found:?}");
        }
    }

    #[test]
    fn the_packaged_example_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agent.toml");
        Config::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    }

    #[test]
    fn independent_mistakes_are_all_named_and_nothing_is_shared() {
        let second = GOOD.split("[guests.a]").nth(1).unwrap().replace("vcpus = 2", "vcpu = 2");
        let text = format!("{}\n[guests.b]{second}", GOOD.replace("memory_mib", "memory"));
        assert_eq!(codes(&text).len(), 2, "{:?}", codes(&text));
        let second = GOOD.split("[guests.a]").nth(1).unwrap();
        let found = codes(&format!("{GOOD}\n[guests.b]{second}"));
        assert_eq!(found, [("listen_twice".to_owned(), "guests.b.listen".to_owned())]);
    }
}
