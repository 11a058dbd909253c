//! The exporter: takes ended spans from the queue and posts them in batches.
//!
//! A collector that is unreachable, is slow or refuses costs its spans and nothing else: spans that it did not
//! take are counted as dropped, logged at most once a minute, and not sent again.

use super::{FinishedSpan, Tracer, request};
use crate::gate::connections::Connections;
use crate::gate::{describe, read_bounded};
use crate::observe::metrics::Metrics;
use crate::task;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The most spans in one request.
const MOST_IN_BATCH: usize = 512;
/// The longest that a span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(2);
/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the last spans may hold up the end of the process.
const FLUSH: Duration = Duration::from_secs(2);
/// How often failures are logged, at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A running exporter.
#[derive(Debug)]
pub struct Exporter {
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts an exporter to a checked endpoint, and returns it with the tracer whose spans it takes.
    ///
    /// # Errors
    /// The TLS library cannot be set up, for example without any system certificates.
    pub fn start(endpoint: &str, metrics: &Metrics) -> anyhow::Result<(Exporter, Tracer)> {
        let connections = Connections::new(None, |client| client.timeout(TIMEOUT))?;
        let (tracer, spans) = Tracer::new(metrics);
        let stopping = CancellationToken::new();
        let stopped = stopping.clone();
        let mut collector =
            Collector { connections, endpoint: endpoint.to_owned(), metrics: metrics.clone(), told: None };
        let mut spans = spans;
        let task = task::kept("span exporter", async move || run(&mut collector, &mut spans, &stopped).await);
        Ok((Exporter { stopping, task: tokio::spawn(task) }, tracer))
    }

    /// Sends the spans that wait, for two seconds at most.
    pub async fn finish(self) {
        self.stopping.cancel();
        if tokio::time::timeout(FLUSH, self.task).await.is_err() {
            tracing::warn!("the collector did not accept the last spans in time");
        }
    }
}

async fn run(collector: &mut Collector, spans: &mut mpsc::Receiver<FinishedSpan>, stopping: &CancellationToken) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            () = gather(spans, &mut batch) => collector.export(&std::mem::take(&mut batch)).await,
        }
    }
    while let Ok(span) = spans.try_recv() {
        batch.push(span);
    }
    for batch in batch.chunks(MOST_IN_BATCH) {
        collector.export(batch).await;
    }
}

/// Fills a batch. Spans that are in it stay in it when this is cancelled.
async fn gather(spans: &mut mpsc::Receiver<FinishedSpan>, batch: &mut Vec<FinishedSpan>) {
    spans.recv_many(batch, MOST_IN_BATCH).await;
    let full =
        async { while batch.len() < MOST_IN_BATCH && spans.recv_many(batch, MOST_IN_BATCH - batch.len()).await > 0 {} };
    // A batch that is not full in time goes as it is.
    let _ = tokio::time::timeout(GATHER, full).await;
}

struct Collector {
    connections: Connections,
    endpoint: String,
    metrics: Metrics,
    /// When a failure was last logged.
    told: Option<Instant>,
}

impl Collector {
    async fn export(&mut self, batch: &[FinishedSpan]) {
        if batch.is_empty() {
            return;
        }
        match self.post(batch).await {
            Ok(0) => {}
            Ok(refused) => self.lost(refused, "it refused them"),
            Err(why) => self.lost(batch.len() as u64, &why),
        }
    }

    /// Posts a batch. Returns how many spans of it the collector refused, or why it took none.
    async fn post(&self, batch: &[FinishedSpan]) -> Result<u64, String> {
        let post = |client: &reqwest::Client| {
            let post = client.post(&self.endpoint).header("content-type", "application/json");
            post.body(request(batch).to_string())
        };
        let sent = self.connections.send(post).await;
        let mut response = sent.map_err(|unanswered| describe(&unanswered.error.without_url()))?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        // The collector took the batch; an answer that breaks off does not say that it refused any of it.
        Ok(refused(&read_bounded(&mut response).await.unwrap_or_default()))
    }

    fn lost(&mut self, spans: u64, why: &str) {
        self.metrics.spans_dropped.inc_by(spans);
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(spans, why, "the collector did not accept spans; they are dropped");
        }
    }
}

/// How many spans a collector that took a batch says that it refused.
fn refused(answer: &[u8]) -> u64 {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_refused_is_read_in_both_spellings() {
        assert_eq!(refused(br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}"#), 3);
        assert_eq!(refused(br#"{"partialSuccess":{"rejectedSpans":2}}"#), 2);
        for none in ["", "{}", "<html>", r#"{"partialSuccess":{}}"#] {
            assert_eq!(refused(none.as_bytes()), 0, "{none}");
        }
    }
}
