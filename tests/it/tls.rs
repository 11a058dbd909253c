//! TLS is verified, at the broker and at the gate: the tests put a TLS proxy in front of the real ones.

use super::harness::{Lab, choice, poll_until};
use super::traces::Collector;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate authority, as PEM, and the configuration of a server at localhost.
pub fn certificates() -> (String, ServerConfig) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &authority).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    (authority.pem(), config)
}

/// Terminates TLS and passes everything on in plain text. Returns its port.
pub fn in_front_of(lab: &Lab, backend: SocketAddr, config: ServerConfig) -> u16 {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    lab.bench.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let (Ok(mut front), Ok(mut back)) =
                        (acceptor.accept(stream).await, TcpStream::connect(backend).await)
                    else {
                        return;
                    };
                    let _ = copy_bidirectional(&mut front, &mut back).await;
                });
            }
        });
        port
    })
}

pub fn address(url: &str) -> SocketAddr {
    let after_scheme = url.split("://").nth(1).unwrap();
    let host = after_scheme.rsplit('@').next().unwrap().split('/').next().unwrap();
    host.parse().unwrap()
}

/// Puts TLS in front of a lab's gate, and its address into the document.
fn put_in_front_of_the_gate(lab: &Lab, config: ServerConfig) {
    let file = format!("integrations/{}.json", lab.integration());
    let text = std::fs::read_to_string(lab.folder.0.join(&file)).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    let port = in_front_of(lab, address(document["properties"]["url"].as_str().unwrap()), config);
    document["properties"]["url"] = format!("localhost:{port}").into();
    lab.folder.write(&file, document.to_string());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_whose_certificate_nobody_vouches_for_gets_nothing() {
    let lab = Lab::new();
    lab.declare();
    let (authority, config) = certificates();
    let authority = lab.folder.write("authority.pem", authority);
    put_in_front_of_the_gate(&lab, config);
    let event = choice("jane@example.com", true).to_string();
    let arguments = ["send", "--yes", "--integration", lab.integration(), "-"];
    let unknown = lab.run(&arguments, event.as_bytes());
    assert_eq!(unknown.code, 1);
    assert!(unknown.out.contains("certificate") && unknown.out.contains("unavailable"), "{}", unknown.out);
    assert_eq!(lab.gate(0).requests()["total"], 0, "not a byte of it left");
    let trusted = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let known = lab.run_with(&trusted, &arguments, event.as_bytes());
    assert_eq!(known.code, 0, "{}{}", known.out, known.err);
    assert_eq!(lab.gate(0).outcome("accepted"), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_collector_whose_certificate_nobody_vouches_for_gets_nothing() {
    let mut lab = Lab::new();
    let (authority, config) = certificates();
    let authority = lab.folder.write("authority.pem", authority);
    let collector = Collector::new(&lab);
    let port = in_front_of(&lab, collector.address, config);
    lab.set("CONSENT_GATE_TRACES__ENDPOINT", &format!("https://localhost:{port}/v1/traces"));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    let line = lab.worker().line_with("did not accept spans");
    assert!(line.contains("certificate"), "{line}");
    assert!(collector.spans().is_empty());
    lab.stop();
    lab.set("SSL_CERT_FILE", authority.to_str().unwrap());
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    poll_until("both spans", || (collector.spans().len() == 2).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_is_trusted_only_by_its_authority_and_its_name() {
    let mut lab = Lab::new();
    lab.declare();
    let (authority, config) = certificates();
    let authority = lab.folder.write("authority.pem", authority);
    let port = in_front_of(&lab, address(&lab.environment["CONSENT_GATE_BROKER__URL"]), config);
    let check = |lab: &Lab| lab.run(&["check", "--connect"], b"");
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqps://guest:guest@localhost:{port}/%2f"));
    assert!(check(&lab).out.contains("failed   broker"), "nobody vouches for it");
    lab.set("CONSENT_GATE_BROKER__CA_FILE", authority.to_str().unwrap());
    let trusted = check(&lab);
    assert!(trusted.out.contains("reached and logged in"), "{}", trusted.out);
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqps://guest:guest@127.0.0.1:{port}/%2f"));
    assert!(check(&lab).out.contains("failed   broker"), "its certificate has another name");
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqps://guest:guest@localhost:{port}/%2f"));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn authorities_that_changed_on_disk_vouch_for_the_next_connection() {
    let mut lab = Lab::new();
    let ((stranger, _), (authority, config)) = (certificates(), certificates());
    let authorities = lab.folder.write("authorities.pem", stranger);
    put_in_front_of_the_gate(&lab, config);
    lab.set("SSL_CERT_FILE", authorities.to_str().unwrap());
    lab.set_delays(&[1_000; 9]);
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.worker().line_with("unavailable");
    lab.folder.write("authorities.pem", authority);
    lab.worker().signal("HUP");
    lab.worker().line_with("CA certificates changed");
    poll_until("its delivery", || (lab.gate(0).outcome("accepted") == 1).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_brokers_address_and_authority_that_changed_on_disk_are_used_by_the_next_connection() {
    let mut lab = Lab::new();
    let url = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let broker = address(&url);
    let (old, config) = certificates();
    let front = in_front_of(&lab, broker, config);
    let secured =
        |port: u16| url.replace("amqp://", "amqps://").replace(&broker.to_string(), &format!("localhost:{port}"));
    let authority = lab.folder.write("authority.pem", old);
    let file = lab.folder.write("broker-url", secured(front));
    lab.environment.remove("CONSENT_GATE_BROKER__URL");
    lab.set("CONSENT_GATE_BROKER__URL_FILE", file.to_str().unwrap());
    lab.set("CONSENT_GATE_BROKER__CA_FILE", authority.to_str().unwrap());
    lab.start();
    let (new, config) = certificates();
    let front = in_front_of(&lab, broker, config);
    lab.folder.write("authority.pem", new);
    lab.folder.write("broker-url", secured(front));
    lab.worker().signal("HUP");
    lab.worker().line_with("\"changed\":1");
    poll_until("to be connected there", || (lab.worker().connections_to(front) >= 2).then_some(()));
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    assert!(!lab.worker().text().contains("cannot use the broker"));
}
