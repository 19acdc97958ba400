//! TLS towards clients: certificates chosen by the name that a client asks for, read from a directory and read
//! again when its files change.

pub mod certificates;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderValue;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use sha2::{Digest, Sha256};

use crate::reload::{Reloaded, Source};
use certificates::Certificates;

pub use certificates::TlsError;

/// A port with TLS for the services that share the clear one.
#[derive(Clone, Debug)]
pub struct TlsListen {
    /// The port.
    pub listen: SocketAddr,
    /// Holds pairs of PEM files: `NAME.crt` with `NAME.key`, as many as there are, and those of directories in
    /// it. A client gets the certificate for the name that it asks for, else the first by file name.
    pub directory: PathBuf,
    /// PEM file of the authorities whose clients' certificates are believed. None is asked for without it.
    pub client_authorities: Option<PathBuf>,
    /// Whether a client without such a certificate is turned away.
    pub require_client_certificate: bool,
}

impl TlsListen {
    /// Reads the files, for whoever is to know that they can be used before anything else is begun.
    ///
    /// # Errors
    /// They hold no usable certificate, or one that does not fit its key.
    pub fn check(&self) -> Result<(), TlsError> {
        Tls::start(self.clone()).map(drop)
    }
}

/// What the handshakes of all workers use.
pub(crate) struct Tls(Reloaded<Files>);

/// Where that is read from.
struct Files {
    settings: TlsListen,
    provider: Arc<CryptoProvider>,
    /// Of this process, and kept when certificates change, so that clients may resume; but where their certificates are
    /// asked for, see [`config`].
    tickets: Arc<dyn ProducesTickets>,
}

impl Source for Files {
    type Value = Arc<ServerConfig>;
    type Error = TlsError;

    const NAME: &'static str = "the certificates for clients";

    fn files(&self) -> Vec<PathBuf> {
        // A directory that cannot be listed is told by whoever reads it.
        let mut files = certificates::files(&self.settings.directory).unwrap_or_default();
        files.extend(self.settings.client_authorities.clone());
        files
    }

    fn read(&self) -> Result<Self::Value, TlsError> {
        config(&self.settings, &self.provider, &self.tickets).map(Arc::new)
    }
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// They hold no usable certificate, or one that does not fit its key.
    pub(crate) fn start(settings: TlsListen) -> Result<Self, TlsError> {
        let files = Files {
            settings,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            tickets: rustls::crypto::ring::Ticketer::new().map_err(TlsError::Unusable)?,
        };
        Reloaded::read(files).map(Self)
    }

    /// What a handshake that begins now uses.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.load())
    }

    /// Reads the files again if any of them changed.
    pub(crate) fn refresh(&self) {
        self.0.refresh();
    }

    /// The counters in Prometheus's text format.
    pub(crate) fn render(&self) -> String {
        self.0.render("raftserve_proxy_tls_reloads_total")
    }
}

fn config(
    settings: &TlsListen,
    provider: &Arc<CryptoProvider>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, TlsError> {
    let certificates = Certificates::read(&settings.directory, provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?;
    let builder = match &settings.client_authorities {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(certificates::authorities(file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            let verifier = match settings.require_client_certificate {
                true => verifier,
                false => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(TlsError::Authorities)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // A resumed session believes the certificate that its ticket holds. Tickets from before a change of the authorities
    // would let in whom they do not vouch for any more.
    let tickets = match &settings.client_authorities {
        None => Arc::clone(tickets),
        Some(_) => rustls::crypto::ring::Ticketer::new().map_err(TlsError::Unusable)?,
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = tickets;
    Ok(config)
}

/// What replicas are told of a verified client, in Envoy's form: the certificate's hash, and its names.
pub(crate) fn client_certificate(chain: &[CertificateDer<'_>]) -> Option<HeaderValue> {
    let first = chain.first()?;
    let mut text = "Hash=".to_owned();
    for byte in Sha256::digest(first) {
        let _ = write!(text, "{byte:02x}");
    }
    if let Ok(certificate) = webpki::EndEntityCert::try_from(first) {
        let plain = |name: &&str| !name.contains(['"', ';', ',', '=']);
        for name in certificate.valid_uri_names().filter(plain) {
            let _ = write!(text, ";URI={name}");
        }
        for name in certificate.valid_dns_names().filter(plain) {
            let _ = write!(text, ";DNS={name}");
        }
    }
    HeaderValue::try_from(text).ok()
}
