//! Slurm: when the allocation ends.
//!
//! SLURM_JOB_END_TIME, where the cluster sets it, is the first word and no more: limits are changed while jobs run, and
//! an environment outlives its allocation. squeue has the last word. It is asked by the id that is this task's alone:
//! in an array SLURM_JOB_ID may be the whole array's. An allocation that Slurm does not know is told and not obeyed.
//! Deliberately not here: the signals that Slurm sends (daemon/signals).
//! Source: slurm.schedmd.com/sbatch.html (output environment variables), squeue.html (--format, SLURM_TIME_FORMAT).

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tracing::warn;

use super::program;
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer, ask_again};

/// Between two questions to squeue where there is no end.
const INTERVAL: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(60);
/// After the environment's word, and where the allocation is not known.
const SOON: Duration = Duration::from_secs(20);

/// The allocation that this process is in, as far as its environment says.
pub struct SlurmSource {
    /// `4711`, or of a task of an array `4700_3`.
    job: String,
    /// What SLURM_JOB_END_TIME says, until it was taken.
    first_word: Option<Timestamp>,
    /// That squeue does not know the job was told.
    is_told: bool,
}

impl SlurmSource {
    /// `None` outside of an allocation.
    pub fn here() -> Option<SlurmSource> {
        SlurmSource::of(&|name| std::env::var(name).ok())
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Option<SlurmSource> {
        let number = |name: &str| variable(name).filter(|text| is_number(text));
        let job = number("SLURM_JOB_ID")?;
        let task = number("SLURM_ARRAY_JOB_ID").zip(number("SLURM_ARRAY_TASK_ID"));
        let first_word = variable("SLURM_JOB_END_TIME");
        Some(SlurmSource {
            job: task.map_or(job, |(array, task)| format!("{array}_{task}")),
            first_word: first_word.and_then(|text| parse_end(&text, &TimeZone::UTC).ok().flatten()),
            is_told: false,
        })
    }

    /// What squeue says of this job's end; `Err(None)`: it does not know the job.
    fn end(&self) -> Result<Option<Timestamp>, Option<String>> {
        let ours: Vec<String> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok().filter(|name| name.starts_with("SQUEUE_")))
            .collect();
        // What the user has set for squeue is for eyes: it may hide the job.
        let mut environment: Vec<(&str, Option<&str>)> = ours.iter().map(|name| (name.as_str(), None)).collect();
        environment.push(("SLURM_TIME_FORMAT", Some("%s")));
        let answer = program::output("squeue", &["-h", "-j", &self.job, "-o", "%e"], &environment);
        let answer = answer.map_err(|what| Some(what).filter(|what| !what.contains("Invalid job id")))?;
        parse_ends(&answer).map_err(Some)?.ok_or(None)
    }
}

/// It becomes an argument of squeue.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_digit())
}

impl NoticeSource for SlurmSource {
    fn name(&self) -> &'static str {
        "Slurm"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let now = Timestamp::now();
        if let Some(end) = self.first_word.take().filter(|end| *end > now) {
            return Ok(SourceAnswer { end: Some(announced(end)), again: Some(SOON), ..SourceAnswer::default() });
        }
        match self.end() {
            Ok(None) => Ok(SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() }),
            Ok(Some(end)) => {
                let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                Ok(SourceAnswer { end: Some(announced(end)), again: Some(ask_again(left)), ..SourceAnswer::default() })
            }
            Err(Some(what)) => Err(what),
            Err(None) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    warn!(
                        "Slurm: the environment speaks of job {}, which is over: its end is not obeyed; \
                         unset SLURM_JOB_ID, or set [session] slurm = false",
                        self.job
                    );
                }
                Ok(SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() })
            }
        }
    }

    fn retry_after(&self) -> Duration {
        RETRY
    }
}

fn announced(end: Timestamp) -> Announcement {
    Announcement { text: format!("the allocation ends at {end}"), end: AnnouncedEnd::At(end) }
}

/// The earliest end in squeue's answer, which has a line for each part of a job; `None`: it knows no such job, at
/// least not as one that runs. `Some(None)`: it has no end.
pub fn parse_ends(answer: &str) -> Result<Option<Option<Timestamp>>, String> {
    let lines = answer.lines().filter(|line| !line.trim().is_empty());
    let ends: Vec<Option<Timestamp>> =
        lines.map(|line| parse_end(line, &TimeZone::system())).collect::<Result<_, String>>()?;
    Ok((!ends.is_empty()).then(|| ends.into_iter().flatten().min()))
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
    fn of_several_lines_the_earliest_end_counts_and_no_line_is_no_job() {
        let second = |n: i64| Timestamp::from_second(n).unwrap();
        assert_eq!(parse_ends("1795508520\n1795508500\n").unwrap(), Some(Some(second(1_795_508_500))));
        assert_eq!(parse_ends("N/A\n1795508520\n").unwrap(), Some(Some(second(1_795_508_520))));
        assert_eq!(parse_ends("UNLIMITED\n").unwrap(), Some(None));
        assert_eq!(parse_ends("\n").unwrap(), None);
        assert!(parse_ends("1795508520\nsoon\n").is_err());
    }

    fn source(variables: &[(&str, &str)]) -> Option<SlurmSource> {
        SlurmSource::of(&|name| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned()))
    }

    #[test]
    fn a_job_is_a_number_and_a_task_of_an_array_has_an_id_of_its_own() {
        let job = |variables: &[(&str, &str)]| source(variables).map(|source| source.job);
        assert_eq!(job(&[("SLURM_JOB_ID", "4711")]).as_deref(), Some("4711"));
        let array = [("SLURM_JOB_ID", "4700"), ("SLURM_ARRAY_JOB_ID", "4700"), ("SLURM_ARRAY_TASK_ID", "3")];
        assert_eq!(job(&array).as_deref(), Some("4700_3"));
        assert_eq!(job(&array[1..]), None);
        for bad in ["", "-h", "1;ls", "4711_2"] {
            assert_eq!(job(&[("SLURM_JOB_ID", bad)]), None, "{bad}");
            let half = [("SLURM_JOB_ID", "1"), ("SLURM_ARRAY_JOB_ID", "1"), ("SLURM_ARRAY_TASK_ID", bad)];
            assert_eq!(job(&half).as_deref(), Some("1"), "{bad}");
        }
    }

    #[test]
    fn the_environments_word_is_the_first_one_only_and_none_when_it_is_past() {
        let mut slurm = source(&[("SLURM_JOB_ID", "1"), ("SLURM_JOB_END_TIME", "4102444800")]).unwrap();
        let answer = slurm.ask().unwrap();
        assert_eq!(answer.end.unwrap().text, "the allocation ends at 2100-01-01T00:00:00Z");
        assert_eq!((answer.again, slurm.first_word), (Some(SOON), None));
    }
}
