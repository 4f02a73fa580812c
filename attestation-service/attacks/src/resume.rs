// SPDX-License-Identifier: Apache-2.0
//! A client that offers to resume: it has tickets of a server that hands them out, and shows them, with early data, to one
//! that must know nothing of them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ServerSessionMemoryCache;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

/// Tickets that are good at the server which made them.
#[derive(Debug)]
pub struct Offer(Arc<ClientConfig>);

/// A connection that was made with such an offer.
#[derive(Debug)]
pub struct Offered {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Whether the server resumed.
    pub resumed: bool,
    /// Whether it took the early data.
    pub early_data: bool,
}

impl Offer {
    /// Gets tickets from a server of the test, and shows that they resume there, with early data: so an offer that is not
    /// taken elsewhere is not taken by that server.
    ///
    /// # Errors
    /// The control fails.
    pub fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let config = Arc::new(generous()?);
        let twin = std::thread::spawn(move || (0..2).try_for_each(|_| serve(&listener, &config)));
        let offer = Self(Arc::new(client()?));
        let first = offer.connect(address)?;
        ensure!(!first.resumed, "nothing was there to resume");
        let (_, tickets) = first.send(b"x")?;
        ensure!(tickets > 0, "the server of the test hands out no tickets");
        let again = offer.to(address, b"x")?;
        ensure!(again.resumed && again.early_data, "the tickets are good where they were made");
        again.send(b"")?;
        match twin.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("the server of the test panicked"),
        }
        Ok(offer)
    }

    /// Shows a ticket to the server at `address`, with early data.
    ///
    /// # Errors
    /// No ticket is left, or there is no connection: a server that can't resume goes on without.
    pub fn to(&self, address: SocketAddr, early: &[u8]) -> Result<Offered> {
        let mut connection = self.connection()?;
        let mut data = connection.early_data().context("there is no ticket to offer")?;
        data.write_all(early)?;
        complete(connection, address)
    }

    fn connect(&self, address: SocketAddr) -> Result<Offered> {
        complete(self.connection()?, address)
    }

    fn connection(&self) -> Result<ClientConnection> {
        Ok(ClientConnection::new(Arc::clone(&self.0), ServerName::try_from("resumption.invalid")?)?)
    }
}

impl Offered {
    /// Sends the bytes and reads until the server ends; gives what came, and how many tickets.
    ///
    /// # Errors
    /// The connection breaks.
    pub fn send(mut self, bytes: &[u8]) -> Result<(Vec<u8>, u32)> {
        self.stream.write_all(bytes)?;
        self.stream.flush()?;
        let mut answer = Vec::new();
        match self.stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Ok((answer, self.stream.conn.tls13_tickets_received())),
        }
    }
}

fn complete(mut connection: ClientConnection, address: SocketAddr) -> Result<Offered> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let early_data = connection.is_early_data_accepted();
    Ok(Offered { stream: StreamOwned::new(connection, stream), resumed, early_data })
}

/// Answers one byte, sent or early, by another one.
fn serve(listener: &TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(Arc::clone(config))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let mut byte = [0];
    let early = connection.early_data().is_some_and(|mut data| data.read_exact(&mut byte).is_ok());
    let mut stream = StreamOwned::new(connection, stream);
    if !early {
        stream.read_exact(&mut byte)?;
    }
    stream.write_all(&byte)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    // Until the client has gone: what it still sends must not reset the connection before it has read.
    let _ = stream.read_to_end(&mut Vec::new());
    Ok(())
}

/// A server that allows whatever a client could resume by.
fn generous() -> Result<ServerConfig> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["resumption.invalid".to_owned()])?.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    config.session_storage = ServerSessionMemoryCache::new(32);
    config.send_tls13_tickets = 4;
    config.max_early_data_size = 4096;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn client() -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Who the server is does not matter: it is what it does with the offer.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

const ALPN: &[u8] = b"http/1.1";
const PATIENCE: Duration = Duration::from_secs(60);
