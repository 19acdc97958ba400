//! Certificates and keys in files: read and checked. And those of a directory, each for the names
//! in it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError};
use rustls::sign::CertifiedKey;

/// The most files that are looked at: far above what anyone serves, so that a wrong directory is no hang.
const FILES_MAX: usize = 2_000;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The directory, or a file in it, cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no PEM, or holds nothing of what it should.
    #[error("cannot use {path}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A certificate does not fit its key, or is no certificate.
    #[error("cannot use the certificate {path}")]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// There is nothing in the directory.
    #[error("no NAME.crt with a NAME.key in {0}")]
    None(PathBuf),
    /// The authorities of the other side cannot be used.
    #[error("cannot use the clients' authorities")]
    Authorities(#[source] VerifierBuilderError),
    /// TLS cannot be set up so.
    #[error("cannot set up TLS")]
    Unusable(#[source] rustls::Error),
}

/// The certificates of a directory, by name.
#[derive(Debug)]
pub(super) struct Certificates {
    /// By name in lower case; one that begins with `*.` is for all names one label longer.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// For clients that name nothing, or something that no certificate is for.
    first: Arc<CertifiedKey>,
}

impl Certificates {
    /// Reads all pairs. Of two for one name, the first by file name has it.
    pub(super) fn read(directory: &Path, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let mut by_name = HashMap::new();
        let mut first = None;
        for path in pairs(directory)? {
            let pair = Arc::new(pair(&path, provider)?);
            for name in names(&pair, &path)? {
                by_name.entry(name).or_insert_with(|| Arc::clone(&pair));
            }
            first.get_or_insert(pair);
        }
        let first = first.ok_or_else(|| TlsError::None(directory.to_owned()))?;
        Ok(Self { by_name, first })
    }

    fn of(&self, name: &str) -> &Arc<CertifiedKey> {
        let name = name.to_ascii_lowercase();
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        };
        self.by_name
            .get(&name)
            .or_else(wildcard)
            .unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(match hello.server_name() {
            Some(name) => self.of(name),
            None => &self.first,
        }))
    }
}

/// The certificates of a PEM file that vouch for others.
///
/// # Errors
/// [`TlsError`] if there is none in it, or one is no certificate.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Certificate {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// The certificates that have a key beside them, in the order of their paths.
fn pairs(directory: &Path) -> Result<Vec<PathBuf>, TlsError> {
    let mut found = files(directory).map_err(|source| TlsError::Read {
        path: directory.to_owned(),
        source,
    })?;
    found.retain(|path| {
        path.extension().is_some_and(|end| end == "crt") && path.with_extension("key").exists()
    });
    Ok(found)
}

/// All files of a directory and of the directories in it, ordered. What begins with a dot is left out: so an
/// update of a mounted Kubernetes secret is seen only once it is whole.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut list = |directory: &Path, directories: Option<&mut Vec<PathBuf>>| -> io::Result<()> {
        let mut directories = directories;
        for entry in std::fs::read_dir(directory)?.take(FILES_MAX) {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            match (&mut directories, path.is_dir()) {
                (Some(directories), true) => directories.push(path),
                (None, true) => {}
                (_, false) => found.push(path),
            }
        }
        Ok(())
    };
    let mut directories = Vec::new();
    list(directory, Some(&mut directories))?;
    for directory in directories {
        list(&directory, None)?;
    }
    found.sort();
    Ok(found)
}

/// The certificate of a PEM file with those that vouch for it, and its key, which is beside it in a file that ends in
/// `.key`.
///
/// # Errors
/// [`TlsError`] if one of both cannot be read, or does not fit the other.
pub fn pair(path: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(path)?;
    let key_path = path.with_extension("key");
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|source| TlsError::Pem {
        path: key_path,
        source,
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Certificate {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(refused)?
        .collect();
    match all.map_err(refused)? {
        none if none.is_empty() => Err(refused(pem::Error::NoItemsFound)),
        all => Ok(all),
    }
}

/// The names that a certificate is for.
fn names(pair: &CertifiedKey, path: &Path) -> Result<Vec<String>, TlsError> {
    let refused = |source| TlsError::Certificate {
        path: path.to_owned(),
        source,
    };
    let first = pair.end_entity_cert().map_err(refused)?;
    let certificate = webpki::EndEntityCert::try_from(first).map_err(|error| {
        refused(rustls::Error::InvalidCertificate(
            rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))),
        ))
    })?;
    let names = certificate.valid_dns_names();
    Ok(names.map(str::to_ascii_lowercase).collect())
}
