//! The file of an export: JSON lines. A file that is not complete is refused.
//!
//! The first line says what the file is, the last how many letters it holds. Each line ends with a checksum over
//! itself and the checksum before it, so anything that was cut off, changed, moved or left out is found, with the
//! number of the line, before anything is imported.

use super::value;
use crate::ops::counted;
use crate::text::shown;
use jiff::Timestamp;
use lapin::BasicProperties;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the first line says.
const FORMAT: &str = "consent-gate dead letters";
const VERSION: u64 = 1;
/// The text before a line's checksum, which is the line's last key.
const BEFORE_SUM: &str = ",\"sum\":\"";
const SUM_DIGITS: usize = 16;

/// One complete letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

impl Exported {
    fn encode(body: &[u8], properties: &BasicProperties) -> Value {
        let body = match std::str::from_utf8(body) {
            Ok(text) => json!(["text", text]),
            Err(_) => json!(["hex", hex::encode(body)]),
        };
        json!({ "body": body, "properties": value::encode_properties(properties) })
    }

    fn decode(line: &Value) -> Result<Exported, String> {
        let body = match line["body"].as_array().map(Vec::as_slice) {
            Some([Value::String(tag), Value::String(text)]) if tag == "text" => text.clone().into_bytes(),
            Some([Value::String(tag), Value::String(text)]) if tag == "hex" => value::unhex(text)?,
            _ => return Err("it has no body".to_owned()),
        };
        Ok(Exported { body, properties: value::decode_properties(&line["properties"])? })
    }
}

/// Tells equal letters from different ones: 128 bits of a SHA-256 over body and properties.
#[must_use]
pub fn digest(body: &[u8], properties: &BasicProperties) -> [u8; 16] {
    let digest = Sha256::digest(Exported::encode(body, properties).to_string());
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    first
}

/// The checksum of all lines so far.
#[derive(Default)]
struct Chain(String);

impl Chain {
    /// Adds one more line, without its checksum and closing bracket, and returns the checksum.
    fn add(&mut self, line: &[u8]) -> &str {
        let digest = Sha256::new().chain_update(&self.0).chain_update(line).finalize();
        self.0 = hex::encode(&digest[..SUM_DIGITS / 2]);
        &self.0
    }
}

/// Creates a file that only its owner can read. An existing file is never overwritten.
///
/// # Errors
/// It exists, or cannot be created.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Waits until a new file and its directory entry are on disk: without the entry, a power failure could lose the
/// file.
///
/// # Errors
/// They are not on disk, and may be lost.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Writes an export.
pub struct ExportWriter<W> {
    out: W,
    chain: Chain,
    /// Letters written.
    pub letters: u32,
}

impl<W: Write> ExportWriter<W> {
    /// Writes the first line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(out: W, integration: &str, now: Timestamp) -> io::Result<ExportWriter<W>> {
        let mut writer = ExportWriter { out, chain: Chain::default(), letters: 0 };
        writer
            .line(&json!({ "format": FORMAT, "version": VERSION, "integration": integration, "exported_at": now }))?;
        Ok(writer)
    }

    /// Writes a letter.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn letter(&mut self, body: &[u8], properties: &BasicProperties) -> io::Result<()> {
        self.letters += 1;
        self.line(&Exported::encode(body, properties))
    }

    /// Writes the last line, and returns the writer underneath.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(mut self) -> io::Result<W> {
        self.line(&json!({ "letters": self.letters }))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn line(&mut self, line: &Value) -> io::Result<()> {
        // Another tool may show the file on a terminal; the escaped line is still the same JSON value.
        let text = shown::output(&line.to_string()).into_owned();
        let open = text.strip_suffix('}').unwrap_or(&text);
        let sum = self.chain.add(open.as_bytes());
        writeln!(self.out, "{open}{BEFORE_SUM}{sum}\"}}")
    }
}

/// What to do about a file that is not an export.
pub const REMEDY: &str = "name a file that dead export or dead discard wrote";

/// Why a file is not a complete export.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Counted from 1; 0 if the file cannot even be opened.
    pub line: u64,
    pub why: String,
}

/// Reads an export.
pub struct ExportReader<R> {
    input: R,
    chain: Chain,
    line: u64,
    letters: u64,
    /// The integration whose letters were exported.
    pub integration: String,
}

/// Opens an export.
///
/// # Errors
/// It cannot be read, or is not an export.
pub fn open(path: &Path) -> Result<ExportReader<BufReader<File>>, Refused> {
    let unreadable = |why: String| Refused { line: 0, why: format!("{why}; {REMEDY}") };
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    if file.metadata().is_ok_and(|found| found.is_dir()) {
        return Err(unreadable("it is a directory".to_owned()));
    }
    ExportReader::begin(BufReader::new(file))
}

impl<R: BufRead> ExportReader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// It is not an export's first line.
    pub fn begin(input: R) -> Result<ExportReader<R>, Refused> {
        let mut reader =
            ExportReader { input, chain: Chain::default(), line: 0, letters: 0, integration: String::new() };
        let first = reader.line()?;
        if first["format"] != FORMAT {
            return Err(reader.refused("this is not an export of dead letters"));
        }
        if first["version"].as_u64() != Some(VERSION) {
            return Err(reader.refused("this export is of another version of consent-gate"));
        }
        first["integration"].as_str().unwrap_or_default().clone_into(&mut reader.integration);
        Ok(reader)
    }

    /// The next letter; `None` at the end of a complete file.
    ///
    /// # Errors
    /// The file is cut off or was changed, at this line.
    pub fn letter(&mut self) -> Result<Option<Exported>, Refused> {
        let line = self.line()?;
        let Some(letters) = line["letters"].as_u64() else {
            self.letters += 1;
            return Exported::decode(&line).map(Some).map_err(|why| self.refused(why));
        };
        if letters != self.letters {
            return Err(self.refused(format!("exported: {}, here: {}", counted(letters, "letter"), self.letters)));
        }
        let mut rest = Vec::new();
        match self.input.read_until(b'\n', &mut rest) {
            Ok(0) => Ok(None),
            Ok(_) => {
                self.line += 1;
                Err(self.refused("something follows the last line"))
            }
            Err(error) => Err(self.refused(error.to_string())),
        }
    }

    fn line(&mut self) -> Result<Value, Refused> {
        let mut line = Vec::new();
        let read = self.input.read_until(b'\n', &mut line);
        self.line += 1;
        match read {
            Ok(0) => return Err(self.refused("the file ends here; it was truncated")),
            Ok(_) => {}
            Err(error) => return Err(self.refused(error.to_string())),
        }
        let Some(whole) = line.strip_suffix(b"\n") else {
            return Err(self.refused("the line is truncated"));
        };
        let split = whole.len().checked_sub(BEFORE_SUM.len() + SUM_DIGITS + 2).map(|at| whole.split_at(at));
        let Some((open, sum)) = split else { return Err(self.refused("this is not a line of an export")) };
        let expected = format!("{BEFORE_SUM}{}\"}}", self.chain.add(open));
        if sum != expected.as_bytes() {
            return Err(self.refused("it was changed, or one before it is missing"));
        }
        serde_json::from_slice(whole).map_err(|_| self.refused("this is not JSON"))
    }

    fn refused(&self, why: impl Into<String>) -> Refused {
        Refused { line: self.line, why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Vec<u8> {
        let mut writer = ExportWriter::begin(Vec::new(), "acme", Timestamp::UNIX_EPOCH).unwrap();
        for body in [&b"{\"a\":\n1}"[..], b"\xff\x00", b"", b"plain"] {
            writer.letter(body, &BasicProperties::default().with_message_id("m".into())).unwrap();
        }
        writer.end().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Refused> {
        let mut reader = ExportReader::begin(bytes)?;
        let mut bodies = Vec::new();
        while let Some(letter) = reader.letter()? {
            bodies.push(letter.body);
        }
        Ok(bodies)
    }

    #[test]
    fn a_whole_file_is_read_as_it_was_written() {
        assert_eq!(read(&export()).unwrap(), [&b"{\"a\":\n1}"[..], b"\xff\x00", b"", b"plain"]);
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_refused() {
        let whole = export();
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_change_is_found_at_its_line() {
        let whole = String::from_utf8(export()).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let refused_at = |lines: &[&str]| read(format!("{}\n", lines.join("\n")).as_bytes()).unwrap_err().line;
        let edited = lines[4].replace("plain", "Plain");
        assert_eq!(refused_at(&[&lines[..4], &[edited.as_str()], &lines[5..]].concat()), 5);
        assert_eq!(refused_at(&[&lines[..2], &lines[3..]].concat()), 3);
        assert_eq!(refused_at(&[&lines[..], &lines[5..]].concat()), 7);
        assert_eq!(refused_at(&[lines[0], lines[5]]), 2);
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes).is_err(), "byte {at}");
        }
    }
}
