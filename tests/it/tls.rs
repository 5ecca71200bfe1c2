//! TLS: the server proves that it belongs to the cluster of a reference before anything is sent to
//! it.
//!
//! The impostors here record every byte that they receive, and all that they can decrypt.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream as BlockingStream;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::support::calls::{by_name, increment, run};
use crate::support::{DEADLINE, Served, capstead, raw, refused_start, scratch, serve, serve_with};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capstead_client::sturdyref::TextReference;
use capstead_client::{ALPN, Connection, namespace};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

fn start(args: &[&str]) -> (Served, TempDir) {
    let (folder, data) = scratch();
    (serve_with(&data, &[&["--tls"], args].concat()), folder)
}

/// The reference of all counters, with another listener's address.
fn at(served: &Served, address: &str) -> String {
    let (_, fragment) = served.counters().split_once("/#").unwrap();
    format!("capstead+tls://{address}/#{fragment}")
}

async fn restore_error(text: &str) -> capnp::Error {
    capstead_client::restore::<namespace::Client>(text).await.err().expect("it is refused")
}

#[test]
fn references_are_restored_and_called_by_tls() {
    let (served, _folder) = start(&["--hosts", "2"]);
    run(async {
        for (class, text) in &served.announced.namespaces {
            assert!(text.starts_with("capstead+tls://127.0.0.1:"), "{class}");
            capstead_client::restore::<namespace::Client>(text).await.unwrap();
        }
        let counters = capstead_client::restore(served.counters()).await.unwrap();
        for name in 0..20 {
            assert_eq!(increment(&by_name(&counters, &name.to_string())).await.unwrap(), 1);
        }
        // The scheme is kept in the references that a holder derives.
        let parsed = TextReference::parse(served.counters()).unwrap();
        let sealed = parsed.expose_text_of(&parsed.reference().seal()).unwrap();
        assert!(sealed.starts_with("capstead+tls://127.0.0.1:"));
        let counters = capstead_client::restore(&sealed).await.unwrap();
        assert_eq!(increment(&by_name(&counters, "0")).await.unwrap(), 2);
    });
}

/// A client with the wrong kind of reference for a listener learns that, and how to correct it.
#[test]
fn a_listener_of_the_other_kind_is_told_apart() {
    let (by_tls, _folder) = start(&[]);
    let plain_text = by_tls.counters().replace("capstead+tls://", "capstead://");
    let error = run(restore_error(&plain_text));
    assert!(error.extra.contains("speaks TLS alone"), "{error}");
    let (_folder, data) = scratch();
    let plain = serve(&data);
    let error = run(restore_error(&at(&plain, &plain.announced.capnp)));
    assert!(error.extra.contains("doesn't speak TLS"), "{error}");
}

/// A text is checked before any server is asked, as far as the text alone allows.
#[test]
fn texts_that_are_cut_off_changed_or_foreign_are_told_apart() {
    let (served, _folder) = start(&[]);
    let parsed = TextReference::parse(served.counters()).unwrap();
    let sealed = parsed.expose_text_of(&parsed.reference().seal()).unwrap();
    let restored = served.metric("restores_total");
    let start = sealed.find("/#").unwrap() + 2;
    run(async {
        for text in [served.counters(), &sealed] {
            for length in start..text.len() {
                let error = restore_error(&text[..length]).await;
                assert!(error.extra.contains("it is cut off"), "at {length}: {error}");
            }
        }
        // This includes bytes outside any layout: the seal covers all of them.
        for at in start..sealed.len() - 1 {
            let other = if sealed.as_bytes()[at] == b'A' { "B" } else { "A" };
            let error = restore_error(&[&sealed[..at], other, &sealed[at + 1..]].concat()).await;
            assert!(error.extra.starts_with("the reference was refused: "), "at {at}: {error}");
        }
        let error = restore_error("https://capstead.example/#AQ").await;
        assert!(error.extra.contains("not that of a reference"), "{error}");
    });
    assert_eq!(served.metric("restores_total"), restored, "nobody was asked");
}

#[test]
fn a_server_of_another_cluster_is_told_nothing() {
    let ((ours, _ours), (other, _other)) = (start(&[]), start(&[]));
    let restored = other.metric("restores_total");
    let text = at(&ours, &other.announced.capnp);
    let error = run(restore_error(&text));
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    assert!(error.extra.contains("can't prove that it belongs to the cluster"), "{error}");
    assert_eq!(other.metric("restores_total"), restored);
    assert_eq!(other.metric("restores_refused_total"), 0);
}

/// The bytes that a stream received, as far as they were decrypted.
type Received = Rc<RefCell<Vec<u8>>>;

/// A stream that records the bytes read from it.
struct Recorded {
    stream: TcpStream,
    received: Received,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.received.borrow_mut().extend(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Reads for a short time and then leaves: a deceived client would wait for an answer.
async fn listen_for_a_while(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut bytes)).await;
    bytes
}

/// Accepts one connection, with or without TLS, and returns the bytes that it received.
async fn impostor(tls: Option<ServerConfig>) -> (String, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let received = Received::default();
        let mut stream = Recorded { stream, received: received.clone() };
        let Some(tls) = tls else {
            // The first message of a listener without TLS.
            stream.write_all(&raw::serialized(&raw::finish(0))).await.unwrap();
            listen_for_a_while(&mut stream).await;
            return received.take();
        };
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(tls)).accept(stream).await {
            let decrypted = listen_for_a_while(&mut stream).await;
            received.borrow_mut().extend(decrypted);
        }
        received.take()
    });
    (address, serving)
}

/// Shows a certificate, and signs with a key that may not belong to it.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn deceiving(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = ring::sign::any_supported_type(&key).unwrap();
    let shown = Shown(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// The length of the parts of a reference that the test looks for, raw and in base64: too long for
/// a chance match.
const PART: usize = 8;

fn assert_nothing_of(text: &str, received: &[u8], what: &str) {
    let fragment = text.split_once("/#").unwrap().1;
    let secret = URL_SAFE_NO_PAD.decode(fragment).unwrap();
    let seen: std::collections::HashSet<_> = received.windows(PART).collect();
    for part in secret.windows(PART).chain(fragment.as_bytes().windows(PART)) {
        assert!(!seen.contains(part), "{what} was sent a part of the reference");
    }
}

// A certificate is no secret: the third impostor shows the genuine one, and lacks the key.
#[test]
fn an_impostor_is_sent_nothing_of_a_reference() {
    let (served, folder) = start(&[]);
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let names = ["127.0.0.1", "localhost", "capstead"].map(str::to_owned);
    let own = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let genuine = genuine_certificate(&folder.path().join("capstead.data"));
    run(async {
        for (what, tls) in [
            ("an impostor with a certificate", Some(deceiving(own.der().clone(), &key))),
            ("an impostor with the genuine certificate", Some(deceiving(genuine, &key))),
            ("an impostor without TLS", None),
        ] {
            let (address, serving) = impostor(tls).await;
            let text = at(&served, &address);
            let error = restore_error(&text).await;
            let received = serving.await.unwrap();
            assert!(received.len() > 100, "{what} was greeted");
            assert_nothing_of(&text, &received, what);
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{what}: {error}");
        }
        // The recording works: a deceived client does send the secret.
        let (address, serving) = impostor(None).await;
        let connection = Connection::dial(&address).await.unwrap();
        let _ = connection.locate(served.counters()).await;
        let received = serving.await.unwrap();
        let fragment = served.counters().split_once("/#").unwrap().1.as_bytes();
        assert!(received.windows(fragment.len()).any(|part| part == fragment));
    });
}

/// The certificate that the server shows to every client.
fn genuine_certificate(data: &Path) -> CertificateDer<'static> {
    let hex = std::fs::read_to_string(data.join("keys/cluster")).unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    let seed = (0..32).map(byte);
    let start = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let pkcs8: Vec<u8> = start.iter().copied().chain(seed).collect();
    let key = KeyPair::try_from(pkcs8).unwrap();
    CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().der().clone()
}

/// A client's first message for TLS 1.2, without the extension that offers newer versions.
fn hello_of_tls_1_2() -> Vec<u8> {
    let suites = [0xc0, 0x2b, 0xc0, 0x2c, 0xc0, 0x2f, 0xc0, 0x30, 0xcc, 0xa8, 0xcc, 0xa9];
    let groups = [0, 10, 0, 4, 0, 2, 0, 29];
    let signatures = [0, 13, 0, 6, 0, 4, 8, 7, 4, 3];
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0, 0, (groups.len() + signatures.len()) as u8]);
    body.extend(groups);
    body.extend(signatures);
    let mut message = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    message.extend(body);
    message
}

fn blocking(served: &Served) -> BlockingStream {
    let stream = BlockingStream::connect(&served.announced.capnp).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

// 21 is an alert, 2 is fatal, and 70 means that the version isn't supported.
#[test]
fn tls_1_2_is_refused() {
    let (served, _folder) = start(&[]);
    let mut stream = blocking(&served);
    stream.write_all(&hello_of_tls_1_2()).unwrap();
    let mut alert = Vec::new();
    stream.read_to_end(&mut alert).unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70]);
}

#[test]
fn with_tls_nothing_is_served_in_the_clear_and_without_it_nothing_by_tls() {
    let (served, _folder) = start(&[]);
    let restored = served.metric("restores_total");
    let mut stream = blocking(&served);
    raw::send(&mut stream, &[raw::bootstrap(), raw::restore(served.counters())]);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "{answer:?}");
    assert_eq!(served.metric("restores_total"), restored);

    let (_folder, data) = scratch();
    let plain = serve(&data);
    assert!(plain.counters().starts_with("capstead://127.0.0.1:"));
    let error = run(restore_error(&at(&plain, &plain.announced.capnp)));
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
}

// The last address isn't on this machine: it is refused before anything is made or bound.
#[test]
fn an_address_that_others_can_reach_needs_tls() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4000"] {
        let (_folder, data) = scratch();
        let mut command = capstead(["serve", "--http", "127.0.0.1:0", "--listen", address]);
        command.arg("--data").arg(&data);
        let (code, stderr) = refused_start(command);
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(address) && stderr.contains("give --tls"), "{stderr}");
        assert!(!data.exists(), "nothing is made");
    }
}
