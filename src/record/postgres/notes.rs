//! What is noted beside the records.

use super::session::{OWN, Session, column};
use super::statements::{KEEP_NOTE, NOTE, TAKE_OVER};
use crate::bytes::random;
use crate::record::Failed;
use crate::record::address::Address;
use crate::record::kept::StoreOrigin;
use tokio_postgres::types::Type;

pub(super) async fn note(session: &Session, name: &str) -> Result<Option<String>, Failed> {
    let rows = session.ask(NOTE, &[(&name, Type::TEXT)]).await?;
    rows.first().map(|row| column(row, OWN)).transpose()
}

/// Random bytes that the store keeps under a name; created by the first process that asks for them.
pub(super) async fn kept<const N: usize>(session: &Session, name: &str) -> Result<[u8; N], Failed> {
    let made = hex::encode(random::<N>().map_err(Failed::new)?);
    if note(session, name).await?.is_none() {
        session.ask(KEEP_NOTE, &[(&name, Type::TEXT), (&made, Type::TEXT)]).await?;
    }
    let text = note(session, name).await?.unwrap_or_default();
    let byte = |index: usize| text.get(2 * index..2 * index + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let mut bytes = [0; N];
    for (index, place) in bytes.iter_mut().enumerate() {
        *place = byte(index).ok_or_else(|| Failed::new(format!("consent_gate_notes: {name} is damaged")))?;
    }
    Ok(bytes)
}

/// Makes an empty store the copy of another.
pub(super) async fn take_over(session: &Session, origin: &StoreOrigin, address: &Address) -> Result<(), Failed> {
    let identity = hex::encode(origin.identity);
    if note(session, "identity").await?.as_ref() == Some(&identity) {
        return Ok(());
    }
    let (mark, of) = origin.mark();
    let (names, texts) = (vec!["secret", "identity", mark], vec![hex::encode(origin.secret), identity, of]);
    let taken = session.ask(TAKE_OVER, &[(&names, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY)]).await?;
    if taken.is_empty() {
        let at = address.shown();
        let why = "they are other records, which are in use; name an empty place";
        return Err(Failed::new(format!("cannot copy into the records in PostgreSQL at {at}: {why}")));
    }
    Ok(())
}
