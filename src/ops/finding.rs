//! What `check` found out, one thing at a time.

/// One thing that was looked at.
pub(super) struct Finding {
    pub what: String,
    pub result: Result<String, String>,
    /// It works, and may still surprise.
    pub is_doubtful: bool,
}

impl Finding {
    pub fn new(what: String, result: Result<String, String>) -> Finding {
        Finding { what, result, is_doubtful: false }
    }
}
