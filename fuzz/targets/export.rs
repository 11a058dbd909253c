//! An export of dead letters: refused with the line, or read, written and read again as the same.

#![no_main]

use consent_gate::ops::dead::file::{ExportReader, ExportWriter};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|lines: &[u8]| {
    let whole = sealed(lines);
    for text in [lines, &whole] {
        let Ok(mut reader) = ExportReader::begin(text) else { continue };
        let mut writer = ExportWriter::begin(Vec::new(), "acme", Timestamp::UNIX_EPOCH).unwrap();
        let mut letters = Vec::new();
        while let Ok(Some(letter)) = reader.letter() {
            writer.letter(&letter.body, &letter.properties).unwrap();
            letters.push(letter);
        }
        let written = writer.end().unwrap();
        let mut again = ExportReader::begin(&written[..]).expect("ours");
        for letter in letters {
            assert_eq!(again.letter().expect("whole"), Some(letter));
        }
        assert_eq!(again.letter().expect("whole"), None);
    }
});

/// The same lines with the checksums that they should end with: nobody guesses those.
fn sealed(lines: &[u8]) -> Vec<u8> {
    let mut sum = String::new();
    let sealed = lines.split(|byte| *byte == b'\n').flat_map(|line| {
        let open = line.strip_suffix(b"}").unwrap_or(line);
        let digest = Sha256::new().chain_update(&sum).chain_update(open).finalize();
        sum = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        [open, format!(",\"sum\":\"{sum}\"}}\n").as_bytes()].concat()
    });
    sealed.collect()
}
