//! The metrics of jobs, in the text format of Prometheus or as OpenMetrics.
//!
//! Invariant: names follow the conventions of Prometheus; the only labels are the job's name and words of closed lists,
//! so that no series comes up with time. A figure that is not known has no sample. Deliberately not here: HTTP.

use std::fmt::Write;

use ckptd_history::totals::{DURATION_BOUNDS, HistoryTotals};

use crate::view::JobView;

/// In which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// Version 1.0.0.
    OpenMetrics,
}

impl MetricsFormat {
    /// The one that `accept`, a header of a request, prefers.
    pub fn preferred(accept: Option<&str>) -> MetricsFormat {
        let asks = |wanted: &str| {
            let quality = accept.unwrap_or_default().split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                (parts.next()? == wanted).then_some(())?;
                Some(parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0))
            });
            quality.fold(0.0, f64::max)
        };
        let open = asks("application/openmetrics-text");
        if open > 0.0 && open >= asks("text/plain") { MetricsFormat::OpenMetrics } else { MetricsFormat::Prometheus }
    }

    /// What a response says that it is.
    pub const fn content_type(self) -> &'static str {
        match self {
            MetricsFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            MetricsFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MetricKind {
    Gauge,
    Counter,
}

/// A job with its counters.
pub struct MeasuredJob<'a> {
    /// The job.
    pub view: &'a JobView,
    /// What was done in all its sessions.
    pub totals: &'a HistoryTotals,
    /// What its training lost, in steps.
    pub lost_steps: u64,
}

/// A metric that is one number per job: its name, what it is, what it means, and the number.
type PlainMetric = (&'static str, MetricKind, &'static str, fn(&MeasuredJob<'_>) -> Option<f64>);

const PLAIN: [PlainMetric; 29] = [
    ("ckptd_training_steps", MetricKind::Counter, "Steps that were trained, lost ones included.", |job| {
        Some(job.totals.steps as f64)
    }),
    ("ckptd_training_lost_steps", MetricKind::Counter, "Steps that were trained and lost.", |job| {
        Some(job.lost_steps as f64)
    }),
    ("ckptd_training_step", MetricKind::Gauge, "Steps that the training has.", |job| Some(job.view.step as f64)),
    ("ckptd_training_target_steps", MetricKind::Gauge, "Steps of the whole training.", |job| {
        job.view.total_steps.map(|steps| steps as f64)
    }),
    ("ckptd_training_loss", MetricKind::Gauge, "Loss of the last step; NaN where it is not finite.", |job| {
        if job.view.is_diverged { Some(f64::NAN) } else { job.view.loss }
    }),
    ("ckptd_training_loss_finite", MetricKind::Gauge, "1 where the loss of the last step is finite, else 0.", |job| {
        Some(if job.view.is_diverged { 0.0 } else { 1.0 })
    }),
    ("ckptd_training_learning_rate", MetricKind::Gauge, "Learning rate of the last step.", |job| {
        job.view.learning_rate
    }),
    ("ckptd_training_tokens_per_second", MetricKind::Gauge, "Speed of the last few steps.", |job| {
        job.view.tokens_per_second
    }),
    (
        "ckptd_training_expected_end_timestamp_seconds",
        MetricKind::Gauge,
        "When the training ends at this pace.",
        |job| job.view.ends_ms.map(seconds),
    ),
    ("ckptd_job_live", MetricKind::Gauge, "1 while a session is under way, else 0.", |job| {
        Some(f64::from(u8::from(job.view.is_live)))
    }),
    ("ckptd_job_problems", MetricKind::Gauge, "What is wrong now, as a number of problems.", |job| {
        Some(job.view.problems.len() as f64)
    }),
    ("ckptd_sessions", MetricKind::Counter, "Sessions that began.", |job| Some(job.totals.sessions as f64)),
    ("ckptd_session_start_timestamp_seconds", MetricKind::Gauge, "When the session under way began.", |job| {
        job.view.plan.began_ms.map(seconds)
    }),
    ("ckptd_session_end_timestamp_seconds", MetricKind::Gauge, "When the session under way ends.", |job| {
        job.view.plan.deadline_ms.map(seconds)
    }),
    ("ckptd_worker_failures", MetricKind::Counter, "Failures of the worker.", |job| {
        Some(job.totals.worker_failures as f64)
    }),
    ("ckptd_snapshots_committed", MetricKind::Counter, "Snapshots that became durable.", |job| {
        Some(job.totals.committed as f64)
    }),
    ("ckptd_snapshots_verified", MetricKind::Counter, "Snapshots that were read back.", |job| {
        Some(job.totals.verified as f64)
    }),
    ("ckptd_snapshots_failed", MetricKind::Counter, "Snapshots that could not be written.", |job| {
        Some(job.totals.failed as f64)
    }),
    ("ckptd_snapshots_quarantined", MetricKind::Counter, "Snapshots that were not what was written.", |job| {
        Some(job.totals.quarantined as f64)
    }),
    ("ckptd_snapshot_written_bytes", MetricKind::Counter, "Bytes of snapshots that became durable.", |job| {
        Some(job.totals.written_bytes as f64)
    }),
    ("ckptd_snapshot_interval_seconds", MetricKind::Gauge, "Time between snapshots, where it is time.", |job| {
        job.view.plan.interval_seconds
    }),
    (
        "ckptd_last_verified_snapshot_step",
        MetricKind::Gauge,
        "Steps of the newest snapshot that was read back.",
        |job| job.view.last_verified.map(|saved| saved.step as f64),
    ),
    (
        "ckptd_last_verified_snapshot_timestamp_seconds",
        MetricKind::Gauge,
        "When the newest snapshot that was read back was made.",
        |job| job.view.last_verified.map(|saved| seconds(saved.at_ms)),
    ),
    ("ckptd_store_snapshots", MetricKind::Gauge, "Snapshots in the store.", |job| {
        Some(job.view.stored.snapshots as f64)
    }),
    ("ckptd_store_bytes", MetricKind::Gauge, "Bytes of the snapshots in the store, quarantine included.", |job| {
        Some(job.view.stored.bytes as f64)
    }),
    ("ckptd_replicated_snapshots", MetricKind::Counter, "Snapshots that arrived at the remote.", |job| {
        job.view.remote.as_ref().map(|_| job.totals.replicated as f64)
    }),
    ("ckptd_replicated_bytes", MetricKind::Counter, "Bytes that were sent for them.", |job| {
        job.view.remote.as_ref().map(|_| job.totals.replicated_bytes as f64)
    }),
    (
        "ckptd_replication_missing_snapshots",
        MetricKind::Gauge,
        "Verified snapshots of this session that are not at the remote.",
        |job| job.view.remote.as_ref().map(|remote| remote.missing as f64),
    ),
    (
        "ckptd_replication_last_timestamp_seconds",
        MetricKind::Gauge,
        "When the newest snapshot arrived at the remote.",
        |job| job.totals.replicated_ms.map(seconds),
    ),
];

/// The words of a job's state.
const STATES: [&str; 6] = ["starting", "training", "stopping", "stopped", "finished", "failed"];
const SNAPSHOT_SECONDS: &str = "ckptd_snapshot_duration_seconds";

/// What there is to know of `jobs`.
pub fn exposition(jobs: &[MeasuredJob<'_>], format: MetricsFormat) -> String {
    let mut text = MetricText { text: String::new(), format };
    text.build_info();
    for (name, kind, help, value) in PLAIN {
        text.family(name, kind, help);
        for job in jobs {
            if let Some(value) = value(job) {
                text.sample(name, kind, &[("job_name", &job.view.name)], value);
            }
        }
    }
    text.family("ckptd_job_state", MetricKind::Gauge, "1 for the state that the job is in, else 0.");
    for job in jobs {
        for state in STATES {
            let is = f64::from(u8::from(job.view.state == state));
            text.sample("ckptd_job_state", MetricKind::Gauge, &[("job_name", &job.view.name), ("state", state)], is);
        }
    }
    text.histogram(jobs);
    if format == MetricsFormat::OpenMetrics {
        text.text.push_str("# EOF\n");
    }
    text.text
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1e3
}

struct MetricText {
    text: String,
    format: MetricsFormat,
}

impl MetricText {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    fn build_info(&mut self) {
        let is_open = self.format == MetricsFormat::OpenMetrics;
        let (name, kind) = if is_open { ("ckptd_build", "info") } else { ("ckptd_build_info", "gauge") };
        self.line(format_args!("# HELP {name} The version of ckptd."));
        self.line(format_args!("# TYPE {name} {kind}"));
        self.line(format_args!("ckptd_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    }

    fn family(&mut self, name: &str, kind: MetricKind, help: &str) {
        let is_total = kind == MetricKind::Counter && self.format == MetricsFormat::Prometheus;
        let suffix = if is_total { "_total" } else { "" };
        let kind = if kind == MetricKind::Counter { "counter" } else { "gauge" };
        self.line(format_args!("# HELP {name}{suffix} {help}"));
        self.line(format_args!("# TYPE {name}{suffix} {kind}"));
    }

    fn sample(&mut self, name: &str, kind: MetricKind, labels: &[(&str, &str)], value: f64) {
        let suffix = if kind == MetricKind::Counter { "_total" } else { "" };
        let labels = labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text)));
        let labels = labels.collect::<Vec<_>>().join(",");
        self.line(format_args!("{name}{suffix}{{{labels}}} {value}"));
    }

    fn histogram(&mut self, jobs: &[MeasuredJob<'_>]) {
        self.line(format_args!("# HELP {SNAPSHOT_SECONDS} How long snapshots were written until they were durable."));
        self.line(format_args!("# TYPE {SNAPSHOT_SECONDS} histogram"));
        for job in jobs {
            let (name, durations) = (escaped(&job.view.name), &job.totals.snapshot_seconds);
            let mut count = 0;
            let bounds = DURATION_BOUNDS.iter().map(|bound| format!("{bound:?}")).chain(["+Inf".to_owned()]);
            for (class, bound) in durations.classes.iter().zip(bounds) {
                count += class;
                self.line(format_args!("{SNAPSHOT_SECONDS}_bucket{{job_name=\"{name}\",le=\"{bound}\"}} {count}"));
            }
            self.line(format_args!("{SNAPSHOT_SECONDS}_sum{{job_name=\"{name}\"}} {}", durations.sum));
            self.line(format_args!("{SNAPSHOT_SECONDS}_count{{job_name=\"{name}\"}} {count}"));
        }
    }
}

/// A text between quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_given_to_who_prefers_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(MetricsFormat::preferred(Some(prometheus)), MetricsFormat::OpenMetrics);
        for accept in [None, Some("*/*"), Some("text/plain"), Some("application/openmetrics-text;q=0")] {
            assert_eq!(MetricsFormat::preferred(accept), MetricsFormat::Prometheus, "{accept:?}");
        }
    }

    #[test]
    fn a_name_with_quotes_and_lines_stays_one_label() {
        let view = JobView { name: "a \"job\"\\\nx 1".into(), ..JobView::default() };
        let job = MeasuredJob { view: &view, totals: &HistoryTotals::default(), lost_steps: 0 };
        let text = exposition(&[job], MetricsFormat::Prometheus);
        assert!(text.contains(r#"ckptd_training_step{job_name="a \"job\"\\\nx 1"} 0"#), "{text}");
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("ckptd_")), "{text}");
    }
}
