//! How fast a replay goes (pure): slowly at first, twice as fast each second, up to its rate.

use std::time::Duration;

/// A replay begins at this share of the rate.
const FIRST_SHARE: f64 = 1.0 / 16.0;
/// Seconds until the whole rate is reached: the share doubles each second.
const RAMP_SECONDS: f64 = 4.0;

/// Letters a second, at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

impl Rate {
    /// Reads `50/s`, `300/m`, or a plain number, which is per second.
    ///
    /// # Errors
    /// What a rate looks like, for people.
    pub fn parse(text: &str) -> Result<Rate, String> {
        let bad = || format!("\"{text}\" is not a rate; write one such as 50/s or 300/m");
        let (number, seconds) = match text.split_once('/') {
            None | Some((_, "s")) => (text.trim_end_matches("/s"), 1.0),
            Some((number, "m")) => (number, 60.0),
            Some(_) => return Err(bad()),
        };
        let number: u32 = number.parse().map_err(|_| bad())?;
        if number == 0 { Err(bad()) } else { Ok(Rate(f64::from(number) / seconds)) }
    }

    /// How many letters may have been sent after this time.
    pub fn due(self, elapsed: Duration) -> f64 {
        let seconds = elapsed.as_secs_f64();
        let ramp = |seconds: f64| self.0 * FIRST_SHARE * (seconds.exp2() - 1.0) / std::f64::consts::LN_2;
        1.0 + ramp(seconds.min(RAMP_SECONDS)) + self.0 * (seconds - RAMP_SECONDS).max(0.0)
    }

    /// How many letters may be without a first verdict: as many as go in ten seconds, so that the replay can still
    /// be stopped when they fail.
    pub fn most_unreported(self) -> u32 {
        // The cast saturates: nobody has so many letters.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and a float saturates")]
        let most = (self.0 * 10.0) as u32;
        most.max(100)
    }
}

/// Reads `20%`.
///
/// # Errors
/// What a share looks like, for people.
pub fn share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    percent
        .map(|percent: f64| percent / 100.0)
        .ok_or_else(|| format!("\"{text}\" is not a share; write one such as 20%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares_are_read_or_refused() {
        assert_eq!([Rate::parse("50/s"), Rate::parse("50"), Rate::parse("3000/m")], [const { Ok(Rate(50.0)) }; 3]);
        assert_eq!(share("20%"), Ok(0.2));
        for wrong in ["", "0", "0/s", "-1/s", "5/h", "fast", "1.5/s", "/s"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "20", "-1%", "101%", "NaN%", "many%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_rate_is_reached_slowly_and_never_passed() {
        let rate = Rate(160.0);
        let due = |seconds: f64| rate.due(Duration::from_secs_f64(seconds));
        assert!((1.0..2.0).contains(&due(0.0)));
        assert!(due(1.0) < 20.0, "{}", due(1.0));
        for second in 0..20 {
            let gone = due(f64::from(second) + 1.0) - due(f64::from(second));
            assert!(gone <= 160.1, "{gone}");
        }
        assert!((due(11.0) - due(10.0) - 160.0).abs() < 0.1);
    }
}
