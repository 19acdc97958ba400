//! TLS to replicas: which of their certificates are believed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use raftserve_model::spec::{UpstreamTls, UpstreamTrust};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Wire;

/// What ALPN calls HTTP/2 (RFC 9113, 3.1) and HTTP/1.1.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

const NO_HTTP2: &str = "the replica does not speak HTTP/2";

/// TLS as one service's replicas are spoken to.
#[derive(Debug)]
pub(super) struct Trust {
    server_name: Option<ServerName<'static>>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Trust {
    /// # Errors
    /// The name is none, or there is no certificate among the authorities.
    pub(super) fn new(settings: &UpstreamTls) -> io::Result<Self> {
        let server_name = settings
            .server_name
            .clone()
            .map(ServerName::try_from)
            .transpose()
            .map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let mut config = match &settings.trust {
            UpstreamTrust::Authorities(text) => builder
                .with_root_certificates(roots(text)?)
                .with_no_client_auth(),
            UpstreamTrust::Anything => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anything(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP1.to_vec()];
        let mut http2 = config.clone();
        http2.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Self {
            server_name,
            http1: Arc::new(config),
            http2: Arc::new(http2),
        })
    }

    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        wire: Wire,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = match wire {
            Wire::Http1 => &self.http1,
            Wire::Http2 => &self.http2,
        };
        let name = self.server_name.clone();
        let name = name.unwrap_or_else(|| ServerName::from(address.ip()));
        let connector = TlsConnector::from(Arc::clone(config));
        let no_http2 = || io::Error::new(io::ErrorKind::Unsupported, NO_HTTP2);
        let connected = connector.connect(name, stream).await;
        let stream = connected.map_err(|error| match wire == Wire::Http2 && is_alpn(&error) {
            true => no_http2(),
            false => error,
        })?;
        if wire == Wire::Http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(no_http2());
        }
        Ok(stream)
    }
}

/// Whether the replica ended the handshake since it speaks no protocol that it was offered (RFC 7301, 3.2).
fn is_alpn(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        error,
        Some(rustls::Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    )
}

fn roots(text: &str) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    match roots.is_empty() {
        true => Err(io::Error::other("there is no certificate to believe")),
        false => Ok(roots),
    }
}

/// Believes any certificate whose key the replica has.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
