// SPDX-License-Identifier: Apache-2.0
//! How long this host is good enough for clients: its own quote under Intel's collateral, today's and the next.
//!
//! The quote is the one that a serving guest shows everybody in its certificate; nothing is asked of the guest beyond a
//! TLS handshake. What comes of it is for the provider alone: clients and services judge by themselves.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use attested_channel::{GuestCertificate, tls};
use collateral::{Keeper, Outlook, Refresher, Source, Standing, Wanted};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tdx_verify::{AcceptedTcb, PlatformPolicy, TrustAnchors};
use tokio_rustls::TlsConnector;
use types::Refusal;

use super::config::TcbSection;
use super::now_unix;
use crate::door::Door;
use crate::files;

/// How this host's TCB stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcbStatus {
    pub(crate) state: TcbWord,
    /// Kind of this platform, hexadecimal.
    pub(crate) fmspc: Option<String>,
    /// When it falls out, seconds since 1970.
    pub(crate) falls_out: Option<u64>,
    /// Whole days until then; 0 where it is out.
    pub(crate) days_left: Option<u64>,
    /// Why, and what to update.
    pub(crate) reasons: Vec<Refusal>,
}

/// In a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TcbWord {
    /// Nothing published so far puts it out.
    Good,
    FallsOut,
    Out,
    /// It can't be told, as long as no guest served since the agent's start, or without collateral.
    Unknown,
}

impl TcbWord {
    pub(crate) const ALL: [Self; 4] = [Self::Good, Self::FallsOut, Self::Out, Self::Unknown];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::FallsOut => "falls-out",
            Self::Out => "out",
            Self::Unknown => "unknown",
        }
    }
}

impl TcbStatus {
    fn of(outlook: Outlook, now: u64) -> Self {
        let (state, falls_out, days_left) = match outlook.standing {
            Standing::Good => (TcbWord::Good, None, None),
            Standing::FallsOut { at } => (TcbWord::FallsOut, Some(at), Some(at.saturating_sub(now) / DAY)),
            Standing::Out => (TcbWord::Out, None, Some(0)),
            Standing::Unknown => (TcbWord::Unknown, None, None),
        };
        let fmspc = outlook.fmspc.map(|fmspc| fmspc.to_string());
        Self { state, fmspc, falls_out, days_left, reasons: outlook.reasons }
    }

    pub(crate) fn unknown(code: &str, detail: impl Into<String>, fix: &str) -> Self {
        let reasons = vec![Refusal::new(code, "tcb", detail, fix)];
        Self { state: TcbWord::Unknown, fmspc: None, falls_out: None, days_left: None, reasons }
    }
}

/// What the loop and the watch tell each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    /// Where guests serve now.
    pub(crate) serving: Arc<Mutex<BTreeSet<Door>>>,
    /// The last word.
    pub(crate) status: Arc<Mutex<Option<TcbStatus>>>,
}

/// The watch of one host.
pub(crate) struct Watch {
    section: TcbSection,
    anchors: TrustAnchors,
    keeper: Keeper,
    refresher: Option<(Wanted, Refresher)>,
    shared: Shared,
    quote: Option<Vec<u8>>,
    /// From whom the quote was taken, and when.
    taken: Option<(Door, Instant)>,
    said: Option<(TcbStatus, Instant)>,
}

impl Watch {
    /// Opens the directory of collateral.
    ///
    /// # Errors
    /// It can't be made, or `pccs` is no address.
    pub(crate) fn new(section: &TcbSection, anchors: &TrustAnchors, shared: Shared) -> anyhow::Result<Self> {
        let keeper = Keeper::open(&section.collateral_dir, anchors.clone()).context("tcb.collateral_dir")?;
        let (section, anchors) = (section.clone(), anchors.clone());
        let watch = Self { section, anchors, keeper, refresher: None, shared, quote: None, taken: None, said: None };
        watch.source()?;
        Ok(watch)
    }

    /// Looks every minute, for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.step(now_unix()).await;
            // Guests that come up are asked soon.
            let pause = if self.quote.is_none() { SOON } else { EVERY };
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&mut self, now: u64) {
        let status = match self.renew_quote().await {
            Err(error) => TcbStatus::unknown(
                "tcb_quote_missing",
                format!("no guest gave a quote of this host: {error:#}"),
                "wait until a guest serves, or name a file with a quote in tcb.quote",
            ),
            Ok(quote) => {
                self.refresh(&quote, now).await;
                self.judge(quote, now).await
            }
        };
        self.say(&status);
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// The newest quote of this host: of a guest that serves, else the last one, else the file.
    async fn renew_quote(&mut self) -> anyhow::Result<Vec<u8>> {
        let serving = self.shared.serving.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = |(door, at): &(Door, Instant)| serving.contains(door) && at.elapsed() < RENEW;
        if !self.taken.as_ref().is_some_and(fresh) {
            for door in serving {
                match tokio::time::timeout(PATIENCE, quote_of(door)).await {
                    Ok(Ok(quote)) => {
                        self.quote = Some(quote);
                        self.taken = Some((door, Instant::now()));
                        break;
                    }
                    Ok(Err(error)) => tracing::debug!(address = %door.address, "no quote: {error:#}"),
                    Err(_) => tracing::debug!(address = %door.address, "no quote in time"),
                }
            }
        }
        match (&self.quote, &self.section.quote) {
            (Some(quote), _) => Ok(quote.clone()),
            (None, Some(path)) => {
                let quote = files::read_capped(path, types::evidence::MAX_QUOTE)?;
                Ok(tdx_verify::strip_padding(&quote).to_vec())
            }
            (None, None) => anyhow::bail!("none serves"),
        }
    }

    async fn refresh(&mut self, quote: &[u8], now: u64) {
        let Some(wanted) = Wanted::of_quote(quote) else { return };
        if self.refresher.as_ref().is_none_or(|(known, _)| *known != wanted) {
            let Ok(Some(source)) = self.source() else { return };
            match Refresher::new(source, self.keeper.clone(), vec![wanted]) {
                Ok(refresher) => self.refresher = Some((wanted, refresher)),
                Err(error) => return tracing::warn!(code = "collateral_store", "{error}"),
            }
        }
        let Some((_, refresher)) = &mut self.refresher else { return };
        for (fmspc, result) in refresher.refresh(now).await {
            match result {
                Ok(facts) => {
                    tracing::info!(%fmspc, number = facts.tcb_evaluation_data_number, expires = facts.expires(), "collateral renewed");
                }
                Err(error) => {
                    tracing::warn!(%fmspc, code = %error.refusal().code, "collateral was not renewed: {error}");
                }
            }
        }
    }

    async fn judge(&self, quote: Vec<u8>, now: u64) -> TcbStatus {
        let keeper = self.keeper.clone();
        let policy = PlatformPolicy { tcb: self.section.accept.clone(), ..PlatformPolicy::default() };
        let judged = tokio::task::spawn_blocking(move || keeper.outlook(&quote, &policy, now)).await;
        judged.map_or_else(
            |error| TcbStatus::unknown("agent_failed", error.to_string(), "show it to the publisher of the agent"),
            |outlook| TcbStatus::of(outlook, now),
        )
    }

    /// Tells the log what is new, and once a day what is bad.
    fn say(&mut self, status: &TcbStatus) {
        let same = |(said, at): &(TcbStatus, Instant)| {
            let again = at.elapsed() > SAY_AGAIN && matches!(status.state, TcbWord::FallsOut | TcbWord::Out);
            said.state == status.state && said.falls_out == status.falls_out && !again
        };
        if self.said.as_ref().is_some_and(same) {
            return;
        }
        let code = status.reasons.first().map_or("tcb_good", |reason| reason.code.as_str());
        let hardware = self.anchors.hardware();
        match (status.state, status.reasons.first()) {
            (TcbWord::Good, _) => tracing::info!(%hardware, "no published TCB evaluation puts this host out"),
            (TcbWord::Unknown, Some(reason)) => {
                tracing::info!(%hardware, code, "this host's TCB is not known: {reason}")
            }
            (_, Some(reason)) => tracing::warn!(%hardware, code, days_left = status.days_left, "{reason}"),
            (_, None) => {}
        }
        self.said = Some((status.clone(), Instant::now()));
    }

    fn source(&self) -> anyhow::Result<Option<Source>> {
        let Some(pccs) = &self.section.pccs else { return Ok(None) };
        let authorities =
            || files::read_capped(&self.section.authorities, MAX_AUTHORITIES).map_err(std::io::Error::other);
        Source::new(pccs, authorities).map(Some).context("tcb.pccs")
    }
}

/// The quote in a guest's certificate. The handshake shows that the peer has the certificate's key; nothing is verified here.
async fn quote_of(door: Door) -> anyhow::Result<Vec<u8>> {
    let config = Arc::new(tls::client_config().context("TLS settings")?);
    let stream = door.connect().await?;
    let name = ServerName::try_from(SERVER_NAME).context("server name")?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    let (_, connection) = stream.get_ref();
    let certificates = connection.peer_certificates().unwrap_or_default();
    let certificate = GuestCertificate::from_der(certificates.first().context("no certificate")?)?;
    Ok(certificate.evidence.quote.as_slice().to_vec())
}

/// What is accepted where nothing is said: up to date, without an end.
pub(crate) fn up_to_date() -> Vec<AcceptedTcb> {
    PlatformPolicy::default().tcb
}

const DAY: u64 = 86_400;
const SOON: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_secs(60);
/// A guest's quote does not change while it runs; another guest's may be newer.
const RENEW: Duration = Duration::from_secs(6 * 3600);
const SAY_AGAIN: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_AUTHORITIES: usize = 4 << 20;
const SERVER_NAME: &str = "chrysalis.invalid";

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use attested_channel::certificate::{CertificateEvidence, OID_ARCS};
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdParams, TdReport};
    use tokio::net::TcpListener;
    use types::{Base64, Registers, Sha256Digest, Sha384Digest};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[derive(Debug)]
    struct Fixed(Arc<CertifiedKey>);

    impl ResolvesServerCert for Fixed {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn quote(platform: &SimulatedPlatform) -> Vec<u8> {
        let value = |text: &str| Sha384Digest::of(text.as_bytes());
        let params = TdParams::with_config(value("config"));
        let registers = Registers {
            mr_td: value("mr_td"),
            rtmr_0: value("0"),
            rtmr_1: value("1"),
            rtmr_2: value("2"),
            rtmr_3: value("3"),
            mr_config_id: value("config"),
            mr_owner: Sha384Digest::ZERO,
            mr_owner_config: Sha384Digest::ZERO,
        };
        let report = TdReport { registers, attributes: params.attributes, xfam: params.xfam, report_data: [7; 64] };
        platform.quote(&report, QuoteVersion::V4, None).unwrap()
    }

    /// A guest as far as its handshake; it counts them.
    async fn guest(quote: Vec<u8>) -> (SocketAddrV4, Arc<Mutex<u32>>) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let evidence = CertificateEvidence { evidence: Sha256Digest::of(b"e"), quote: Base64::new(quote).unwrap() };
        let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
        let value = evidence.to_extension_value().unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&OID_ARCS, value)];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certified = CertifiedKey::new(vec![certificate], any_supported_type(&der).unwrap());
        let config = tls::server_config(Arc::new(Fixed(Arc::new(certified)))).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *counted.lock().unwrap() += 1;
                drop(acceptor.accept(stream).await);
            }
        });
        (SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), count)
    }

    struct World {
        platform: SimulatedPlatform,
        watch: Watch,
        shared: Shared,
        dir: tempfile::TempDir,
    }

    fn open(address: SocketAddrV4) -> Door {
        Door { address, header: false }
    }

    fn world() -> World {
        let (platform, dir) = (SimulatedPlatform::generate(NOW).unwrap(), tempfile::tempdir().unwrap());
        let shared = Shared::default();
        let section = TcbSection {
            collateral_dir: dir.path().join("collateral"),
            pccs: None,
            authorities: "/nonexistent".into(),
            quote: None,
            accept: up_to_date(),
        };
        let anchors = TrustAnchors::custom(platform.root_der().to_vec());
        let watch = Watch::new(&section, &anchors, shared.clone()).unwrap();
        World { platform, watch, shared, dir }
    }

    impl World {
        fn keep(&self, early: Option<Fault>) {
            let issue = |number, fault| self.platform.collateral_numbered(NOW, number, fault).unwrap().to_json();
            let wanted = Wanted::of_quote(&quote(&self.platform)).unwrap();
            let (standard, early) = (issue(17, None), issue(18, early));
            self.watch.keeper.keep(&wanted, standard.as_bytes(), Some(early.as_bytes()), NOW).unwrap();
        }

        async fn status(&mut self, now: u64) -> TcbStatus {
            self.watch.step(now).await;
            self.shared.status.lock().unwrap().clone().unwrap()
        }
    }

    #[tokio::test]
    async fn a_serving_guests_quote_tells_how_long_the_host_is_good() {
        let mut world = world();
        assert_eq!(world.status(NOW).await.reasons[0].code, "tcb_quote_missing");
        let (address, handshakes) = guest(quote(&world.platform)).await;
        // One that is gone does not keep the next from being asked.
        let gone = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        *world.shared.serving.lock().unwrap() = BTreeSet::from([open(gone), open(address)]);
        assert_eq!(world.status(NOW).await.reasons[0].code, "collateral_missing");
        world.keep(None);
        let good = world.status(NOW).await;
        assert_eq!((good.state, good.days_left, good.reasons.len()), (TcbWord::Good, None, 0));
        assert_eq!(good.fmspc.as_deref(), Some("53494d000000"));
        world.keep(Some(Fault::OutOfDateTcb));
        for (now, days) in [(NOW, 42), (NOW + 1, 41), (NOW + 29 * DAY, 13)] {
            let status = world.status(now).await;
            assert_eq!((status.state, status.falls_out), (TcbWord::FallsOut, Some(NOW + 42 * DAY)));
            assert_eq!(status.days_left, Some(days), "{now}");
            assert_eq!(status.reasons[0].code, "tcb_falls_out");
        }
        let late = world.status(NOW + 31 * DAY).await;
        assert_eq!((late.state, late.days_left), (TcbWord::Unknown, None));
        // Nothing that was known is asked again, nor lost when the guest ends.
        assert_eq!(*handshakes.lock().unwrap(), 1);
        world.shared.serving.lock().unwrap().clear();
        assert_eq!(world.status(NOW).await.state, TcbWord::FallsOut);
    }

    #[tokio::test]
    async fn a_file_stands_in_until_a_guest_serves() {
        let mut world = world();
        world.keep(None);
        let path = world.dir.path().join("quote");
        std::fs::write(&path, quote(&world.platform)).unwrap();
        world.watch.section.quote = Some(path);
        assert_eq!(world.status(NOW).await.state, TcbWord::Good);
        let other = SimulatedPlatform::generate(NOW).unwrap();
        let (address, _) = guest(quote(&other)).await;
        *world.shared.serving.lock().unwrap() = BTreeSet::from([open(address)]);
        let status = world.status(NOW).await;
        assert_eq!(status.state, TcbWord::Unknown, "another root's platform: {status:?}");
    }

    /// The released program knows Intel's root alone: of a rehearsal it says nothing.
    #[tokio::test]
    async fn a_rehearsal_is_not_judged_by_the_released_program() {
        let mut world = world();
        world.keep(None);
        let directory = world.dir.path().join("collateral");
        world.watch.keeper = Keeper::open(&directory, TrustAnchors::intel()).unwrap();
        let (address, _) = guest(quote(&world.platform)).await;
        *world.shared.serving.lock().unwrap() = BTreeSet::from([open(address)]);
        let status = world.status(NOW).await;
        assert_eq!((status.state, status.reasons[0].code.as_str()), (TcbWord::Unknown, "root_untrusted"));
    }
}
