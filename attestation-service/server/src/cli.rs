// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use collateral::Wanted;
use store::{KekSource, Location};
use types::{Hex32, ModelId, Sha256Digest};

use crate::{gpu_files::GpuFileArgs, limits::Limits};

/// Holds the keys of encrypted models and releases them to attested guests alone.
#[derive(Debug, Parser)]
#[command(name = "attestation-service", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Print one JSON document as the last line of standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a store with new keys.
    Init(InitArgs),
    /// Answer guests until SIGINT or SIGTERM.
    Serve(ServeArgs),
    /// Print what guests pin: SHA-256 of the service's key.
    Identity(StoreArgs),
    /// Keys of models.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Releases whose guests may get keys.
    #[command(subcommand)]
    Releases(ReleasesCommand),
    /// Platforms whose guests get no key, whatever they run.
    #[command(subcommand)]
    Platforms(PlatformsCommand),
    /// The appraisal policy.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Owners of models, and their signed commands.
    #[command(subcommand)]
    Owner(OwnerCommandLine),
    /// The audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// What Intel publishes about platforms: fetched, verified, kept.
    #[command(subcommand)]
    Collateral(CollateralCommand),
    /// Judge a quote, or a whole evidence document, from files.
    Appraise(Box<AppraiseArgs>),
    /// Attestation results (EAR): keys that verify them, and verifying one.
    #[command(subcommand)]
    Ear(EarCommand),
    /// Judge evidence of GPUs and NVSwitches from files.
    AppraiseGpu(Box<crate::command::AppraiseGpuArgs>),
    /// The keys that wrap keys.
    #[command(subcommand)]
    Kek(KekCommand),
    /// Write a consistent copy of a store, also beside a running service.
    Backup(BackupArgs),
    /// Make a store from such a copy.
    Restore(RestoreArgs),
    /// Look whether a service would start from this store and these files.
    CheckConfig(CheckArgs),
    /// Print the OpenAPI 3.1 description of the service.
    Openapi,
    /// Write manual pages and completions for shells.
    Manual {
        /// Directory; `man/man1`, `bash-completion/completions`, `zsh/vendor-completions` and `fish/vendor_completions.d`
        /// are made in it, as /usr/share has them.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where the store is: a directory, or a PostgreSQL database as `postgres://USER@HOST/DATABASE`; `@FILE` takes that
    /// address from a file. Passwords come from PGPASSWORD, PGPASSFILE or ~/.pgpass.
    #[arg(long, value_name = "DIR|URL", value_parser = crate::place::parse)]
    pub(crate) store: Location,
    /// The key that wraps keys: `file:PATH`, `pkcs11:token=…;object=…?module-path=…&pin-source=file:…` or
    /// `transit:https://HOST/MOUNT/KEY?token-file=…&ca-file=…`. A directory's own (DIR/kek) when it is not given. Given
    /// several times, the first wraps, and all open.
    #[arg(long, value_name = "KEK")]
    pub(crate) kek: Vec<KekSource>,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Name of the audit log, this service's alone; made from its key when it is not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) audit_origin: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: SocketAddr,
    /// Collateral of the platforms that may come, one file for each FMSPC. Read at the start, and again at SIGHUP.
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "collateral_dir")]
    pub(crate) collateral: Vec<PathBuf>,
    /// Directory of kept collateral, read again every minute and at SIGHUP.
    #[arg(long, value_name = "DIR")]
    pub(crate) collateral_dir: Option<PathBuf>,
    /// Renew the directory's collateral from this PCCS.
    #[arg(long, value_name = "URL", requires = "collateral_dir")]
    pub(crate) pccs: Option<String>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Requests a second of one client address, on average; ten times as many at once.
    #[arg(long, value_name = "N", default_value_t = Limits::default().client_rate, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) client_rate: u32,
    /// Keys of one model a second, on average; ten times as many at once.
    #[arg(long, value_name = "N", default_value_t = Limits::default().model_rate, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) model_rate: u32,
    /// Challenges that have not expired, and for which no key was released; from a quarter of them on, challenges ask for
    /// work.
    #[arg(long, value_name = "N", default_value_t = Limits::default().open_challenges, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) open_challenges: u32,
    /// Connections at the same time; more wait in the kernel's queue. Each needs a file descriptor, and up to 160 KiB.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: u32,
    /// Connections of one client at the same time (one /48 for IPv6), and by them its part of the memory for requests.
    /// As many as there are is no limit: for guests behind one address, as a load balancer's.
    #[arg(long, value_name = "N", default_value_t = Limits::default().client_connections, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) client_connections: u32,
    #[command(flatten)]
    pub(crate) gpu: GpuFileArgs,
    /// A checkpoint of the audit log kept elsewhere, which the log must extend: shows that the store as a whole was
    /// replaced by an older copy.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Name of this replica of a service with several. Challenges of the run before under this name are void at once;
    /// those of a replica that ended otherwise after a quarter of a minute.
    #[arg(long, value_name = "NAME", value_parser = replica_name)]
    pub(crate) replica: Option<String>,
    /// Answer /metrics, /healthz and /readyz here, without TLS: a loopback address.
    #[arg(long, value_name = "ADDR:PORT", value_parser = loopback)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Write the address here once the service listens.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

/// Of a PCCS, beside its address.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Certificates (PEM) that https to the PCCS is judged by.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub(crate) pccs_ca: PathBuf,
    /// Kinds of platforms to fetch collateral for, beside those in the directory: 12 hexadecimal digits, followed by
    /// `:processor` where Intel's processor CA issued the PCK certificates.
    #[arg(long, value_name = "FMSPC")]
    pub(crate) fmspc: Vec<Wanted>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CollateralCommand {
    /// Fetch, verify and keep.
    Fetch {
        /// Directory of kept collateral.
        #[arg(long, value_name = "DIR")]
        collateral_dir: PathBuf,
        /// The PCCS, as `https://host:8081`; or Intel's own `https://api.trustedservices.intel.com`.
        #[arg(long, value_name = "URL")]
        pccs: String,
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Say what is kept, until when, and which TCB evaluation comes next.
    Status {
        /// Directory of kept collateral.
        #[arg(long, value_name = "DIR")]
        collateral_dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Collateral files to read, too.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) collateral: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Import the key of a model.
    Import {
        #[command(flatten)]
        store: StoreArgs,
        /// The model, as `name@revision:identity`.
        #[arg(long, value_name = "MODEL")]
        model: ModelId,
        /// Version of the key, from 1.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        version: u32,
        /// The key: 32 bytes, or 64 hexadecimal digits.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Revoke a model by its identity, under whatever name, for good. Counts from the next request on.
    Revoke {
        #[command(flatten)]
        store: StoreArgs,
        /// The model, as `name@revision:identity`.
        #[arg(long, value_name = "MODEL")]
        model: ModelId,
    },
    /// List models and versions.
    List(StoreArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlatformsCommand {
    /// Revoke a platform for good. Counts from the next request on.
    Revoke {
        #[command(flatten)]
        store: StoreArgs,
        /// Its name, as verdicts and the audit log show it.
        #[arg(long, value_name = "SHA256")]
        platform: Sha256Digest,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReleasesCommand {
    /// Verify and import the bundle of a release.
    Import {
        #[command(flatten)]
        store: StoreArgs,
        /// The bundle.
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
        /// Whom to trust: release keys, log, witnesses (`chrysalis/release-trust/v1`).
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
    },
    /// Revoke a release for good. Counts from the next request on.
    Revoke {
        #[command(flatten)]
        store: StoreArgs,
        /// Its digest.
        #[arg(long, value_name = "SHA256")]
        digest: Sha256Digest,
    },
    /// List imported releases.
    List(StoreArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Print the policy in force.
    Show(StoreArgs),
    /// Put another policy in force. Counts from the next request on.
    Set {
        #[command(flatten)]
        store: StoreArgs,
        /// The policy (`chrysalis/appraisal-policy/v1`).
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the JSON Schema of policies.
    Schema,
    /// Say what is wrong, weak or without effect in a policy.
    Lint {
        /// The policy (`chrysalis/appraisal-policy/v1`).
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Bundles of the releases that guests are to run: the policy is held against them.
        #[arg(long, value_name = "FILE", requires = "trust")]
        release: Vec<PathBuf>,
        /// Whom to trust about releases (`chrysalis/release-trust/v1`).
        #[arg(long, value_name = "FILE", requires = "release")]
        trust: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EarCommand {
    /// Print the keys that verify this service's results: a JWK set, as `GET /v1/ear/keys` gives it.
    Keys(StoreArgs),
    /// Verify a result with the keys of a service.
    Verify {
        /// The token.
        #[arg(long, value_name = "FILE")]
        token: PathBuf,
        /// The service's keys, as `ear keys` and `GET /v1/ear/keys` give them.
        #[arg(long, value_name = "FILE")]
        keys: PathBuf,
        /// SHA-256 of the service's key, as `identity` prints it. Without it, whose the keys are is not proven.
        #[arg(long, value_name = "SHA256")]
        pin: Option<Sha256Digest>,
        /// For whom the result must be.
        #[arg(long, value_name = "TEXT")]
        audience: Option<String>,
        /// When to judge; now when it is not given.
        #[arg(long, value_name = "RFC3339", value_parser = crate::input::parse_time)]
        at: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OwnerCommandLine {
    /// Make an owner's key; prints its public half.
    Keygen {
        /// The file, which must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Make an API key of a tenant; prints its SHA-256, which the document of tenants names.
    TenantKey {
        /// The file that the key goes to, which must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Register the owner of a model (by its identity), for good.
    Register {
        #[command(flatten)]
        store: StoreArgs,
        /// The model, as `name@revision:identity`.
        #[arg(long, value_name = "MODEL")]
        model: ModelId,
        /// The owner's public key; several where a number of them must sign each command.
        #[arg(long, value_name = "HEX", required = true)]
        owner: Vec<Hex32>,
        /// How many of the keys must sign a command.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        threshold: u32,
    },
    /// Fetch the keys of a service that `sign --import-key` needs; the pinned key must have signed them.
    ServiceKeys {
        /// Where the service listens.
        #[arg(long, value_name = "ADDR:PORT")]
        service: SocketAddr,
        /// SHA-256 of its key, as `identity` prints it.
        #[arg(long, value_name = "SHA256")]
        pin: Sha256Digest,
        /// Where they go.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign a command for one service.
    Sign(SignArgs),
    /// Say what a signed command commands and who signed it; with `--yes`, add the signature of another of the owner's
    /// keys.
    Cosign {
        /// The other key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The signed command.
        #[arg(long, value_name = "FILE")]
        command: PathBuf,
        /// Where the command with both signatures goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The owner's keys, whose signatures the command may carry: each that it carries is verified and shown.
        #[arg(long, value_name = "HEX", required = true)]
        owner: Vec<Hex32>,
        /// The digest that was shown: what was read is what is signed. Without it nothing is signed.
        #[arg(long, value_name = "SHA256")]
        yes: Option<Sha256Digest>,
    },
    /// Send a signed command to a service.
    Send {
        /// Where the service listens.
        #[arg(long, value_name = "ADDR:PORT")]
        service: SocketAddr,
        /// SHA-256 of its key, as `identity` prints it.
        #[arg(long, value_name = "SHA256")]
        pin: Sha256Digest,
        /// The signed command.
        #[arg(long, value_name = "FILE")]
        command: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("action").required(true))]
pub(crate) struct SignArgs {
    /// The owner's key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Pin of the service that the command is for.
    #[arg(long, value_name = "SHA256")]
    pub(crate) service: Sha256Digest,
    /// The model.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: ModelId,
    /// Higher than in every command before.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sequence: u64,
    /// Demand this policy (`chrysalis/appraisal-policy/v1`) beside the service's own.
    #[arg(long, value_name = "FILE", group = "action")]
    pub(crate) set_policy: Option<PathBuf>,
    /// Revoke the model for good.
    #[arg(long, group = "action")]
    pub(crate) revoke: bool,
    /// Accept this release where the owner's policy lists the one that it follows.
    #[arg(long, value_name = "SHA256", group = "action", requires = "predecessor")]
    pub(crate) admit_successor: Option<Sha256Digest>,
    /// The release that the policy lists.
    #[arg(long, value_name = "SHA256", requires = "admit_successor")]
    pub(crate) predecessor: Option<Sha256Digest>,
    /// Import a version of the model's key (32 bytes, or 64 hexadecimal digits), sealed to the service.
    #[arg(long, value_name = "FILE", group = "action", requires = "key_version", requires = "service_keys")]
    pub(crate) import_key: Option<PathBuf>,
    /// The key's version; guests get the newest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "import_key")]
    pub(crate) key_version: Option<u32>,
    /// The service's keys, as `service-keys` wrote them.
    #[arg(long, value_name = "FILE", requires = "import_key")]
    pub(crate) service_keys: Option<PathBuf>,
    /// Let these tenants ask the model, and nobody else (`chrysalis/tenants/v1`, as JSON in any form).
    #[arg(long, value_name = "FILE", group = "action")]
    pub(crate) set_tenants: Option<PathBuf>,
    /// Let whoever proves a guest ask the model again.
    #[arg(long, group = "action")]
    pub(crate) clear_tenants: bool,
    /// Where the signed command goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Recompute the whole log and print its entries.
    List(StoreArgs),
    /// Recompute the whole log from its entries.
    Verify {
        #[command(flatten)]
        store: StoreArgs,
        /// A checkpoint kept elsewhere, which the log must extend.
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
    /// Print the newest checkpoint, for witnesses and for `--checkpoint`: once every change that was made before stands
    /// in the log.
    Checkpoint {
        #[command(flatten)]
        store: StoreArgs,
        /// Seconds in which a running service may enter what was changed; then `changes_waiting`.
        #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(..=3600))]
        wait: u64,
        /// Write it here, too.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Verify the whole log and write it as a directory of tiles (C2SP tlog-tiles), which witnesses and
    /// `measure log verify` read.
    Export {
        #[command(flatten)]
        store: StoreArgs,
        /// The directory, which must not hold a log.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Add cosignatures of witnesses to the newest checkpoint. On a directory no service may run meanwhile.
    Cosign {
        #[command(flatten)]
        store: StoreArgs,
        /// The checkpoint with them.
        #[arg(long, value_name = "FILE")]
        checkpoint: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KekCommand {
    /// Wrap everything by the first `--kek`; the others open what they wrapped. May be ended and run again; services that
    /// have all these keys go on meanwhile.
    Rotate(StoreArgs),
    /// Say which keys the rows of a store are wrapped by.
    Status(StoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The archive, which must not exist. Keys in it stay wrapped; the key that wraps them is not in it.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The archive.
    #[arg(long = "in", value_name = "FILE")]
    pub(crate) archive: PathBuf,
    /// A checkpoint kept elsewhere, which the archive's log must extend: shows that the archive is too old.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Verify the whole archive and write nothing. The store need not be empty, nor be there; its key-wrapping key must.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AppraiseArgs {
    /// The quote: raw, hexadecimal or base64. The evidence's own when it is not given.
    #[arg(long, value_name = "FILE", required_unless_present = "evidence")]
    pub(crate) quote: Option<PathBuf>,
    /// Collateral of the platform.
    #[arg(long, value_name = "FILE")]
    pub(crate) collateral: PathBuf,
    /// When to judge.
    #[arg(long, value_name = "RFC3339", value_parser = crate::input::parse_time)]
    pub(crate) at: u64,
    /// Firmware's event log (CCEL), to be replayed against RTMR0 to RTMR2.
    #[arg(long, value_name = "FILE")]
    pub(crate) event_log: Option<PathBuf>,
    /// The guest's configuration, to be compared with MRCONFIGID.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The guest's evidence document.
    #[arg(long, value_name = "FILE")]
    pub(crate) evidence: Option<PathBuf>,
    /// Bundles of releases that may explain the registers.
    #[arg(long, value_name = "FILE", requires = "evidence", requires = "trust")]
    pub(crate) release: Vec<PathBuf>,
    /// Whom to trust about releases (`chrysalis/release-trust/v1`).
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// The policy (`chrysalis/appraisal-policy/v1`); the strict default when it is not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) gpu: GpuFileArgs,
    /// Write what was found here as a signed attestation result (EAR); refused or accepted, it is bound to no connection.
    #[arg(long, value_name = "FILE", requires = "evidence", requires = "store")]
    pub(crate) ear: Option<PathBuf>,
    /// Store of the service whose key signs it.
    #[arg(long, value_name = "DIR|URL", requires = "ear", value_parser = crate::place::parse)]
    pub(crate) store: Option<Location>,
    /// The key that wraps that store's keys, where it is not its own.
    #[arg(long, value_name = "KEK", requires = "store")]
    pub(crate) kek: Vec<KekSource>,
    /// For whom the result is.
    #[arg(long, value_name = "TEXT", requires = "ear")]
    pub(crate) audience: Option<String>,
}

fn replica_name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 128 characters of A-Z a-z 0-9 . _ - :".to_owned())
    }
}

/// Numbers of an operation are nobody's business but the operator's.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "an address is written like 127.0.0.1:9100".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("it must be a loopback address".to_owned()) }
}

const EXAMPLES: &str = "Examples:
  attestation-service init --store /var/lib/attestation-service
  attestation-service keys import --store DIR --model name@rev:IDENTITY --version 1 --key model.key
  attestation-service releases import --store DIR --bundle release.sigstore.json --trust trust.json
  attestation-service policy lint --file policy.json --release release.sigstore.json --trust trust.json
  attestation-service audit list --store DIR --json
  attestation-service owner sign --key owner.key --service PIN --model name@rev:IDENTITY --sequence 1 \
    --set-policy policy.json --out command.json
  attestation-service owner service-keys --service ADDR:PORT --pin PIN --out service.json
  attestation-service owner sign --key owner.key --service PIN --model name@rev:IDENTITY --sequence 2 \
    --import-key model.key --key-version 2 --service-keys service.json --out command.json
  attestation-service owner cosign --key second.key --command command.json --out signed-twice.json --owner HEX --owner HEX
  attestation-service serve --store DIR --listen 127.0.0.1:7443 --collateral collateral.json
  attestation-service init --store postgres://service@db.example/attestation --kek file:/etc/attestation-service/kek
  attestation-service backup --store DIR --out store-2026-01-01.tar
  attestation-service restore --store DIR --in store-2026-01-01.tar --checkpoint newest.checkpoint
  attestation-service kek rotate --store DIR --kek file:new.kek --kek file:DIR/kek
  attestation-service audit export --store DIR --out LOG
  attestation-service collateral fetch --collateral-dir DIR --pccs https://pccs.example:8081 --fmspc 90c06f000000
  attestation-service serve --store DIR --listen 127.0.0.1:7443 --collateral-dir DIR --pccs https://pccs.example:8081
  attestation-service appraise --quote quote.bin --collateral collateral.json --at 2026-03-20T00:00:00Z --json
  attestation-service appraise --evidence evidence.json --release release.sigstore.json --trust trust.json \
    --collateral collateral.json --at 2026-03-20T00:00:00Z --ear result.jwt --store DIR --json
  attestation-service ear verify --token result.jwt --keys keys.json --pin PIN
  attestation-service appraise-gpu --report gpu.hex --chain gpu.pem --rim driver.xml --rim vbios.xml \
    --at 2026-03-20T00:00:00Z --json

Exit codes: 0 accepted, 2 refused (with reasons), 64 wrong usage, 1 anything else.";
