//! The body of an answer: how much of it is read, and how it is unpacked.
//!
//! Both are bounded by the same number of bytes, so a compressed body of a kilobyte that unpacks to a
//! gigabyte costs no more than any other.

use super::MAX_ANSWER;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use std::borrow::Cow;
use std::io::Read;

/// The most content codings that are undone; no honest answer has more.
const MOST_CODINGS: usize = 4;
/// How a gzip stream begins. Some servers send gzip without a header that says so.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads at most [`MAX_ANSWER`] bytes and one more, by which a longer body is recognized.
pub(crate) async fn read_bounded(response: &mut reqwest::Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = (MAX_ANSWER + 1).saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    Ok(body)
}

/// Undoes the codings that the headers name, the last one first, up to [`MAX_ANSWER`] bytes and one more.
/// `None` if a coding is unknown or the body is damaged.
pub(super) fn unpacked<'b>(headers: &HeaderMap, body: &'b [u8]) -> Option<Cow<'b, [u8]>> {
    let named = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings: Vec<&str> = named.flat_map(|value| value.split(',')).map(str::trim).collect();
    if codings.len() > MOST_CODINGS {
        return None;
    }
    let mut body = Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        body = match coding.to_ascii_lowercase().as_str() {
            "" | "identity" => body,
            // A proxy that unpacks may leave the header in place; real gzip is recognized below by its first
            // bytes.
            "gzip" | "x-gzip" if !body.starts_with(&GZIP) => body,
            "gzip" | "x-gzip" => Cow::Owned(read(MultiGzDecoder::new(&*body))?),
            "deflate" => inflated(body)?,
            _ => return None,
        };
    }
    if body.starts_with(&GZIP) {
        body = Cow::Owned(read(MultiGzDecoder::new(&*body))?);
    }
    Some(body)
}

/// By its specification `deflate` is the zlib format, but some servers send the raw stream. A readable text
/// is neither: something on the way unpacked it and left the header in place.
fn inflated(body: Cow<'_, [u8]>) -> Option<Cow<'_, [u8]>> {
    if body.is_empty() || body.starts_with(b"{") {
        return Some(body);
    }
    read(ZlibDecoder::new(&*body)).or_else(|| read(DeflateDecoder::new(&*body))).map(Cow::Owned)
}

fn read(unpacking: impl Read) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    let limit = u64::try_from(MAX_ANSWER + 1).unwrap_or(u64::MAX);
    unpacking.take(limit).read_to_end(&mut unpacked).ok()?;
    Some(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use std::io::Write;

    const TEXT: &[u8] = br#"{"IsSuccess":false}"#;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(codings: &[&str], body: &[u8]) -> Option<Vec<u8>> {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(CONTENT_ENCODING, coding.parse().unwrap());
        }
        unpacked(&headers, body).map(Cow::into_owned)
    }

    #[test]
    fn every_way_of_packing_is_undone() {
        for (codings, body) in [
            (vec![], TEXT.to_vec()),
            (vec!["identity"], TEXT.to_vec()),
            (vec!["gzip"], gzip(TEXT)),
            (vec!["X-GZIP"], gzip(TEXT)),
            (vec![], gzip(TEXT)),
            (vec!["deflate"], zlib(TEXT)),
            (vec!["deflate"], bare(TEXT)),
            (vec!["deflate, gzip"], gzip(&zlib(TEXT))),
            (vec!["deflate", "gzip"], gzip(&zlib(TEXT))),
            (vec!["gzip"], TEXT.to_vec()),
            (vec!["deflate"], TEXT.to_vec()),
        ] {
            assert_eq!(unpack(&codings, &body).as_deref(), Some(TEXT), "{codings:?}");
        }
        assert_eq!(unpack(&["gzip"], b"").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_cannot_be_unpacked_is_no_text() {
        let cut = &gzip(TEXT)[..12];
        for (codings, body) in [(["br"], TEXT), (["gzip"], cut), (["deflate"], &b"<html>"[..])] {
            assert_eq!(unpack(&codings, body), None, "{codings:?}");
        }
        assert_eq!(unpack(&["gzip, gzip, gzip, gzip, gzip"], TEXT), None);
    }

    #[test]
    fn a_bomb_costs_no_more_than_any_other_answer() {
        let mut bomb = vec![0; 64 * 1024 * 1024];
        for _ in 0..2 {
            bomb = gzip(&bomb);
        }
        assert!(bomb.len() < MAX_ANSWER);
        for codings in [&["gzip, gzip"][..], &["gzip"], &[]] {
            let unpacked = unpack(codings, &bomb);
            assert!(unpacked.is_none_or(|body| body.capacity() <= 2 * (MAX_ANSWER + 1)));
        }
    }
}
