//! What can become of a trigger request: a closed list, with the word and the status of each.

/// One of these is counted for every request to the gate, exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Valid and executed, whatever became of the answer.
    Accepted,
    /// `Authorization` is absent or not `hmac user:SIGNATURE:timestamp`.
    BadAuthorization,
    /// No document has this user.
    UnknownUser,
    /// The signature is not hexadecimal, or not the one that the password gives for this path.
    BadSignature,
    /// The timestamp is not a whole number of seconds, or is more than five minutes off.
    BadTimestamp,
    /// The gate's path, but not POST.
    WrongMethod,
    /// Neither the gate's path nor one of the simulator's own.
    UnknownPath,
    /// The content type is not `application/json`.
    WrongContentType,
    /// The body is over 1 MiB.
    TooLarge,
    /// The body is not `{"Gate": string, "GateInput": {name: string}}`.
    Malformed,
    /// The user has no such gate.
    UnknownGate,
    /// A property that the document does not map.
    UnknownProperty,
    /// The identifier is absent or blank.
    NoIdentifier,
    /// The client went away before the request was complete.
    Stop,
    /// A rule of `/faults` kept the request from being executed.
    Fault,
}

impl Outcome {
    /// Every outcome, in the order of declaration: `outcome as usize` is its place here.
    pub const ALL: [Self; 15] = [
        Self::Accepted,
        Self::BadAuthorization,
        Self::UnknownUser,
        Self::BadSignature,
        Self::BadTimestamp,
        Self::WrongMethod,
        Self::UnknownPath,
        Self::WrongContentType,
        Self::TooLarge,
        Self::Malformed,
        Self::UnknownGate,
        Self::UnknownProperty,
        Self::NoIdentifier,
        Self::Stop,
        Self::Fault,
    ];

    /// The word that `GET /requests` shows.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::BadAuthorization => "bad_authorization",
            Self::UnknownUser => "unknown_user",
            Self::BadSignature => "bad_signature",
            Self::BadTimestamp => "bad_timestamp",
            Self::WrongMethod => "wrong_method",
            Self::UnknownPath => "unknown_path",
            Self::WrongContentType => "wrong_content_type",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::UnknownGate => "unknown_gate",
            Self::UnknownProperty => "unknown_property",
            Self::NoIdentifier => "no_identifier",
            Self::Stop => "abandoned",
            Self::Fault => "fault",
        }
    }

    /// The status of the answer, if no rule asks for another.
    pub fn status(self) -> u16 {
        match self {
            Self::Accepted => 200,
            Self::BadAuthorization | Self::UnknownUser | Self::BadSignature | Self::BadTimestamp => 401,
            Self::UnknownPath | Self::UnknownGate => 404,
            Self::WrongMethod => 405,
            Self::TooLarge => 413,
            Self::WrongContentType => 415,
            Self::Malformed | Self::UnknownProperty | Self::NoIdentifier | Self::Stop => 400,
            Self::Fault => 500,
        }
    }
}

/// Why a request was not accepted, with a sentence for the client's author.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub outcome: Outcome,
    pub error: String,
}

impl Refusal {
    pub fn new(outcome: Outcome, error: impl Into<String>) -> Self {
        Self { outcome, error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_listed_once_in_its_place() {
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place, "{}", outcome.word());
        }
    }
}
