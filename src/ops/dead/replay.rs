//! `dead replay`: shows what would happen, asks, moves the letters, watches them, and reports what was done.

use super::asking::Asking;
use super::filter::{self, LetterFilter};
use super::letter::Letter;
use super::preview::Preview;
use super::rate_limit::{Rate, share};
use super::run::{Options, ReplayEnd, Run};
use super::{CommandContext, LockedLetters, letters};
use crate::cli::ReplayArgs;
use crate::config::parse_duration;
use crate::observe::audit::AuditedAction;
use crate::ops::{Failure, agreed, print, usage};
use crate::plan::EventSummary;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;

impl Options {
    fn read(args: &ReplayArgs, now: Timestamp) -> Result<Options, Failure> {
        fn read<T>(problems: &mut Vec<String>, option: &str, result: Result<T, String>) -> Option<T> {
            result.map_err(|why| problems.push(format!("--{option}: {why}"))).ok()
        }
        let (filter, mut problems) = match LetterFilter::new(&args.selection, now) {
            Ok(filter) => (Some(filter), Vec::new()),
            Err(problems) => (None, problems),
        };
        let canary = read(&mut problems, "canary", filter::count(&args.canary));
        let deadline = read(&mut problems, "deadline", parse_duration(&args.deadline));
        let rate = read(&mut problems, "rate", Rate::parse(&args.rate));
        let abort_above = read(&mut problems, "abort-above", share(&args.abort_above));
        match (filter, canary, deadline, rate, abort_above) {
            (Some(filter), Some(canary), Some(deadline), Some(rate), Some(abort_above)) => {
                Ok(Options { filter, canary, deadline, rate, abort_above, is_watched: args.wait })
            }
            _ => Err(usage(problems)),
        }
    }
}

/// Replays letters, after asking for confirmation unless told not to; or says what would happen.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the operator did not agree, the replay was stopped, letters
/// that were waited for died again, or the broker refuses or is gone (1).
pub async fn replay(args: &ReplayArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let options = Options::read(args, now)?;
    let mut session = LockedLetters::open(&args.integration, args.pile.pile(), context).await?;
    let asking = Asking::new(&session.settings, &session.integration);
    let forecast = if args.dry_run {
        dry_run(&session, &asking, &options, now, context.as_json).await?
    } else {
        forecast(&session, &asking, &options, now).await?
    };
    if args.dry_run || forecast.asked == 0 {
        session.letters.close().await;
        print(&forecast.text(context.as_json))?;
        return options.filter.found(forecast.asked).map_err(Failure::Failed);
    }
    let question = format!("replay {} under {}?", forecast.summary(), session.integration.name);
    if !args.yes && !agreed(&question, "this triggers real campaigns")? {
        return Err(Failure::Failed("nothing was replayed".to_owned()));
    }
    session.audit(AuditedAction::DeadReplay, args.pile.pile(), &options.filter, Some(forecast.asked.into())).await;
    session.letters.begin_to_remove().await?;
    let ended = Run::begin(&session, &asking, &options, now).await?.finish().await;
    session.letters.close().await;
    tell(&ended, forecast.asked, &options, context.as_json)
}

/// What would become of the letters.
#[derive(Default)]
struct Forecast {
    asked: u32,
    previews: BTreeMap<Preview, u32>,
}

impl Forecast {
    fn add(&mut self, preview: Preview) {
        self.asked += 1;
        *self.previews.entry(preview).or_default() += 1;
    }

    /// How many would go, and of how many if some would stay.
    fn going(&self) -> String {
        let stay: u32 = self.previews.iter().filter(|(preview, _)| preview.stays()).map(|(_, count)| count).sum();
        let all = letters(self.asked);
        if stay == 0 { all } else { format!("{} of {all}", self.asked - stay) }
    }

    fn summary(&self) -> String {
        let parts: Vec<String> = self.previews.iter().map(|(preview, count)| format!("{count} {preview}")).collect();
        format!("{} ({})", self.going(), parts.join(", "))
    }

    fn text(&self, as_json: bool) -> String {
        if as_json {
            let preview = |(preview, count): (&Preview, &u32)| json!({ "outlook": preview.word(), "code": preview.code(), "letters": count });
            let previews: Vec<_> = self.previews.iter().map(preview).collect();
            return format!("{}\n", json!({ "asked": self.asked, "outlooks": previews }));
        }
        if self.asked == 0 {
            return "no letter matches; nothing to replay\n".to_owned();
        }
        let rows = self.previews.iter().map(|(preview, count)| format!("{count:>9}  {preview}\n"));
        format!("{} would be replayed\n{}", self.going(), rows.collect::<String>())
    }
}

async fn forecast(
    session: &LockedLetters,
    asking: &Asking<'_>,
    options: &Options,
    now: Timestamp,
) -> Result<Forecast, Failure> {
    let mut forecast = Forecast::default();
    let mut taking = options.filter.taking();
    session
        .browse(async |letter| {
            if !taking.takes(&letter) {
                return Ok(false);
            }
            let preview = asking.quick(&letter, now).await;
            forecast.add(preview);
            Ok(!preview.stays())
        })
        .await?;
    Ok(forecast)
}

/// A row for each letter, then the counts.
async fn dry_run(
    session: &LockedLetters,
    asking: &Asking<'_>,
    options: &Options,
    now: Timestamp,
    as_json: bool,
) -> Result<Forecast, Failure> {
    asking.records().await;
    let mut forecast = Forecast::default();
    let mut taking = options.filter.taking();
    session
        .browse(async |letter| {
            if taking.takes(&letter) {
                let (_, preview) = asking.preview(&letter, now).await?;
                forecast.add(preview);
                print(&dry_row(&letter, preview, as_json))?;
            }
            Ok(false)
        })
        .await?;
    Ok(forecast)
}

fn dry_row(letter: &Letter<'_>, preview: Preview, as_json: bool) -> String {
    let summary = letter.event().map(EventSummary::of).unwrap_or_default();
    if as_json {
        let (kind, id) = (summary.kind, summary.id);
        let line = json!({
            "letter": letter.id(), "type": kind, "event_id": id, "reason": letter.reason.map(crate::verdict::DeadReason::code),
            "outlook": preview.word(), "code": preview.code(),
        });
        return format!("{line}\n");
    }
    let (kind, id) = (summary.kind.unwrap_or("-"), summary.id.unwrap_or_else(|| "-".to_owned()));
    format!("{}  {:25}  {kind:13}  {id:36}  {preview}\n", letter.id(), letter.reason_code())
}

/// Reports what was asked for, what was done, what was not done, and why.
fn tell(ended: &ReplayEnd, asked: u32, options: &Options, as_json: bool) -> Result<(), Failure> {
    let tally = &ended.tally;
    let left_invalid: u32 = ended.invalid.values().sum();
    let untouched = asked.saturating_sub(tally.sent() + left_invalid);
    let stopped = ended.stopped.as_ref().map(|why| format!("{why}{}", failed(&tally.failures)));
    if as_json {
        print(&format!(
            "{}\n",
            json!({
                "asked": asked, "sent": tally.sent(), "delivered": tally.delivered, "skipped": tally.skipped,
                "dead_again": tally.dead, "on_their_way": tally.open(), "still_invalid": ended.invalid,
                "first_attempts_failed": tally.failures, "untouched": untouched, "stopped": stopped, "seconds": ended.seconds,
            })
        ))?;
    } else {
        let count = |codes: &BTreeMap<String, u32>| codes.values().sum::<u32>();
        print(&format!(
            "asked       {asked}\nsent        {}{}\ndelivered   {}\nskipped     {}{}\ndead again  {}{}\non the way  {}\nleft        {}{}\n",
            tally.sent(),
            speed(tally.sent(), ended.seconds),
            tally.delivered,
            count(&tally.skipped),
            codes(&tally.skipped),
            tally.dead_again(),
            codes(&tally.dead),
            tally.open(),
            untouched + left_invalid,
            why_left(&ended.invalid, untouched, options.filter.limit.is_some()),
        ))?;
    }
    match stopped {
        Some(why) => {
            let again =
                "those that were not sent are still in the queue; once the cause is fixed, the same command continues";
            Err(Failure::Failed(format!("stopped: {why}; {again}")))
        }
        None if options.is_watched && tally.dead_again() > 0 => {
            Err(Failure::Failed(format!("{} died again", letters(tally.dead_again()))))
        }
        None => Ok(()),
    }
}

/// What became of first attempts that failed.
fn failed(failures: &BTreeMap<String, u32>) -> String {
    if failures.is_empty() {
        String::new()
    } else {
        let is_refused = failures.keys().any(|failure| failure.starts_with("misconfigured"));
        let key = "; the worker may have a different key than this command: one from the environment needs a restart";
        format!("; failed first attempts: {}{}", codes(failures).trim_start(), if is_refused { key } else { "" })
    }
}

/// How long it took, and how fast it was if that says something.
fn speed(sent: u32, seconds: f64) -> String {
    let rate = || format!(", {:.0}/s", f64::from(sent) / seconds);
    if sent == 0 {
        String::new()
    } else {
        format!("  in {seconds:.1} s{}", if seconds < 1.0 || sent < 2 { String::new() } else { rate() })
    }
}

fn codes<K: AsRef<str>>(codes: &BTreeMap<K, u32>) -> String {
    let parts: Vec<String> = codes.iter().map(|(code, count)| format!("{count} {}", code.as_ref())).collect();
    if parts.is_empty() { String::new() } else { format!("  ({})", parts.join(", ")) }
}

fn why_left(invalid: &BTreeMap<&'static str, u32>, untouched: u32, is_limited: bool) -> String {
    match (invalid.is_empty(), untouched) {
        (true, 0) if is_limited => "  of those asked for: --limit leaves others".to_owned(),
        (true, _) => String::new(),
        (false, 0) => format!("{}: they would die again at once", codes(invalid)),
        (false, _) => format!("{}: they would die again at once; {untouched} not reached", codes(invalid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_and_a_single_letter_have_no_speed() {
        assert_eq!(speed(0, 0.0), "");
        assert_eq!(speed(1, 0.000_000_2), "  in 0.0 s");
        assert_eq!(speed(1, 60.0), "  in 60.0 s");
        assert_eq!(speed(1_000, 2.5), "  in 2.5 s, 400/s");
    }
}
