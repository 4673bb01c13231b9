//! Slurm: when the allocation ends.
//!
//! The end stands in SLURM_JOB_END_TIME where the cluster sets it; else squeue is asked, seldom, since it costs the
//! cluster's controller: limits are changed while jobs run. Deliberately not here: the signals that Slurm sends
//! (daemon/signals).
//! Source: slurm.schedmd.com/sbatch.html (output environment variables), squeue.html (--format, SLURM_TIME_FORMAT).

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::program;
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer};

/// Between two questions to squeue.
const INTERVAL: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(60);

pub struct SlurmSource {
    job: String,
    /// SLURM_JOB_END_TIME, as it is.
    end_time: Option<String>,
}

impl SlurmSource {
    /// `None` outside of an allocation.
    pub fn here() -> Option<SlurmSource> {
        let job = std::env::var("SLURM_JOB_ID").ok().filter(|job| is_job(job))?;
        Some(SlurmSource { job, end_time: std::env::var("SLURM_JOB_END_TIME").ok() })
    }
}

/// It becomes an argument of squeue.
fn is_job(text: &str) -> bool {
    !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_digit())
}

impl NoticeSource for SlurmSource {
    fn name(&self) -> &'static str {
        "Slurm"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let from_environment = self.end_time.as_deref().and_then(|text| parse_end(text, &TimeZone::UTC).ok().flatten());
        let (end, again) = match from_environment {
            Some(end) => (Some(end), None),
            None => {
                let format = [("SLURM_TIME_FORMAT", "%s")];
                let answer = program::output("squeue", &["-h", "-j", &self.job, "-o", "%e"], &format)?;
                (parse_end(&answer, &TimeZone::system())?, Some(INTERVAL))
            }
        };
        let end =
            end.map(|at| Announcement { text: format!("the allocation ends at {at}"), end: AnnouncedEnd::At(at) });
        Ok(SourceAnswer { end, again, ..SourceAnswer::default() })
    }

    fn retry_after(&self) -> Duration {
        RETRY
    }
}

/// A job's end as Slurm writes it: seconds since 1970 or a local time; `None`: it has no end.
pub fn parse_end(text: &str, zone: &TimeZone) -> Result<Option<Timestamp>, String> {
    let text = text.trim();
    if matches!(text, "N/A" | "NONE" | "Unknown" | "UNLIMITED" | "0") {
        return Ok(None);
    }
    let refused = || format!("{:?} is no time", text.chars().take(40).collect::<String>());
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse().map_err(|_| refused())?;
        return Timestamp::from_second(seconds).map(Some).map_err(|_| refused());
    }
    let local: DateTime = text.parse().map_err(|_| refused())?;
    zone.to_timestamp(local).map(Some).map_err(|_| refused())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_seconds_and_as_a_local_time() {
        let end: Timestamp = "2026-11-24T08:22:00Z".parse().unwrap();
        assert_eq!(parse_end("1795508520\n", &TimeZone::UTC).unwrap(), Some(end));
        assert_eq!(parse_end("2026-11-24T08:22:00", &TimeZone::UTC).unwrap(), Some(end));
        let berlin = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(parse_end("2026-11-24T09:22:00\n", &berlin).unwrap(), Some(end));
        for none in ["N/A", "NONE\n", "Unknown"] {
            assert_eq!(parse_end(none, &TimeZone::UTC).unwrap(), None);
        }
        for bad in ["", "tomorrow", "-5", "99999999999999999999", "12345678901234", "2026-13-01T00:00:00", "1 2"] {
            assert!(parse_end(bad, &TimeZone::UTC).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environments_word_is_enough_and_a_job_is_a_number() {
        let mut slurm = SlurmSource { job: "1".into(), end_time: Some("1795508520".into()) };
        let answer = slurm.ask().unwrap();
        assert_eq!(
            (answer.end.unwrap().text.as_str(), answer.again),
            ("the allocation ends at 2026-11-24T08:22:00Z", None)
        );
        assert!(is_job("4711"));
        for bad in ["", "-h", "1;ls", "4711_2"] {
            assert!(!is_job(bad), "{bad}");
        }
    }
}
