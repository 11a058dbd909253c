//! Reading a request's body: whole, and at most 1 MiB of it.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::outcome::{Outcome, Refusal};

/// The largest body that is accepted, in bytes.
const LIMIT: usize = 1024 * 1024;

/// How much of a larger body is read and thrown away, in bytes, so that its sender gets to read
/// the answer before the connection closes.
const DISCARD_LIMIT: usize = 16 * LIMIT;

/// The whole body; refused when it is too large, or when the client leaves before its end.
pub async fn read(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let mut read = Vec::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let left = |_| Refusal::new(Outcome::Stop, "the body is not complete");
        let Ok(data) = frame.map_err(left)?.into_data() else {
            continue;
        };
        length += data.len();
        if length <= LIMIT {
            read.extend_from_slice(&data);
        } else if length > DISCARD_LIMIT {
            break;
        }
    }
    if length > LIMIT {
        let error = format!("the body is over {LIMIT} bytes");
        return Err(Refusal::new(Outcome::TooLarge, error));
    }
    Ok(read)
}
