//! Why connecting to the broker failed, and what to do about it (pure).

use lapin::ErrorKind;
use rustls::{CertificateError, Error as Tls};
use std::io;

/// Explains a failed connection to people: the most likely cause and its remedy, then the original message.
pub(super) fn explained(error: &lapin::Error, is_plain: bool) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(reply) => {
            let said = reply.get_message();
            match reply.get_id() {
                403 => format!("the login was refused; check user and password in broker.url ({said})"),
                530 => format!("access was refused; check the virtual host in broker.url ({said})"),
                _ => error.to_string(),
            }
        }
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => no_amqp(is_plain),
        ErrorKind::IOError(error) => of_the_way(error, is_plain),
        _ => error.to_string(),
    }
}

const PORTS: &str = "(RabbitMQ's ports are 5672 and, for TLS, 5671; 15672 is its web page)";

/// What to check if the broker did not answer at all.
pub(super) const SILENT: &str = "check host and port in broker.url, and whether a firewall drops the packets";

fn no_amqp(is_plain: bool) -> String {
    let tls = if is_plain { "; a TLS port needs amqps://" } else { "" };
    format!("the server there does not speak AMQP 0-9-1; check host and port in broker.url {PORTS}{tls}")
}

fn of_the_way(error: &io::Error, is_plain: bool) -> String {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        return format!("{} ({error})", of_tls(tls));
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens there: is the broker running, and is broker.url right? ({error})")
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
            let doubt = if is_plain {
                "this may be a TLS port, which needs amqps://; otherwise check host and port in broker.url"
            } else {
                "this may be a port without TLS, which needs amqp://; otherwise check host and port in broker.url"
            };
            format!("the connection was closed before any answer: {doubt} {PORTS} ({error})")
        }
        _ => error.to_string(),
    }
}

fn of_tls(error: &Tls) -> &'static str {
    match error {
        Tls::InvalidMessage(_) => {
            "the server there does not speak TLS; write amqp:// for a port without TLS, or find the broker's TLS port, \
             usually 5671"
        }
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name; write the name in the certificate into broker.url",
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate is out of date, or this machine's clock is wrong"
        }
        Tls::InvalidCertificate(_) => {
            "its certificate is not trusted; name the authority that signed it in broker.ca_file"
        }
        Tls::AlertReceived(_) => {
            "the server ended the TLS handshake; check whether it requires broker.client_cert_file"
        }
        _ => "TLS failed; check the certificates and versions of both sides",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::InvalidMessage;
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset};

    #[test]
    fn each_cause_has_its_remedy_and_keeps_what_was_heard() {
        let tls = |error: Tls| io::Error::new(io::ErrorKind::InvalidData, error);
        let plain = |kind: io::ErrorKind| io::Error::from(kind);
        for (error, is_plain, part) in [
            (plain(ConnectionRefused), true, "nothing listens there"),
            (plain(ConnectionReset), true, "needs amqps://"),
            (plain(ConnectionReset), false, "needs amqp://"),
            (tls(Tls::InvalidMessage(InvalidMessage::InvalidContentType)), false, "does not speak TLS"),
            (tls(Tls::InvalidCertificate(CertificateError::UnknownIssuer)), false, "broker.ca_file"),
            (tls(Tls::InvalidCertificate(CertificateError::NotValidForName)), false, "for another name"),
            (tls(Tls::InvalidCertificate(CertificateError::Expired)), false, "out of date"),
        ] {
            let told = explained(&lapin::Error::from(io::Error::new(error.kind(), error.to_string())), is_plain);
            assert!(told.contains(&error.to_string()), "{told}");
            let told = of_the_way(&error, is_plain);
            assert!(told.contains(part) && told.contains(&error.to_string()), "{part} in {told}");
        }
    }
}
