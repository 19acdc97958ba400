//! Certificates and credentials: what peers and clients of a protected cluster are given, made here.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// An authority that signs certificates of peers.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than that of what it signs: OpenSSL would take that for signed by itself.
        let name = "authority of the tests";
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?);
        Ok(Self(issuer.context("cannot make an authority")?))
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Puts a new certificate for loopback into a directory, with the authorities that are to be believed, as
    /// Kubernetes changes a mounted Secret: all at once.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn issue(&self, directory: &Path, believed: &[&Self]) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["127.0.0.1", "localhost"].map(str::to_owned))?;
        let certificate = params.signed_by(&key, &self.0)?;
        let authorities: String = believed.iter().map(|it| it.pem()).collect();
        mount(
            directory,
            &[
                ("tls.crt", &certificate.pem()),
                ("tls.key", &key.serialize_pem()),
                ("ca.crt", &authorities),
            ],
        )
    }
}

/// Gives a directory these files, all at once: a link leads to a directory of their own, as in a mounted Secret.
///
/// # Errors
/// If that cannot be done.
pub fn mount(directory: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let data = directory.join("..data");
    let number = match fs::read_link(&data) {
        Ok(link) => {
            link.to_string_lossy()
                .trim_start_matches("..")
                .parse::<u64>()?
                + 1
        }
        Err(_) => 1,
    };
    let fresh = format!("..{number}");
    fs::create_dir(directory.join(&fresh))?;
    for (name, text) in files {
        fs::write(directory.join(&fresh).join(name), text)?;
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link)?;
        }
    }
    let next = directory.join("..next");
    std::os::unix::fs::symlink(&fresh, &next)?;
    fs::rename(&next, &data).context("cannot swap the files")
}

/// A line of the file `tokens`.
#[must_use]
pub fn token_line(name: &str, role: &str, token: &str) -> String {
    let digest = Sha256::digest(token);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}:{role}:{hex}\n")
}

/// With what a client comes to a protected cluster.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The authorities of the peers, PEM.
    pub authorities: PathBuf,
    /// A bearer token, if it has one.
    pub token: Option<String>,
    /// A name that the peer's certificate is for, if it is not for the peer's address.
    pub name: Option<String>,
}

/// Puts a token on each call.
#[derive(Clone, Debug)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// This token, or none.
    ///
    /// # Panics
    /// If a token cannot be sent.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        let value = |token| format!("Bearer {token}").parse().expect("a token in ASCII");
        Self(token.map(value))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A connection with TLS to `address`, made when it is first used.
///
/// # Panics
/// If the authorities cannot be read, or there are none, or the name cannot be one.
#[must_use]
pub fn channel(endpoint: &Endpoint, address: SocketAddr, credential: &Credential) -> Channel {
    let authorities = &credential.authorities;
    let name = match &credential.name {
        Some(name) => ServerName::try_from(name.clone()).expect("a name of a server"),
        None => ServerName::IpAddress(address.ip().into()),
    };
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(authorities).expect("a file of authorities");
    for certificate in found {
        let added = roots.add(certificate.expect("a certificate"));
        added.expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .expect("ring knows TLS")
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    endpoint.connect_with_connector_lazy(Connector {
        address,
        name,
        config: Arc::new(config),
    })
}

struct Connector {
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        /// Long beside a handshake on loopback.
        const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
        let (address, name) = (self.address, self.name.clone());
        let config = Arc::clone(&self.config);
        let connecting = async move {
            let stream = TcpStream::connect(address).await?;
            Ok(TokioIo::new(
                TlsConnector::from(config).connect(name, stream).await?,
            ))
        };
        async move {
            match tokio::time::timeout(CONNECT_TIME_MAX, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
        .boxed()
    }
}
