//! TLS towards clients: certificates chosen by the name that a client asks for, read from a directory and read
//! again when its files change.
//!
//! What holds: a handshake uses a set of files that was read and checked whole. A set that cannot be used
//! changes nothing; it is told and counted, and the one before stays.

pub mod certificates;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use http::HeaderValue;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use sha2::{Digest, Sha256};
use std::sync::{Mutex, PoisonError};

pub use certificates::TlsError;
use certificates::{Certificates, Fingerprint};

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
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_directory(&self.directory, self.client_authorities.as_ref())
    }
}

/// What the handshakes of all workers use.
pub(crate) struct Tls {
    settings: TlsListen,
    provider: Arc<CryptoProvider>,
    /// Of this process, and kept when certificates change, so that clients may resume.
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<ServerConfig>,
    /// What was last read, good or bad.
    seen: Mutex<Fingerprint>,
    reloads: AtomicU64,
    failures: AtomicU64,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// They hold no usable certificate, or one that does not fit its key.
    pub(crate) fn start(settings: TlsListen) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tickets = rustls::crypto::ring::Ticketer::new().map_err(TlsError::Unusable)?;
        // Before the files: a change in between is then seen later.
        let seen = settings.fingerprint();
        let config = config(&settings, &provider, &tickets)?;
        Ok(Self {
            settings,
            provider,
            tickets,
            current: ArcSwap::from_pointee(config),
            seen: Mutex::new(seen),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// What a handshake that begins now uses.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again if any of them changed.
    pub(crate) fn refresh(&self) {
        let now = self.settings.fingerprint();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return;
        }
        *seen = now;
        match config(&self.settings, &self.provider, &self.tickets) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                self.reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!(directory = %self.settings.directory.display(), "certificates were read again");
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    error,
                    "the new certificates are not used, the ones before stay"
                );
            }
        }
    }

    /// The counters in Prometheus's text format.
    pub(crate) fn render(&self) -> String {
        let name = "raftserve_proxy_tls_reloads_total";
        let mut text =
            format!("# HELP {name} Changes of the certificates' files.\n# TYPE {name} counter\n");
        for (outcome, counter) in [("used", &self.reloads), ("refused", &self.failures)] {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{outcome=\"{outcome}\"}} {value}");
        }
        text
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
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(tickets);
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
