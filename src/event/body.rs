//! A message's body before it is parsed: unpacked if its properties say so, without a byte order mark.

use super::{Defect, Unreadable};
use flate2::read::MultiGzDecoder;
use std::borrow::Cow;
use std::io::Read;

/// The largest body that is decoded, compressed or not, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

/// The first bytes of gzip.
const GZIP: &[u8] = &[0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The first bytes of UTF-16, with its byte order mark or with the brace of an object.
const UTF_16: [&[u8]; 4] = [b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{"];
/// Encodings that change nothing. Some clients put the charset here, or say that the body is bytes.
const PLAIN: [&str; 8] = ["", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary", "8bit"];
/// Encodings that are not supported, with the names that a defect may quote: any other text there could be
/// anything.
const NOT_OPENED: [&str; 20] = [
    "base64",
    "br",
    "brotli",
    "bzip2",
    "compress",
    "deflate",
    "iso-8859-1",
    "latin-1",
    "latin1",
    "lz4",
    "lzma",
    "snappy",
    "utf-16",
    "utf-16be",
    "utf-16le",
    "utf-32",
    "windows-1252",
    "xz",
    "zlib",
    "zstd",
];

/// A message's body as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Body<'b> {
    pub bytes: &'b [u8],
    /// The message's `content_encoding`.
    pub encoding: Option<&'b str>,
}

/// A body without a content encoding.
impl<'b, B: AsRef<[u8]> + ?Sized> From<&'b B> for Body<'b> {
    fn from(bytes: &'b B) -> Body<'b> {
        Body { bytes: bytes.as_ref(), encoding: None }
    }
}

impl<'b> Body<'b> {
    /// A file's content, which has no properties: compressed if it begins like gzip.
    #[must_use]
    pub fn of_file(bytes: &'b [u8]) -> Body<'b> {
        Body { bytes, encoding: bytes.starts_with(GZIP).then_some("gzip") }
    }

    /// Its text, unpacked, for people.
    #[must_use]
    pub fn text(self) -> Option<String> {
        String::from_utf8(self.json().ok()?.into_owned()).ok()
    }

    /// The JSON in it. Unpacking stops beyond [`MAX_BODY`].
    ///
    /// # Errors
    /// It is compressed with an unsupported encoding, damaged, or too large.
    pub(super) fn json(self) -> Result<Cow<'b, [u8]>, Unreadable> {
        let is_packed = self.is_gzip()? && self.bytes.starts_with(GZIP);
        let json = if is_packed { unpacked(self.bytes)? } else { Cow::Borrowed(self.bytes) };
        let found = match &*json {
            [] => "nothing",
            json if json.starts_with(GZIP) && is_packed => "gzip within gzip",
            json if json.starts_with(GZIP) => "gzip that content_encoding does not name",
            json if UTF_16.iter().any(|beginning| json.starts_with(beginning)) => "UTF-16",
            _ => return Ok(without_mark(json)),
        };
        Err(Defect::expected("body", "JSON in UTF-8", found).into())
    }

    /// Whether the properties say that it is gzip. If they do and it is not, it was unpacked on the way.
    fn is_gzip(self) -> Result<bool, Defect> {
        let words = self.encoding.unwrap_or_default().split(',').map(|word| word.trim().to_ascii_lowercase());
        let mut words = words.filter(|word| !PLAIN.contains(&word.as_str()));
        let found = match (words.next(), words.next()) {
            (None, _) => return Ok(false),
            (Some(word), None) if word == "gzip" || word == "x-gzip" => return Ok(true),
            (Some(word), None) => NOT_OPENED.into_iter().find(|name| *name == word).unwrap_or("another name"),
            (Some(_), Some(_)) => "several",
        };
        Err(Defect::expected("content_encoding", "gzip or none", found))
    }
}

fn unpacked(packed: &[u8]) -> Result<Cow<'_, [u8]>, Unreadable> {
    let mut json = Vec::new();
    let limit = u64::try_from(MAX_BODY + 1).unwrap_or(u64::MAX);
    match MultiGzDecoder::new(packed).take(limit).read_to_end(&mut json) {
        Err(_) => Err(Defect::expected("body", "gzip, as content_encoding says", "damaged or truncated gzip").into()),
        Ok(_) if json.len() > MAX_BODY => {
            Err(Unreadable::TooLarge(Defect::expected("body", "at most 1 MiB", "more after decompression")))
        }
        Ok(_) => Ok(Cow::Owned(json)),
    }
}

fn without_mark(json: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match json {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)),
        Cow::Owned(mut bytes) => {
            if bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            Cow::Owned(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    const JSON: &[u8] = br#"{"user":{}}"#;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn opened(encoding: Option<&str>, bytes: &[u8]) -> Result<Vec<u8>, String> {
        Body { bytes, encoding }.json().map(Cow::into_owned).map_err(|unreadable| unreadable.to_string())
    }

    #[test]
    fn what_is_packed_or_marked_is_read_as_what_is_not() {
        let marked = [BYTE_ORDER_MARK, JSON].concat();
        let halves = [gzip(&JSON[..4]), gzip(&JSON[4..])].concat();
        for (encoding, bytes) in [
            (None, JSON),
            (None, &marked),
            (Some("UTF-8"), JSON),
            (Some("binary"), JSON),
            (Some("gzip"), &gzip(JSON)),
            (Some("GZip"), &gzip(&marked)),
            (Some("x-gzip"), &halves),
            (Some("utf-8, gzip"), &gzip(JSON)),
            (Some("gzip"), JSON),
            (Some("gzip"), &marked),
        ] {
            assert_eq!(opened(encoding, bytes).as_deref(), Ok(JSON), "{encoding:?}");
        }
        assert_eq!(opened(Body::of_file(&gzip(JSON)).encoding, &gzip(JSON)).as_deref(), Ok(JSON));
    }

    #[test]
    fn what_is_not_opened_says_what_was_found_and_what_would_be_right() {
        let packed = gzip(JSON);
        for (encoding, bytes, told) in [
            (Some("br"), JSON, "content_encoding: expected gzip or none, found br"),
            (Some("Deflate"), JSON, "content_encoding: expected gzip or none, found deflate"),
            (Some("jane@example.com"), JSON, "content_encoding: expected gzip or none, found another name"),
            (Some("gzip, gzip"), &packed, "content_encoding: expected gzip or none, found several"),
            (None, &packed, "body: expected JSON in UTF-8, found gzip that content_encoding does not name"),
            (Some("gzip"), &gzip(&packed), "body: expected JSON in UTF-8, found gzip within gzip"),
            (
                Some("gzip"),
                &packed[..12],
                "body: expected gzip, as content_encoding says, found damaged or truncated gzip",
            ),
            (None, b"", "body: expected JSON in UTF-8, found nothing"),
            (None, b"\xff\xfe{\0", "body: expected JSON in UTF-8, found UTF-16"),
            (None, b"\0{\0}", "body: expected JSON in UTF-8, found UTF-16"),
        ] {
            assert_eq!(opened(encoding, bytes), Err(told.to_owned()));
        }
    }

    #[test]
    fn a_bomb_is_too_large_and_costs_no_memory() {
        let bomb = gzip(&vec![0; 16 * 1024 * 1024]).repeat(64);
        let mut told = None;
        let cost = allocation_counter::measure(|| {
            told = Some(Body { bytes: &bomb, encoding: Some("gzip") }.json());
        });
        assert!(matches!(told, Some(Err(Unreadable::TooLarge(_)))), "{told:?}");
        assert!(cost.bytes_max < 8 * 1024 * 1024, "{cost:?}");
        let most = gzip(&vec![b' '; MAX_BODY]);
        assert!(Body { bytes: &most, encoding: Some("gzip") }.json().is_ok());
    }
}
