// SPDX-License-Identifier: Apache-2.0
//! `host-agent cache`: encrypted model packs on this host.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use model_cache::{Cache, CacheError, FetchProgress, Limits, Request, Source};
use serde_json::{Value, json};
use types::{Blake3Digest, ModelId, Refusal};

use crate::daemon::config::{self, BucketSection, Config};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  host-agent cache root --pack pack/\n  host-agent cache fetch --root <blake3> --from /srv/pack --from https://models.example/smol\n  host-agent cache fetch --root <blake3> --from s3://models/packs/smol\n  host-agent cache list\n  host-agent cache verify\n  host-agent cache prune --keep-gib 100"
)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
    /// The cache's directory.
    #[arg(long, global = true, default_value = "/var/lib/chrysalis/cache")]
    dir: PathBuf,
    /// Most GiB of packs.
    #[arg(long, global = true, default_value_t = 500)]
    quota_gib: u64,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Say the root of a pack in a directory: BLAKE3 of its pack.json.
    Root {
        /// The pack.
        #[arg(long)]
        pack: PathBuf,
    },
    /// Fetch a pack, or what is missing of it.
    Fetch(FetchArgs),
    /// List whole packs, the one used longest ago first.
    List,
    /// Hash every byte of packs again.
    Verify {
        /// One pack instead of all.
        #[arg(long)]
        root: Option<Blake3Digest>,
        /// Remove those that are damaged and that nobody uses.
        #[arg(long)]
        remove: bool,
    },
    /// Remove packs that nobody uses, the one used longest ago first.
    Prune {
        /// Leave at most this much.
        #[arg(long, default_value_t = 0)]
        keep_gib: u64,
    },
    /// Say where the disk of a pack is, for `launch --model-disk`.
    Path {
        /// The pack.
        #[arg(long)]
        root: Blake3Digest,
    },
}

#[derive(Debug, Args)]
struct FetchArgs {
    /// The pack's root.
    #[arg(long)]
    root: Blake3Digest,
    /// The model that it must be of, name@revision:identity.
    #[arg(long)]
    model: Option<ModelId>,
    /// Absolute path, http:// or https:// address of a directory with pack.json and objects/; or s3://NAME/PREFIX of a bucket
    /// that --config declares as [buckets.NAME]. The first that has a part gives it. Several can be named.
    #[arg(long, required = true)]
    from: Vec<String>,
    /// The agent's configuration; read for s3:// alone.
    #[arg(long, default_value = "/etc/chrysalis/agent.toml")]
    config: PathBuf,
    /// Certificates for https, PEM.
    #[arg(long, default_value = "/etc/ssl/certs/ca-certificates.crt")]
    authorities: PathBuf,
}

/// Runs the command. Exit code 2 when a pack is not to be had or damaged.
pub(crate) fn run(args: &CacheArgs) -> anyhow::Result<ExitCode> {
    let done = match &args.command {
        CacheCommand::Root { pack } => return root(pack, args.json),
        CacheCommand::Fetch(fetch_args) => open(args).and_then(|cache| fetch(&cache, fetch_args)),
        CacheCommand::List => open(args).and_then(|cache| list(&cache)),
        CacheCommand::Verify { root, remove } => open(args).and_then(|cache| verify(&cache, *root, *remove)),
        CacheCommand::Prune { keep_gib } => open(args).and_then(|cache| {
            let removed = cache.prune(keep_gib.saturating_mul(1 << 30)).map_err(refused)?;
            let text = removed.iter().map(|root| format!("removed {root}\n")).collect();
            Ok((json!({ "removed": removed }), text))
        }),
        CacheCommand::Path { root } => open(args).and_then(|cache| {
            let held = cache.hold(root).and_then(|held| held.ok_or(CacheError::Missing { root: *root }));
            let held = held.map_err(refused)?;
            Ok((json!({ "disk": held.disk() }), format!("{}\n", held.disk().display())))
        }),
    };
    match done {
        Ok((document, text)) => {
            if args.json {
                println!("{document}");
            } else {
                print!("{text}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(reasons) => {
            if args.json {
                println!("{}", json!({ "reasons": reasons }));
            } else {
                reasons.iter().for_each(|reason| eprintln!("refused: {reason}"));
            }
            Ok(ExitCode::from(2))
        }
    }
}

type Done = Result<(Value, String), Vec<Refusal>>;

fn open(args: &CacheArgs) -> Result<Cache, Vec<Refusal>> {
    Cache::open(&args.dir, args.quota_gib.saturating_mul(1 << 30)).map_err(refused)
}

fn refused(error: CacheError) -> Vec<Refusal> {
    error.refusals()
}

fn root(pack: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let directory = model::Directory::open(pack).with_context(|| pack.display().to_string())?;
    let index = model::Source::index(&directory);
    let root = model_cache::root_of(index)?;
    if json {
        println!("{}", json!({ "root": root, "identity": index.identity, "bytes": index.ciphertext_length() }));
    } else {
        println!("{root}");
    }
    Ok(ExitCode::SUCCESS)
}

fn fetch(cache: &Cache, args: &FetchArgs) -> Done {
    let numbered = args.from.iter().zip(1_usize..);
    let bucketed = args.from.iter().any(|address| address.starts_with("s3://"));
    let buckets = if bucketed { Config::load(&args.config)?.buckets } else { BTreeMap::new() };
    let sources = numbered.map(|(address, number)| source(&buckets, address, number, &args.authorities));
    let sources = sources.collect::<Result<Vec<Source>, _>>().map_err(|reason| vec![reason])?;
    let identity = args.model.as_ref().map(ModelId::identity);
    let request = Request { root: &args.root, identity, sources: &sources, limits: Limits::default() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|error| {
            vec![Refusal::new("agent_failed", "cache fetch", error.to_string(), "free memory or processes, then again")]
        })?;
    let shown = Meter::new();
    let started = Instant::now();
    let held = runtime.block_on(cache.fetch(&request, &|progress| shown.show(progress))).map_err(refused)?;
    let seconds = started.elapsed().as_secs_f64();
    let document = json!({ "root": args.root, "identity": held.identity(), "disk": held.disk(), "seconds": seconds });
    Ok((document, format!("{}\n", held.disk().display())))
}

/// The source that `--from` names in its place `number`. Nothing of an address is said: its query may be a secret.
fn source(
    buckets: &BTreeMap<String, BucketSection>,
    address: &str,
    number: usize,
    authorities: &Path,
) -> Result<Source, Refusal> {
    // A person at a prompt names directories as they stand.
    let directory = Path::new(address).canonicalize().ok().filter(|_| !address.contains("://"));
    if let Some(path) = directory {
        return Ok(Source::directory(path));
    }
    let from = format!("--from, number {number}");
    config::source(buckets, address, &from, || std::fs::read(authorities)).map_err(|mut reason| {
        match reason.field.as_str() {
            // Here the option counts, not the file's.
            "cache.authorities" => "--authorities".clone_into(&mut reason.field),
            field if field == from => "correct it; a directory must exist".clone_into(&mut reason.fix),
            _ => {}
        }
        reason
    })
}

fn list(cache: &Cache) -> Done {
    let entries = cache.list().map_err(refused)?;
    let text = entries.iter().map(|entry| {
        let held = if entry.held { "in use" } else { "" };
        let damaged = if entry.identity.is_none() { " damaged" } else { "" };
        format!("{}  {:>9} MiB  {held}{damaged}\n", entry.root, entry.bytes >> 20)
    });
    let bytes = cache.bytes().map_err(refused)?;
    Ok((json!({ "packs": entries, "bytes": bytes, "quota": cache.quota() }), text.collect()))
}

fn verify(cache: &Cache, root: Option<Blake3Digest>, remove: bool) -> Done {
    let roots = match root {
        Some(root) => vec![root],
        None => cache.list().map_err(refused)?.into_iter().map(|entry| entry.root).collect(),
    };
    let mut text = String::new();
    let mut reasons = Vec::new();
    for root in &roots {
        match cache.verify(root, &|_| ()) {
            Ok(()) => text.push_str(&format!("{root}: good\n")),
            Err(error) => {
                reasons.push(error.refusal());
                if remove {
                    eprintln!("{root}: {}", removed(cache, root).map_err(refused)?);
                }
            }
        }
    }
    if reasons.is_empty() { Ok((json!({ "verified": roots }), text)) } else { Err(reasons) }
}

/// Removes a pack, and says what came of it.
fn removed(cache: &Cache, root: &Blake3Digest) -> Result<&'static str, CacheError> {
    Ok(if cache.remove(root)? {
        "removed"
    } else if cache.list()?.iter().any(|entry| entry.root == *root) {
        "in use, not removed: stop the guests that use it first"
    } else {
        "not in the cache"
    })
}

/// Progress on standard error: four times a second on a terminal, every ten seconds elsewhere.
struct Meter {
    pause: Duration,
    terminal: bool,
    last: Mutex<Option<Instant>>,
}

impl Meter {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let pause = if terminal { Duration::from_millis(250) } else { Duration::from_secs(10) };
        Self { pause, terminal, last: Mutex::new(None) }
    }

    fn show(&self, FetchProgress { done, total }: FetchProgress) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_some_and(|last| last.elapsed() < self.pause) && done < total {
            return;
        }
        *last = Some(Instant::now());
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        let end = if self.terminal && done < total { '\r' } else { '\n' };
        eprint!("{} of {} MiB, {percent} %{end}", done >> 20, total >> 20);
    }
}
