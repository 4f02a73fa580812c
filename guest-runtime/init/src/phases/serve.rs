// SPDX-License-Identifier: Apache-2.0
//! Engine and API are started, each as its own user; from then on PID 1 only watches.

use std::{
    convert::Infallible,
    ffi::OsString,
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use attester_protocol::SERVING_PATH;
use linux_sys::{
    descriptors::holding,
    landlock::Access,
    net,
    process::{Program, poll_any, start, wait_any},
    vsock,
};
use types::{
    EventName, GuestConfig,
    config::{ClientAddress, EngineSettings, Network},
};

use super::{keys::TenantsDocument, model::Weights};
use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Boot, Failure, Halt},
    confinement::{Stage, confine},
    gpus, programs, users,
};

/// Ends when the API listens. It does so once the engine has loaded the model. Where the model has tenants, the API gets their
/// document: nobody else may ask then.
pub(crate) fn run(
    boot: &mut Boot,
    config: &GuestConfig,
    weights: &Weights,
    tenants: Option<TenantsDocument>,
) -> Result<(), Failure> {
    let inherits_stderr = boot.console.is_open();
    let engine = start(engine(config, weights, inherits_stderr)).map_err(Code::EngineNotStarted.because())?;
    boot.children.watch(engine, Code::EngineEnded);
    wait_until(boot, Code::EngineNotStarted, || Path::new(ENGINE_SOCKET).exists())?;
    let drain = vsock::listen(drain_protocol::PORT).map_err(Code::ServeNotStarted.because())?;
    let pipe = tenants.as_deref().map(|document| holding(document)).transpose();
    let pipe = pipe.map_err(Code::ServeNotStarted.because())?;
    drop(tenants);
    let port = config.network.port.0;
    let serve = start(serve(&config.network, drain, pipe, inherits_stderr)).map_err(Code::ServeNotStarted.because())?;
    boot.children.watch(serve, Code::ServeEnded);
    wait_until(boot, Code::ServeNotStarted, || net::is_listening(port))?;
    boot.report_resident();
    // Nothing is started any more.
    confine(Stage::Watch).map_err(Code::LockdownFailed.because())
}

/// The end of any of the guest's processes is the end of the guest.
pub(crate) fn supervise(boot: &Boot) -> Result<Infallible, Halt> {
    loop {
        let ended = wait_any().map_err(Code::ServeEnded.because());
        let code = ended.map(|pid| boot.children.ended(pid));
        if let Some(failure) = code.map_or_else(Some, |code| code.map(Code::alone)) {
            return Err(Halt { phase: EventName::Serve, failure });
        }
    }
}

/// The program that the model is for, confined alike. Whoever has GPUs by the configuration, and an engine for them in the
/// image, computes on them: that engine ends rather than computing on the processor.
fn engine(config: &GuestConfig, weights: &Weights, inherits_stderr: bool) -> Program<'static> {
    let on_gpus = config.gpus.0 > 0 && matches!(weights, Weights::Answers(_)) && Path::new(GPU_ENGINE).exists();
    let (path, arguments) = command(&config.engine, weights, on_gpus.then_some(config.gpus.0));
    let mut program = programs::engine(path, arguments, inherits_stderr);
    if on_gpus {
        // Of their device files.
        program.groups.push(users::GPU);
        program.reach.paths.extend(gpus::reach());
    }
    if matches!(weights, Weights::Served(_)) {
        // What the server is made of, which the adapter narrows down to what the image's description of it names.
        program.reach.paths.extend([Access::Execute, Access::Read].map(|access| (DISK.into(), access)));
        program.reach.paths.push(("/dev/null".into(), Access::Device));
        program.reach = program.reach.with_randomness();
    }
    program
}

/// Which program, and its arguments; `gpus` is how many it computes on, if it does.
fn command(engine: &EngineSettings, weights: &Weights, gpus: Option<u8>) -> (&'static str, Vec<OsString>) {
    let context = ("--context", engine.context_tokens.0.to_string());
    let threads = engine.threads_prefill.0.to_string();
    let (path, model, mut settings) = match weights {
        Weights::Answers(file) => {
            let decode = ("--threads-decode", engine.threads_decode.0.to_string());
            let program = if gpus.is_some() { GPU_ENGINE } else { "/bin/engine" };
            // Fewer rows would slow GPUs down, and make no answer the same in any company.
            let rows = engine.prompt_rows.as_ref().filter(|_| gpus.is_none());
            let rows = rows.map(|rows| ("--rows", rows.0.to_string()));
            (program, file, [context, decode, ("--threads-prefill", threads)].into_iter().chain(rows).collect())
        }
        Weights::Vectors(directory) => ("/bin/embedder", directory, vec![context, ("--threads", threads)]),
        Weights::Served(directory) => {
            ("/bin/upstream-engine", directory, vec![context, ("--server", SERVER.to_owned())])
        }
    };
    settings.extend(gpus.map(|gpus| ("--gpus", gpus.to_string())));
    let settings = settings.into_iter().chain([("--socket", ENGINE_SOCKET.to_owned())]);
    let settings = settings.flat_map(|(name, value)| [OsString::from(name), OsString::from(value)]);
    (path, [OsString::from("--model"), model.into()].into_iter().chain(settings).collect())
}

/// With a document of tenants it is started so that it asks for keys; there is no way in between.
fn serve(network: &Network, drain: OwnedFd, tenants: Option<OwnedFd>, inherits_stderr: bool) -> Program<'static> {
    let port = network.port.0;
    let listen = format!("{}:{port}", network.address.0);
    let said_first = match network.client_address.0 {
        ClientAddress::Connection => None,
        ClientAddress::ProxyProtocol => Some("--proxy-protocol"),
    };
    let arguments = ["--attester-socket", SERVING_PATH, "--engine-socket", ENGINE_SOCKET, "--listen", &listen]
        .into_iter()
        .chain(["--drain-descriptor", "3"])
        .chain(tenants.iter().flat_map(|_| ["--tenants-descriptor", "4"]))
        .chain(said_first);
    let arguments = arguments.map(OsString::from).collect();
    programs::serve(port, arguments, drain, tenants, inherits_stderr)
}

/// Waits for a condition; the end of a process ends the waiting.
fn wait_until(boot: &Boot, code: Code, holds: impl Fn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        let ended = poll_any().map_err(code.because())?.and_then(|pid| boot.children.ended(pid));
        if let Some(code) = ended {
            return Err(code.alone());
        }
        if Instant::now() > deadline {
            return Err(code.alone());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// The engine that computes on GPUs, on the verified root of an image that has one.
const GPU_ENGINE: &str = "/gpu/usr/bin/engine";
const ENGINE_SOCKET: &str = "/run/engine/engine.sock";
/// The root of the image's disk, and in it what another inference server is started as.
const DISK: &str = "/gpu";
const SERVER: &str = "/gpu/etc/upstream-engine.json";
/// Loading a large model takes minutes.
const PATIENCE: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use types::config::Free;

    use super::*;

    #[test]
    fn gpus_are_named_to_the_engine_that_computes_on_them_alone() {
        let settings = EngineSettings {
            context_tokens: Free(2048),
            threads_decode: Free(4),
            threads_prefill: Free(8),
            prompt_rows: None,
        };
        let line = |weights: &Weights, gpus| {
            let (path, arguments) = command(&settings, weights, gpus);
            let words = arguments.iter().map(|word| word.to_str().unwrap());
            [path].into_iter().chain(words).collect::<Vec<_>>().join(" ")
        };
        let answers = Weights::Answers("/run/model/m.gguf".into());
        let common = "--model /run/model/m.gguf --context 2048 --threads-decode 4 --threads-prefill 8";
        let socket = "--socket /run/engine/engine.sock";
        assert_eq!(line(&answers, None), format!("/bin/engine {common} {socket}"));
        assert_eq!(line(&answers, Some(2)), format!("/gpu/usr/bin/engine {common} --gpus 2 {socket}"));
        let vectors = line(&Weights::Vectors("/run/model".into()), None);
        assert_eq!(vectors, format!("/bin/embedder --model /run/model --context 2048 --threads 8 {socket}"));
    }

    #[test]
    fn rows_are_told_to_the_engine_for_the_processor_where_the_configuration_has_them() {
        let settings = EngineSettings {
            context_tokens: Free(64),
            threads_decode: Free(1),
            threads_prefill: Free(2),
            prompt_rows: Some(Free(512)),
        };
        let told = |weights: &Weights, gpus| {
            let (_, arguments) = command(&settings, weights, gpus);
            arguments.windows(2).any(|words| words == ["--rows", "512"])
        };
        let has = |weights: &Weights| told(weights, None);
        let [answers, vectors] = [Weights::Answers("m.gguf".into()), Weights::Vectors("m".into())];
        assert!(!told(&answers, Some(1)));
        assert!(has(&answers) && !has(&vectors) && !has(&Weights::Served("m".into())));
    }

    fn network(client_address: ClientAddress) -> Network {
        Network {
            address: Free([10, 0, 2, 15].into()),
            prefix: Free(24),
            port: Free(8443),
            client_address: Free(client_address),
        }
    }

    fn line(program: &Program<'_>) -> String {
        let words: Vec<_> = program.arguments.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn where_a_proxy_says_whose_connections_are_the_server_is_told() {
        let descriptor = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let started = |client_address| line(&serve(&network(client_address), descriptor(), None, false));
        assert!(started(ClientAddress::ProxyProtocol).ends_with(" --drain-descriptor 3 --proxy-protocol"));
        assert!(!started(ClientAddress::Connection).contains("proxy"));
    }

    #[test]
    fn tenants_are_handed_on_where_there_are_some() {
        let descriptor = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for (tenants, rest) in [(None, ""), (Some(descriptor()), " --tenants-descriptor 4")] {
            let number = 1 + usize::from(tenants.is_some());
            let program = serve(&network(ClientAddress::Connection), descriptor(), tenants, false);
            let line = line(&program);
            assert!(line.ends_with(&format!("--listen 10.0.2.15:8443 --drain-descriptor 3{rest}")), "{line}");
            // The first of them is number 3 there.
            assert_eq!(program.descriptors.len(), number);
        }
    }
}
