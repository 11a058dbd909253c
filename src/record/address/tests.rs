use super::*;

fn address(url: &str) -> Result<Address, String> {
    Address::new(&url.into())
}

#[test]
fn the_server_is_verified_beyond_loopback_unless_somebody_says_otherwise() {
    let verify = |url| address(url).unwrap().verify;
    assert_eq!(verify("postgres://gate:x@localhost/db"), Verify::Plain);
    assert_eq!(verify("postgres://gate:x@127.0.0.1:5433/db"), Verify::Plain);
    assert_eq!(verify("postgres://gate:x@db.example.com/db"), Verify::Name);
    assert_eq!(verify("postgres://gate:x@127.0.0.1,db.example.com/db"), Verify::Name);
    assert_eq!(verify("postgres://gate@127.0.0.1/db?sslmode=verify-full"), Verify::Name);
    assert_eq!(verify("postgres://gate@db.example.com/db?sslmode=require"), Verify::Anybody(SslMode::Require));
    assert_eq!(verify("postgres://gate@db/db?sslmode=require&sslrootcert=ca.pem"), Verify::Authority);
    assert!(address("postgres://gate@db/db?sslmode=disable").unwrap().warning().is_some());
    assert!(address("postgres://gate@db/db").unwrap().warning().is_none());
}

#[test]
fn words_of_libpq_mean_what_they_mean_to_libpq_or_are_refused() {
    let verify = |url| address(url).unwrap().verify;
    assert_eq!(verify("postgres://gate@db/db?sslrootcert=system"), Verify::Name);
    assert_eq!(verify("postgres://gate@localhost/db?sslrootcert=system"), Verify::Name);
    assert!(address("postgres://gate@db/db?sslrootcert=system").unwrap().root.is_none());
    assert_eq!(verify("postgres://gate@localhost/db?hostaddr=192.0.2.7"), Verify::Name);
    assert_eq!(verify("postgres://gate@db/db?hostaddr=127.0.0.1"), Verify::Plain);
    assert!(address("postgres://gate@a,b/db?target_session_attrs=read-write").is_ok());
    let several = address("postgres://gate:p[::1]w@a:5433,b,[::2]:5434/db?target_session_attrs=read-write").unwrap();
    assert_eq!(several.shown(), "a:5433,b:5432,[::2]:5434/db");
    assert!(several.url.lock().unwrap().expose_secret().starts_with("postgres://gate:p%5B%3A%3A1%5Dw@a:5433,b,[::2]"));
    assert!(address("postgres://gate@a:5433,b:x/db").unwrap_err().contains("cannot be read"));
    for (query, words) in [
        ("sslrootcert=system&sslmode=require", "only with sslmode=verify-full"),
        ("target_session_attrs=read-only", "records are written"),
        ("target_session_attrs=prefer-standby", "target_session_attrs"),
        ("hostaddr=127.0.0.1,127.0.0.2", "one address for each host"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("sslcert=client.pem", "sslcert"),
        ("gssencmode=require", "gssencmode"),
        ("require_auth=scram-sha-256", "require_auth"),
    ] {
        let why = address(&format!("postgres://gate@db/db?{query}")).unwrap_err();
        assert!(why.contains(words), "{query}: {why}");
    }
}

#[test]
fn what_is_wrong_is_told_without_the_password() {
    for url in [
        "postgres://gate:s3cr3t@/db",
        "postgres://gate:s3cr3t@db",
        "postgres://:s3cr3t@db/db",
        "postgres://gate:s3cr3t@db/db?sslmode=on",
        "postgres://gate:s3cr3t@db/db?unknown=1",
        "postgres://gate:s3cr3t@db:port/db",
    ] {
        let why = address(url).unwrap_err();
        assert!(!why.contains("s3cr3t"), "{url}: {why}");
    }
    let shown = format!("{:?}", address("postgres://gate:s3cr3t@db/db").unwrap());
    assert!(shown.contains("db:5432/db") && !shown.contains("s3cr3t"), "{shown}");
}

#[test]
fn another_password_or_role_leads_to_the_same_place_and_anything_else_does_not() {
    let known = address("postgres://gate:old@db/db?options=-csearch_path%3Dmine").unwrap();
    let clone = known.clone();
    let rotated = address("postgres://other:new@db/db?options=-csearch_path%3Dmine").unwrap();
    assert!(known.leads_to(&rotated));
    known.renew(&rotated);
    assert!(clone.url().expose_secret().contains("other:new@"));
    for elsewhere in [
        "postgres://gate:old@db2/db?options=-csearch_path%3Dmine",
        "postgres://gate:old@db/db2?options=-csearch_path%3Dmine",
        "postgres://gate:old@db/db?options=-csearch_path%3Dyours",
        "postgres://gate:old@db/db?options=-csearch_path%3Dmine&sslmode=require",
        "postgres://gate:old@db/db?options=-csearch_path%3Dmine&sslrootcert=ca.pem",
    ] {
        assert!(!known.leads_to(&address(elsewhere).unwrap()), "{elsewhere}");
    }
}

#[test]
fn a_schema_is_no_option_of_the_session() {
    let known = address("postgres://gate@127.0.0.1/db?options=-csearch_path%3DMine&sslmode=disable").unwrap();
    let config: tokio_postgres::Config = known.url().expose_secret().parse().unwrap();
    assert_eq!((config.get_options(), known.schema()), (None, Some("mine")));
    for others in ["-cstatement_timeout%3D1", "-csearch_path%3Da,b", "-csearch_path%3Da%20-cwork_mem%3D1", ""] {
        let why = address(&format!("postgres://gate@127.0.0.1/db?options={others}")).unwrap_err();
        assert!(why.contains("one schema"), "{others}: {why}");
    }
}
