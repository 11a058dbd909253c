//! The two streams: one line of data on stdout, messages for people on stderr.
//!
//! A stream that is closed at the other end is not a reason to stop, so failed writes are ignored.

use std::io::{self, Write};

/// Says something to the person who started the simulator.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes the one line that other programs wait for.
pub fn announce(line: &str) {
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
