//! Connections with TLS to a peer's admin port.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;

use super::failure::Failure;

/// Where systems keep the authorities that they believe, in the order in which they are looked for.
const SYSTEM_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// How long a connection and its handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes connections whose other side has a certificate of known authorities, for the name that is expected.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    /// The name that certificates are for, if not the host's.
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// Believes the authorities in `authorities`, PEM; without, those that the system does.
    ///
    /// # Errors
    /// If there are none, or `name` is none.
    pub(super) fn new(authorities: Option<&str>, name: Option<&str>) -> Result<Self, Failure> {
        let name = match name {
            Some(text) => Some(ServerName::try_from(text.to_owned()).map_err(|_| {
                Failure::usage(format!(
                    "--tls-server-name: {text:?} is no DNS name and no address"
                ))
            })?),
            None => None,
        };
        let roots = match authorities {
            Some(pem) => roots(pem)?,
            None => {
                let found = SYSTEM_FILES
                    .iter()
                    .find_map(|path| std::fs::read_to_string(path).ok());
                let found = found.ok_or_else(|| {
                    Failure::usage("this system names no authorities for certificates")
                        .remedy("name those of the peers with --ca-file")
                })?;
                roots(&found)?
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder =
            builder.map_err(|error| Failure::failed(format!("cannot set up TLS: {error}")))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// What connects to `authority`, which is `host:port`.
    ///
    /// # Errors
    /// If `host` is no name.
    pub(super) fn connector(&self, authority: &http::uri::Authority) -> Result<Connector, Failure> {
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let own = || {
            ServerName::try_from(host.to_owned()).map_err(|_| {
                Failure::usage(format!("--server: {host:?} is no DNS name and no address"))
            })
        };
        Ok(Connector {
            name: self.name.clone().map_or_else(own, Ok)?,
            address: authority.to_string(),
            config: Arc::clone(&self.config),
        })
    }
}

fn roots(pem: &str) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let (added, _) = roots.add_parsable_certificates(read.unwrap_or_default());
    match added {
        0 => Err(
            Failure::usage("there is no certificate among the authorities").remedy(
                "--ca-file names a PEM file, such as ca.crt of the Secret that the chart made",
            ),
        ),
        _ => Ok(roots),
    }
}

/// Reads a file of authorities, and makes sure that it is one.
///
/// # Errors
/// If it is not.
pub(super) fn read_authorities(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "--ca-file: cannot read {}: {error}",
            path.display()
        ))
    })?;
    roots(&text)?;
    Ok(text)
}

/// Connects to one peer.
#[derive(Clone)]
pub(super) struct Connector {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connecting = async {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(self.config)
                .connect(self.name, stream)
                .await?;
            Ok(TokioIo::new(stream))
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.clone().connect().boxed()
    }
}
