//! What `check` finds out.

/// The result of one check.
#[derive(Debug)]
pub(super) struct Finding {
    pub what: String,
    pub result: Result<String, String>,
    /// It works, but may still surprise: shown as a warning.
    pub is_doubtful: bool,
}

impl Finding {
    pub fn new(what: String, result: Result<String, String>) -> Finding {
        Finding { what, result, is_doubtful: false }
    }
}
