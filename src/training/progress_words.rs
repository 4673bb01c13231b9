//! What is said of a running job: the log's line, the panel's text, the service manager's.
//!
//! Deliberately not here: how a panel is drawn (daemon/printer).

use std::time::Duration;

use jiff::Timestamp;

use super::progress::JobProgress;
use crate::daemon::report::{JobState, RanksReport};
use crate::daemon::service::ServiceFacts;
use ckptd_core::text::{rough_duration, significant};

impl JobProgress {
    /// What a line of the log says: "step 120/1000, loss 3.21, 4100 tokens/s".
    pub fn line_text(&self) -> String {
        let loss = match (self.loss, self.learning_rate) {
            (Some(loss), _) => format!(", loss {loss:.4}"),
            (None, Some(_)) if self.total_steps > 0 => ", loss not finite".to_owned(),
            // No step was made yet, or a script names no loss.
            (None, _) => String::new(),
        };
        let speed = self.tokens_per_second().filter(|speed| *speed > 0.0 || self.total_steps > 0);
        let speed = speed.map_or_else(String::new, |speed| format!(", {} tokens/s", count(speed)));
        let left = self.time_left().map_or_else(String::new, |left| format!(", {} to finish", rough_duration(left)));
        let rate = self.learning_rate.map_or_else(String::new, |rate| format!(", learning rate {}", significant(rate)));
        format!("{}{loss}{rate}{speed}{left}", self.place_text())
    }

    /// "step 120/1000", or without the end where only a script knows it.
    fn place_text(&self) -> String {
        match self.total_steps {
            0 => format!("step {}", self.step),
            total => format!("step {}/{total}", self.step),
        }
    }

    /// What stands behind the bar of the panel: what goes on, and how long it will.
    pub fn outlook_text(&self, now: Timestamp) -> String {
        let mut parts = Vec::new();
        match (&self.stage, self.state) {
            (Some((stage, Some(fraction))), _) => parts.push(format!("{stage} {:.0} %", fraction * 100.0)),
            (Some((stage, None)), _) => parts.push(stage.clone()),
            (None, JobState::Starting) => parts.push("starting".to_owned()),
            (None, JobState::Stopping) => parts.push("stopping".to_owned()),
            (None, _) => {}
        }
        parts.extend(self.ranks.as_ref().map(ranks_text));
        parts.extend(self.time_left().map(|left| format!("done in {}", rough_duration(left))));
        parts.extend(self.deadline.map(|deadline| format!("session ends in {}", rough_duration(age(now, deadline)))));
        parts.join(" · ")
    }

    /// The panel's second line: how well it goes, and what is safe.
    pub fn figures_text(&self, now: Timestamp) -> String {
        let mut parts = Vec::new();
        // What is wrong goes first: a narrow terminal cuts the rest.
        let problem = self.problem.as_ref().or(self.file_problem.as_ref()).map(|problem| format!("! {problem}"));
        let not_sent = self.remote.as_ref().and_then(|remote| remote.problem.as_ref());
        parts.extend(problem);
        parts.extend(not_sent.map(|problem| format!("! not replicated: {problem}")));
        parts.extend(self.loss.map(|loss| format!("loss {loss:.4}")));
        parts.extend(self.learning_rate.map(|rate| format!("learning rate {}", significant(rate))));
        parts.extend(self.tokens_per_second().map(|speed| format!("{} tokens/s", count(speed))));
        parts.push(match &self.last_verified {
            Some(last) => format!("step {} saved and verified {} ago", last.step, rough_duration(age(last.at, now))),
            None => "nothing saved yet".to_owned(),
        });
        parts.extend(self.remote.as_ref().map(|remote| match (remote.step, remote.missing) {
            (None, _) => "nothing replicated yet".to_owned(),
            (Some(step), 0) => format!("step {step} replicated"),
            (Some(step), missing) => format!("step {step} replicated, {missing} not yet"),
        }));
        parts.join(" · ")
    }

    /// What the service manager is told of.
    pub fn service_facts(&self) -> ServiceFacts {
        ServiceFacts {
            is_stopping: self.state == JobState::Stopping,
            goes_on: self.goes_on,
            has_worker: self.worker_pid.is_some(),
            status: self.status_text(),
        }
    }

    /// One line for the service manager: step, loss, what is safe.
    fn status_text(&self) -> String {
        let stage = self.stage.as_ref().map(|(stage, _)| stage.as_str());
        let at = self.place_text();
        let doing = match (self.state, stage) {
            (JobState::Starting, None) => "starting".to_owned(),
            (JobState::Starting, Some(stage)) => stage.to_owned(),
            (JobState::Training, _) => self.line_text(),
            (JobState::Stopping, _) => format!("{at}, stopping"),
            (JobState::Stopped, _) => format!("{at}, to be resumed"),
            (JobState::Finished, _) => format!("finished after {} steps", self.total_steps.max(self.step)),
            (JobState::Failed, _) => format!("{at}, failed"),
        };
        let safe = match &self.last_verified {
            Some(last) => format!("step {} saved and verified", last.step),
            None => "nothing saved yet".to_owned(),
        };
        format!("{doing}; {safe}")
    }
}

fn age(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// "950", "12.3k".
fn count(number: f64) -> String {
    if number < 1000.0 { format!("{number:.0}") } else { format!("{:.1}k", number / 1000.0) }
}

/// How many ranks there are, and which one the others wait for.
fn ranks_text(ranks: &RanksReport) -> String {
    let lag = ranks.slowest.zip(ranks.lag_ms.filter(|lag| *lag >= 1.0));
    let lag = lag.map_or_else(String::new, |(rank, lag)| format!(", {lag:.0} ms for rank {rank}"));
    format!("{} ranks{lag}", ranks.count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ckptd_core::config::RanksSection;
    use ckptd_core::protocol::RankProgress;

    use super::*;
    use crate::daemon::report::RemoteReport;

    #[test]
    fn the_panel_shows_ranks_replication_and_first_of_all_what_is_wrong() {
        let mut progress = JobProgress::new(10);
        let now = Timestamp::now();
        let rank = |rank, lag_ms| RankProgress { rank, step: 3, micro_batch: 0, silent_ms: 0.0, lag_ms };
        progress.ranks = RanksReport::of(&[rank(0, Some(0.2)), rank(1, Some(41.6))], &RanksSection::default());
        assert!(progress.outlook_text(now).contains("2 ranks, 42 ms for rank 1"), "{}", progress.outlook_text(now));
        let place = "s3://b/j".into();
        let remote = RemoteReport { place, step: Some(5), age_seconds: None, missing: 2, problem: None };
        progress.remote = Some(remote.clone());
        assert!(progress.figures_text(now).ends_with("step 5 replicated, 2 not yet"), "{}", progress.figures_text(now));
        progress.remote = Some(RemoteReport { problem: Some("s3://b is not there".into()), ..remote });
        progress.file_problem = Some("the job file is wrong".into());
        let text = progress.figures_text(now);
        assert!(text.starts_with("! the job file is wrong · ! not replicated: s3://b is not there"), "{text}");
        progress.problem = Some("the disk is full".into());
        assert!(progress.figures_text(now).starts_with("! the disk is full · "));
    }
}
