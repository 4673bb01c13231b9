//! After a sleep, and at an end that is past when first heard of: the sources are asked again, nothing is given up.
//!
//! Invariant: an end that a source of notices gave before the machine slept, or this process was stopped, ends nothing
//! until the source was asked again; where it stays past, the last snapshot is tried within `[session] grace`, since
//! nobody has killed anything yet. Deliberately not here: asking (notices).

use std::time::Duration;

use tracing::info;

use super::events::JobAction;
use super::machine::{JobMachine, OVERSLEPT, SourceQuestion};
use super::phase::JobPhase;
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::plan::{DeadlineSource, SessionDeadline};
use ckptd_core::text::rough_duration;

/// How long a source is waited for that was asked again: longer than it takes to answer, or to give up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);
/// Sources are not asked more often than that, whatever happens.
const QUESTION_INTERVAL: Duration = Duration::from_secs(10);

impl JobMachine {
    /// Takes note of the time: where much more of it has passed than a sleep of the loop takes, all stood still.
    pub(super) fn stay_awake(&mut self, now: ClockReading) {
        let slept = self.awake_at.replace(now.at).map_or(Duration::ZERO, |awake_at| now.at - awake_at);
        if slept < OVERSLEPT || matches!(self.phase, JobPhase::Ended) {
            return;
        }
        info!("this process stood still for {}; asking when the session ends", rough_duration(slept));
        if let JobPhase::Running(run) = &mut self.phase
            && let Some(counted_to) = &mut run.counted_to
        {
            // That was no training.
            *counted_to += slept;
        }
        if let Some(stop) = &mut self.stop {
            stop.by = stop.by.max(now.at + self.config.session.grace.0);
        }
        self.ask_sources(now);
    }

    /// Has all sources asked now, unless they just were.
    pub(super) fn ask_sources(&mut self, now: ClockReading) {
        if self.question.as_ref().is_none_or(|question| now.at >= question.asked + QUESTION_INTERVAL) {
            self.question = Some(SourceQuestion { asked: now.at, answered: Vec::new(), is_told: false });
            self.act(JobAction::AskSources);
        }
    }

    /// `source` has said what it knows.
    pub(super) fn answered(&mut self, source: &str) {
        if let Some(question) = &mut self.question {
            question.answered.push(source.to_owned());
        }
    }

    /// Until when `deadline`, which asks for an end now, is not obeyed since its source is being asked again. Where
    /// there is time left, half of it may pass so.
    pub(super) fn answer_awaited(&self, deadline: &SessionDeadline, now: ClockReading) -> Option<BootInstant> {
        let DeadlineSource::Notice(source) = &deadline.source else { return None };
        let question = self.question.as_ref().filter(|question| !question.answered.contains(source))?;
        let patience = match deadline.at - question.asked {
            Duration::ZERO => ANSWER_TIMEOUT,
            left => ANSWER_TIMEOUT.min(left / 2),
        };
        Some(question.asked + patience).filter(|until| now.at < *until)
    }

    /// `deadline` asks for an end now: whether its source is being asked again first, which is done here where it is
    /// past and that was not done yet. The newest state is saved meanwhile, since it may well be the end.
    pub(super) fn asks_first(&mut self, deadline: &SessionDeadline, now: ClockReading) -> bool {
        let DeadlineSource::Notice(source) = &deadline.source else { return false };
        if deadline.at <= now.at {
            self.ask_sources(now);
        }
        if self.answer_awaited(deadline, now).is_none() {
            return false;
        }
        if let Some(question) = self.question.as_mut().filter(|question| !question.is_told) {
            question.is_told = true;
            info!("{source}: the end of the session may have moved; it is asked again, and the newest state is saved");
            self.request_snapshot("the session's end may be past", now);
        }
        true
    }
}
