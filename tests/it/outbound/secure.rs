//! Servers outside that speak TLS, and the flag of the command line.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use capnp::capability::FromClientHook;
use capstead::http::{self, Body, Request, http_service};
use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::calls::{connect_to, run};
use crate::support::{Process, Served, refused_start, scratch, serve_command};

/// A server of that certificate, which speaks these versions and says `hello`.
async fn serve_tls(
    CertifiedKey { cert, signing_key }: &CertifiedKey<rcgen::KeyPair>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> u16 {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(versions).unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that doesn't trust the certificate leaves.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    port
}

#[test]
fn a_server_proves_by_its_certificate_that_it_is_the_origin() {
    run(async {
        let known = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let good = serve_tls(&known, &[&rustls::version::TLS13]).await;
        let old = serve_tls(&known, &[&rustls::version::TLS12]).await;
        let bad = serve_tls(&stranger, &[&rustls::version::TLS13]).await;
        let (folder, data) = scratch();
        let roots = folder.path().join("roots.pem");
        let text = STANDARD.encode(known.cert.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(&roots, pem).unwrap();
        let origins = [
            format!("https://localhost:{good}"),
            format!("wss://LOCALHOST:{old}"),
            format!("https://localhost:{bad}"),
            format!("https://127.0.0.1:{good}"),
        ];
        let flags = origins.iter().flat_map(|origin| ["--outbound", origin]);
        let mut command = serve_command(&data, &flags.collect::<Vec<_>>());
        command.args(["--json", "--metrics", "127.0.0.1:0"]).env("SSL_CERT_FILE", &roots);
        let start = tokio::task::spawn_blocking(|| Served::ready(Process::start(command)));
        let served = start.await.unwrap();
        let (_connection, all) = connect_to(&served, "Outbound").await;
        for (origin, expected) in
            [(&origins[0], true), (&origins[1], true), (&origins[2], false), (&origins[3], false)]
        {
            let mut by_name = all.by_name_request();
            by_name.get().set_key(origin);
            let service = by_name.send().pipeline.get_object().as_cap();
            let service = http_service::Client::new(service);
            let request = Request::get("/x").body(Body::default()).unwrap();
            match http::send(&service, request).await {
                Ok(response) => {
                    let body = response.into_body().whole(100).await.unwrap();
                    assert!(expected && body == b"hello", "{origin}");
                }
                Err(error) => {
                    assert!(!expected, "{origin}: {error}");
                    let said = error.extra.contains("nothing was sent to https://");
                    assert!(said && error.extra.contains("certificate"), "{error}");
                }
            }
        }
    });
}

#[test]
fn a_flag_that_is_no_origin_is_refused() {
    for wrong in ["example.com", "https://a/b?c", "ftp://a"] {
        let (_folder, data) = scratch();
        let (code, said) = refused_start(serve_command(&data, &["--outbound", wrong]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(wrong), "{said}");
        assert!(!data.exists(), "nothing was made");
    }
}
