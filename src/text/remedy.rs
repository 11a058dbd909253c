//! What to do about records and gates that cannot be reached or created, if the error itself does not say so (pure).

/// The setting that names the records.
const SETTING: &str = "records.store";

/// What errors on the way to a database say, and what to do: of a server's errors the code, of the system's the
/// words.
const ON_THE_WAY: [(&str, &str); 11] = [
    (
        "Connection refused",
        "nothing listens there: is PostgreSQL running, and are host and port in records.store correct?",
    ),
    ("failed to lookup address", "no address is known for that name: is the host in records.store spelled correctly?"),
    ("(28P01)", "check user and password in records.store"),
    ("password missing", "the server requires a password; write it into records.store, or into a store_file"),
    ("(28000)", "check the user in records.store, and whether the server's pg_hba.conf admits it from here"),
    ("(3D000)", "name one that exists in records.store, or create it (CREATE DATABASE)"),
    ("(53300)", "its connections are used up; raise max_connections, or end other clients"),
    (
        "does not support TLS",
        "what listens there has no TLS or is not PostgreSQL; check host and port in records.store; sslmode=disable does without TLS",
    ),
    (
        "invalid peer certificate",
        "name the authority that signed it with sslrootcert in records.store, and the host as the certificate does",
    ),
    ("communicating with the server", "what listens there may not be PostgreSQL; check host and port in records.store"),
    ("no answer", "check host and port in records.store, and whether a firewall drops the packets"),
];

/// The same for a directory.
const OF_A_DIRECTORY: [(&str, &str); 5] = [
    ("File exists", "a file is in its place; set records.store to a directory"),
    ("Not a directory", "a file is in its path; set records.store to a directory"),
    ("Permission denied", "give it to the user that runs the worker, or set records.store to another directory"),
    ("Read-only file system", "set records.store to a directory on a file system that can be written"),
    (
        "No such file or directory",
        "a directory above it does not exist and cannot be created; create it, or check records.store",
    ),
];

/// What errors on the way to a gate say, and what to do. Where to look depends on whether a proxy leads there.
const TO_A_GATE: [(&str, &str); 6] = [
    ("Connection refused", "nothing listens there: check host and port in "),
    ("failed to lookup address", "no address is known for that name: check the host in "),
    ("InvalidContentType", "the server there does not speak TLS: check scheme, host and port in "),
    (
        "Connection reset",
        "the connection was closed before any answer, as a TLS port does: check scheme, host and port in ",
    ),
    (
        "invalid peer certificate",
        "name the authority that signed its certificate in gate.ca_file, or check the host in ",
    ),
    ("timed out", "check whether a firewall drops the packets, and check host and port in "),
];

/// Why a gate's host was not reached, for people.
pub fn of_gate(error: &str, has_proxy: bool) -> String {
    let setting = if has_proxy { "gate.proxy and properties.url" } else { "properties.url" };
    match TO_A_GATE.iter().find(|(said, _)| error.contains(said)) {
        Some((_, remedy)) => format!("{error}; {remedy}{setting}"),
        None => error.to_owned(),
    }
}

/// A failure of the records, for people, with what to do.
pub fn told(failed: &str) -> String {
    told_of(failed, SETTING)
}

/// The same for records that something other than the settings names.
pub fn told_of(failed: &str, named_by: &str) -> String {
    let remedies = if failed.contains("cannot connect to PostgreSQL") {
        &ON_THE_WAY[..]
    } else if failed.contains("the records in") && failed.contains("(os error") {
        &OF_A_DIRECTORY[..]
    } else {
        &[]
    };
    match remedies.iter().find(|(said, _)| failed.contains(said)) {
        Some((_, remedy)) => format!("{failed}; {}", remedy.replace(SETTING, named_by)),
        None => failed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_told_with_what_to_look_at_and_by_what_names_it() {
        let at = "cannot connect to PostgreSQL at db:5432/acme: ";
        for (said, part) in [
            ("error connecting to server: Connection refused (os error 111)", "is PostgreSQL running"),
            (
                "error connecting to server: failed to lookup address information: Name or service not known",
                "the host in records.store",
            ),
            ("password authentication failed for user \"acme\" (28P01)", "user and password in records.store"),
            ("invalid configuration: password missing", "requires a password"),
            ("role \"acme\" does not exist (28000)", "pg_hba.conf"),
            ("database \"acme\" does not exist (3D000)", "CREATE DATABASE"),
            ("error communicating with the server: bytes remaining on stream", "may not be PostgreSQL"),
            ("error performing TLS handshake: server does not support TLS", "sslmode=disable"),
            ("error performing TLS handshake: invalid peer certificate: UnknownIssuer", "sslrootcert"),
        ] {
            let failed = format!("{at}{said}");
            let told = told(&failed);
            assert!(told.starts_with(&format!("{failed}; ")) && told.contains(part), "{part} in {told}");
            assert!(!told_of(&failed, "--from").contains(SETTING));
        }
    }

    #[test]
    fn a_directory_and_a_gate_are_told_with_what_to_look_at() {
        let told_of_file = told("cannot create the records in afile: File exists (os error 17)");
        assert!(told_of_file.ends_with("; a file is in its place; set records.store to a directory"), "{told_of_file}");
        let not_ours = "the records in here are not those of this integration's earlier events";
        assert_eq!(told(not_ours), not_ours);
        let refused = "tcp connect error: Connection refused (os error 111)";
        assert!(of_gate(refused, false).ends_with("check host and port in properties.url"));
        assert!(of_gate(refused, true).ends_with("check host and port in gate.proxy and properties.url"));
        assert_eq!(of_gate("something else", true), "something else");
    }
}
