//! How many deliveries of one queue may be in hand, by the size of recent messages (pure).
//!
//! The broker limits the number of messages, but memory is taken by their bytes. So a consumer begins with a
//! low prefetch, which grows once the size of the messages is known.

/// The target for the total size of one consumer's deliveries, in bytes.
const BYTES: usize = 16 * 1024 * 1024;
/// The prefetch before anything is known.
const FIRST: u16 = 2;
/// The largest factor by which the prefetch grows at once.
const FACTOR: u16 = 8;
/// One more body moves the mean by one part in this many of its difference from it.
const SHARE: usize = 16;

/// The prefetch of one queue.
#[derive(Clone, Debug)]
pub struct Prefetch {
    most: u16,
    now: u16,
    /// Deliveries since the prefetch was last changed.
    received: u16,
    /// The mean size of recent messages, in bytes.
    mean: Option<usize>,
}

impl Prefetch {
    /// Begins low and never exceeds `most` messages.
    #[must_use]
    pub fn new(most: u16) -> Prefetch {
        Prefetch { most: most.max(1), now: FIRST.min(most.max(1)), received: 0, mean: None }
    }

    /// The prefetch for a consumer that starts now.
    #[must_use]
    pub fn now(&self) -> u16 {
        self.now
    }

    /// Takes note of a delivery of this size, in bytes. Returns whether a new consumer with another prefetch
    /// should take over.
    pub fn received(&mut self, bytes: usize) -> bool {
        self.received = self.received.saturating_add(1);
        let mean = match self.mean {
            None => bytes,
            Some(mean) => mean - mean / SHARE + bytes / SHARE,
        };
        self.mean = Some(mean);
        let fits = u16::try_from(BYTES / mean.max(1)).unwrap_or(u16::MAX).clamp(1, self.most);
        let next = fits.min(self.now.saturating_mul(FACTOR));
        let grows =
            self.received >= self.now && (next >= self.now.saturating_mul(2) || next > self.now && next == self.most);
        if !grows && next.saturating_mul(2) > self.now {
            return false;
        }
        self.now = next;
        self.received = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;

    /// Every prefetch that results from deliveries of these sizes.
    fn after(prefetch: &mut Prefetch, sizes: impl IntoIterator<Item = usize>) -> Vec<u16> {
        let mut changes = Vec::new();
        for size in sizes {
            if prefetch.received(size) {
                changes.push(prefetch.now());
            }
        }
        changes
    }

    #[test]
    fn it_begins_low_and_grows_quickly_while_messages_are_small() {
        let mut prefetch = Prefetch::new(256);
        assert_eq!(prefetch.now(), 2);
        assert_eq!(after(&mut prefetch, vec![2 * KIB; 400]), [16, 128, 256]);
    }

    #[test]
    fn large_messages_are_taken_one_by_one_and_small_ones_end_that() {
        let mut prefetch = Prefetch::new(256);
        assert_eq!(after(&mut prefetch, vec![16 * MIB; 10]), [1]);
        let grown = after(&mut prefetch, vec![2 * KIB; 1_000]);
        assert_eq!(grown.last(), Some(&256));
        assert!(grown.is_sorted());
    }

    #[test]
    fn one_large_message_among_small_ones_changes_nothing_and_a_row_of_them_does() {
        let mut prefetch = Prefetch::new(256);
        after(&mut prefetch, vec![2 * KIB; 400]);
        assert!(after(&mut prefetch, [MIB]).is_empty());
        after(&mut prefetch, vec![2 * KIB; 400]);
        assert_eq!(after(&mut prefetch, vec![16 * MIB; 3]), [15, 5]);
    }

    #[test]
    fn it_never_passes_what_is_configured() {
        let mut prefetch = Prefetch::new(4);
        assert_eq!(after(&mut prefetch, vec![10; 100]), [4]);
        assert_eq!(Prefetch::new(0).now(), 1);
    }
}
