//! A peer's certificate, and the authorities that it believes: `tls.crt`, `tls.key` and `ca.crt` of one directory,
//! as cert-manager lays out a Secret.
//!
//! Peers show each other certificates of these authorities, and no more is asked of them: a peer's name and address
//! vary, and who it is, it proves by cluster, id and nonce (`peer/directory.rs`). Clients of the admin port see the
//! same certificate, and check that it is for the host that they meant.
//!
//! `ca.crt` may hold several authorities, so that one can be replaced: first both, then new certificates, then the
//! new one alone. Connections outlive all of that; only new handshakes use what was read last.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raftserve_proxy::TlsError;
use raftserve_proxy::certificates::{authorities, pair};
use raftserve_proxy::reload::{Reloaded, Source};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::stream::Stream;

/// How often refused handshakes are told; all are counted.
const TELL: Duration = Duration::from_secs(5);

/// How calls of peers in frames of our own name themselves in the handshake.
const FRAMES: &[u8] = b"raftserve-frames";

/// How gRPC does.
const GRPC: &[u8] = b"h2";

/// Whom a peer that cannot be named in a handshake, as by an address with a zone, is taken for. Nobody checks it.
const NAMELESS: &str = "raftserve";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file is missing or wrong.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The other peers would refuse it.
    #[error(
        "{certificate} is not of one of the authorities in {authorities}, not valid now, or not for both servers and \
         clients: the other peers would refuse it"
    )]
    NotVouchedFor {
        /// `tls.crt`.
        certificate: PathBuf,
        /// `ca.crt`.
        authorities: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// TLS cannot be set up so.
    #[error("cannot set up TLS with the certificates of {directory}")]
    Unusable {
        /// Where they are.
        directory: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What two peers speak on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Frames of our own.
    Frames,
    /// gRPC.
    Grpc,
}

impl Protocol {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Frames => FRAMES,
            Self::Grpc => GRPC,
        }
    }
}

/// What handshakes that begin now use.
struct Current {
    /// Of the peer port: both sides show certificates.
    peers: Arc<ServerConfig>,
    /// Of the admin port.
    admin: Arc<ServerConfig>,
    /// To another peer's port, for frames and for gRPC.
    to_frames: Arc<ClientConfig>,
    to_grpc: Arc<ClientConfig>,
}

/// See the module.
#[derive(Debug)]
pub struct Certificates {
    current: Reloaded<Files>,
    refused: AtomicU64,
    /// When a refusal was last told.
    told: Mutex<Option<Instant>>,
}

impl Certificates {
    /// Reads the files of a directory for the first time.
    ///
    /// # Errors
    /// [`AccessError`] if they cannot be used.
    pub fn read(directory: PathBuf) -> Result<Self, AccessError> {
        Ok(Self {
            current: Reloaded::read(Files { directory })?,
            refused: AtomicU64::new(0),
            told: Mutex::new(None),
        })
    }

    /// Reads the files again if any of them changed.
    pub fn refresh(&self) {
        self.current.refresh();
    }

    /// Shakes hands with a peer that has connected, and learns what it will speak.
    ///
    /// # Errors
    /// What was wrong with the peer's side, which is told and counted here.
    pub(crate) async fn accept_peer(&self, stream: TcpStream) -> io::Result<(Stream, Protocol)> {
        let from = stream.peer_addr();
        let config = Arc::clone(&self.current.load().peers);
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        let stream = accepted.inspect_err(|error| {
            let from = from.map_or_else(|_| "a peer".to_owned(), |from| from.to_string());
            self.tell_refused(&from, error);
        })?;
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(FRAMES) => Protocol::Frames,
            _ => Protocol::Grpc,
        };
        Ok((Stream::Tls(Box::new(stream.into())), protocol))
    }

    /// Shakes hands with a client of the admin API.
    ///
    /// # Errors
    /// What was wrong with the client's side.
    pub(crate) async fn accept_client(&self, stream: TcpStream) -> io::Result<Stream> {
        let config = Arc::clone(&self.current.load().admin);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    /// Shakes hands with the peer at `host`, to which `stream` was dialled.
    ///
    /// # Errors
    /// What was wrong with the peer's side, in which case it is told and counted here, or with the connection.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
        protocol: Protocol,
    ) -> io::Result<Stream> {
        let config = {
            let current = self.current.load();
            Arc::clone(match protocol {
                Protocol::Frames => &current.to_frames,
                Protocol::Grpc => &current.to_grpc,
            })
        };
        let nameless = || ServerName::try_from(NAMELESS).expect("a legal name");
        let name = ServerName::try_from(host.to_owned()).unwrap_or_else(|_| nameless());
        let stream = TlsConnector::from(config).connect(name, stream).await;
        let stream = stream.inspect_err(|error| {
            // Anything else is a peer that is going away.
            if error.kind() == io::ErrorKind::InvalidData {
                self.tell_refused(host, error);
            }
        })?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    fn tell_refused(&self, peer: &str, error: &io::Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(
                %peer,
                %error,
                "no handshake with a peer: its certificate and this peer's must be of the same authorities, and \
                 both must be started with --cert-dir"
            );
        }
    }

    /// The counters in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = self.current.render("raftserve_peer_tls_reloads_total");
        let name = "raftserve_peer_tls_handshakes_refused_total";
        let value = self.refused.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "# HELP {name} Handshakes between peers that failed.\n# TYPE {name} counter\n{name} {value}"
        );
        text
    }
}

/// The files of a directory.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn certificate(&self) -> PathBuf {
        self.directory.join("tls.crt")
    }

    fn authorities(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }
}

impl Source for Files {
    type Value = Current;
    type Error = AccessError;

    const NAME: &'static str = "the peer's certificates";

    fn files(&self) -> Vec<PathBuf> {
        let certificate = self.certificate();
        let key = certificate.with_extension("key");
        vec![certificate, key, self.authorities()]
    }

    fn read(&self) -> Result<Current, AccessError> {
        Current::read(self)
    }
}

impl Current {
    fn read(files: &Files) -> Result<Self, AccessError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = Arc::new(pair(&files.certificate(), &provider)?);
        let roots = Arc::new(authorities(&files.authorities())?);
        let verifier = Arc::new(AnyName {
            roots: Arc::clone(&roots),
            provider: Arc::clone(&provider),
        });
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let clients = clients
            .build()
            .map_err(|error| AccessError::Files(TlsError::Authorities(error)))?;
        check_own(&pair, &verifier, clients.as_ref()).map_err(|source| {
            AccessError::NotVouchedFor {
                certificate: files.certificate(),
                authorities: files.authorities(),
                source,
            }
        })?;
        let unusable = |source| AccessError::Unusable {
            directory: files.directory.clone(),
            source,
        };
        let resolver = Arc::new(SingleCertAndKey::from(pair));
        let to = |protocol: Protocol| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])?;
            let mut config = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
                .with_client_cert_resolver(Arc::clone(&resolver) as _);
            config.alpn_protocols = vec![protocol.name().to_vec()];
            // Each connection proves anew who is there.
            config.resumption = rustls::client::Resumption::disabled();
            Ok(Arc::new(config))
        };
        let peers = || {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])?;
            let mut config = builder
                .with_client_cert_verifier(clients)
                .with_cert_resolver(Arc::clone(&resolver) as _);
            config.alpn_protocols = vec![FRAMES.to_vec(), GRPC.to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        };
        let admin = || {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?;
            let builder = builder.with_no_client_auth();
            let mut config = builder.with_cert_resolver(Arc::clone(&resolver) as _);
            config.alpn_protocols = vec![GRPC.to_vec()];
            Ok(Arc::new(config))
        };
        Ok(Self {
            peers: peers().map_err(unusable)?,
            admin: admin().map_err(unusable)?,
            to_frames: to(Protocol::Frames).map_err(unusable)?,
            to_grpc: to(Protocol::Grpc).map_err(unusable)?,
        })
    }
}

/// Whether a peer's own certificate would be believed by the others, both where they dial and where it does: one for
/// servers alone passes the first, and would be noticed only when connections are made anew.
fn check_own(
    own: &CertifiedKey,
    servers: &AnyName,
    clients: &dyn ClientCertVerifier,
) -> Result<(), rustls::Error> {
    let (first, between) = own
        .cert
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    let now = UnixTime::now();
    servers.check(first, between, now)?;
    clients.verify_client_cert(first, between, now).map(drop)
}

/// Believes every certificate of the authorities, whatever name it is for.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl AnyName {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            between,
            now,
            algorithms,
        )
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, between, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests;
