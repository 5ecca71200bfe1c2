//! The operator's certificate, by which HTTP is served over TLS.
//!
//! Browsers know a server by its name and the authorities that they trust, so the certificate comes
//! from outside, in two files of PEM. Both are read again when the operator says so: connections
//! that are open keep theirs, and a pair that can't be used leaves the last one in force.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// More than any chain of certificates has: a file that is longer is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The protocols of HTTP, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files of a certificate and of its private key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    /// The server's certificate first, then those that lead to its authority.
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// A certificate that is in force.
pub(crate) struct Certificate {
    files: CertificateFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// A sentence, when they hold no certificate with its key, or others may read the key.
    pub(crate) fn open(files: CertificateFiles) -> Result<Arc<Self>, String> {
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Arc::new(Self { files, current }))
    }

    /// Reads the files again, for all connections from now on.
    ///
    /// # Errors
    /// As [`Certificate::open`]: then nothing has changed.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let fresh = Arc::new(read(&self.files)?);
        // A thread that panicked with it held has left a whole one.
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// # Errors
    /// A sentence, when the library has no such protocols: a bug.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, String> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]);
        let config = config.map_err(|error| format!("no TLS: {error}"))?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

/// The key is a secret.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey, String> {
    let CertificateFiles { chain, key } = files;
    let no_chain = |why: &dyn fmt::Display| {
        format!("{}: {why}: give the file of a certificate in PEM", chain.display())
    };
    let no_key = |why: &dyn fmt::Display| {
        format!("{}: {why}: give the file of the certificate's private key in PEM", key.display())
    };
    let text = content(chain).map_err(|error| no_chain(&error))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| no_chain(&error))?;
    if certificates.is_empty() {
        return Err(no_chain(&"there is no certificate in it"));
    }
    check_secret(key)?;
    let text = content(key).map_err(|error| no_key(&error))?;
    let private = PrivateKeyDer::from_pem_slice(&text);
    let private = private.map_err(|_| no_key(&"there is no private key in it"))?;
    CertifiedKey::from_der(certificates, private, &ring::default_provider()).map_err(|error| {
        format!("{} and {} don't belong together: {error}", chain.display(), key.display())
    })
}

/// Refuses a key that every user of the machine can read. A group may: that is how programs share
/// the certificates of a machine.
fn check_secret(path: &Path) -> Result<(), String> {
    const OF_OTHERS: u32 = 0o007;
    let name = path.display();
    let mode = std::fs::metadata(path).map_err(|error| format!("{name}: {error}"))?.mode();
    if mode & OF_OTHERS == 0 {
        return Ok(());
    }
    let mode = mode & 0o7777;
    Err(format!("{name} has the mode {mode:03o}: all users can read it; run `chmod o= {name}`"))
}

fn content(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::new());
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::*;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn pair() -> (String, String) {
        let Made { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (pem("CERTIFICATE", cert.der()), pem("PRIVATE KEY", signing_key.serialized_der()))
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    fn refused(files: &CertificateFiles) -> String {
        Certificate::open(files.clone()).expect_err("it can't be used")
    }

    #[test]
    fn a_pair_that_cant_be_used_is_refused_with_the_file_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let ((chain, key), (_, other)) = (pair(), pair());
        let chain = write(folder.path(), "chain.pem", &chain, 0o644);
        let key = write(folder.path(), "key.pem", &key, 0o640);
        let other = write(folder.path(), "other.pem", &other, 0o600);
        let empty = write(folder.path(), "empty.pem", "", 0o600);
        let open = write(folder.path(), "open.pem", "", 0o644);
        let files =
            |chain: &Path, key: &Path| CertificateFiles { chain: chain.into(), key: key.into() };
        assert!(Certificate::open(files(&chain, &key)).is_ok());
        let missing = folder.path().join("missing.pem");
        for (files, says) in [
            (files(&empty, &key), "empty.pem: there is no certificate in it"),
            (files(&key, &key), "key.pem: there is no certificate in it"),
            (files(&missing, &key), "missing.pem: No such file"),
            (files(&chain, &missing), "missing.pem: No such file"),
            (files(&chain, &empty), "empty.pem: there is no private key in it"),
            (files(&chain, &chain), "chain.pem has the mode 644"),
            (files(&chain, &open), "chmod o="),
            (files(&chain, &other), "don't belong together"),
        ] {
            assert!(refused(&files).contains(says), "{says}: {}", refused(&files));
        }
    }

    #[test]
    fn a_certificate_is_replaced_by_a_good_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = pair();
        let files = CertificateFiles {
            chain: write(folder.path(), "chain.pem", &chain, 0o644),
            key: write(folder.path(), "key.pem", &key, 0o600),
        };
        let certificate = Certificate::open(files).unwrap();
        let shown = || certificate.current.read().unwrap().cert[0].clone();
        let first = shown();
        let (chain, key) = pair();
        write(folder.path(), "chain.pem", &chain, 0o644);
        assert!(certificate.reload().is_err(), "the new chain has another key");
        assert_eq!(shown(), first);
        write(folder.path(), "key.pem", &key, 0o600);
        certificate.reload().unwrap();
        assert_ne!(shown(), first);
    }
}
