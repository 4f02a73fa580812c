// SPDX-License-Identifier: Apache-2.0
//! The API process of the guest: see the library's description.

use std::{fs::File, io::Read as _, net::SocketAddr, os::fd::OwnedFd, path::PathBuf, process::ExitCode};

use clap::Parser;
use serve::{DrainLink, Limits, Options, Server, TenantsDocument, confine};
use types::{Document as _, Tenants};
use zeroize::Zeroizing;

/// Answers OpenAI-style requests over attested TLS, until attester or engine end.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  serve --attester-socket /run/attester.sock --engine-socket /run/engine.sock \
    --listen 0.0.0.0:8443 --drain-descriptor 3\n\nThe exit code is 64 for wrong usage and 1 otherwise: the server never ends by itself while \
    attester and engine live."
)]
struct Arguments {
    /// The attester's serving socket.
    #[arg(long)]
    attester_socket: PathBuf,
    /// The engine's socket.
    #[arg(long)]
    engine_socket: PathBuf,
    /// Address and port of the API.
    #[arg(long)]
    listen: SocketAddr,
    /// Descriptor of a listening socket that the parent left open: over it the host says that the guest shall finish.
    #[arg(long)]
    drain_descriptor: Option<i32>,
    /// Descriptor of a pipe that the parent left open: the document of the model's tenants, to its end.
    #[arg(long)]
    tenants_descriptor: Option<i32>,
    /// Every connection begins with a header of the PROXY protocol, version 2, that says whose it is.
    #[arg(long)]
    proxy_protocol: bool,
    /// Print the address on stdout when the server listens (for port 0).
    #[arg(long)]
    print_address: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the message cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = linux_sys::memory::prepare() {
        eprintln!("serve: {error}");
        return ExitCode::FAILURE;
    }
    // Before anything else can have their numbers.
    let inherited = |number: Option<i32>| number.map(linux_sys::descriptors::inherited).transpose();
    let (drain, tenants) = match (inherited(arguments.drain_descriptor), inherited(arguments.tenants_descriptor)) {
        (Ok(drain), Ok(tenants)) => (drain, tenants),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("serve: {error}");
            return ExitCode::FAILURE;
        }
    };
    let tenants = match tenants.map(read_tenants).transpose() {
        Ok(tenants) => tenants,
        Err(error) => {
            eprintln!("serve: the document of tenants was not read: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Handshakes wait for the attester's signature on their thread: one thread more than that.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let Ok(runtime) = runtime else {
        eprintln!("serve: no runtime");
        return ExitCode::FAILURE;
    };
    let ended = runtime.block_on(run(arguments, drain, tenants));
    // Names of the failed part only: no error here holds a byte of a request.
    match ended {
        Ok(ended) => eprintln!("serve: {ended}"),
        Err(error) => eprintln!("serve: {error}"),
    }
    ExitCode::FAILURE
}

/// Reads the whole document into memory that is wiped afterwards.
fn read_tenants(pipe: OwnedFd) -> std::io::Result<TenantsDocument> {
    let most = Tenants::MAX_BYTES.saturating_add(1);
    // With its final size from the start no copy is left behind by growing. A byte too many is refused by the reader.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most.saturating_add(1)));
    File::from(pipe).take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(TenantsDocument::new(bytes))
}

async fn run(
    arguments: Arguments,
    drain: Option<OwnedFd>,
    tenants: Option<TenantsDocument>,
) -> Result<serve::Ended, Box<dyn std::error::Error>> {
    let Arguments { attester_socket, engine_socket, listen, proxy_protocol, print_address, .. } = arguments;
    let limits = Limits::default();
    let options = Options { attester: attester_socket, engine: engine_socket, listen, proxy_protocol, limits, tenants };
    let mut server = Server::start(options).await?;
    if let Some(listener) = drain {
        server = server.heeding(DrainLink::new(listener)?);
    }
    if print_address {
        println!("{}", server.address());
    }
    confine()?;
    Ok(server.run().await)
}

const WORKERS: usize = 2;
const WRONG_USAGE: u8 = 64;
