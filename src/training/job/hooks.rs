//! Which of the user's programs are told of what.

use serde_json::{Value, json};

use super::events::{JobAction, SessionOutcome};
use super::machine::JobMachine;
use crate::daemon::hooks::HookCall;
use crate::session::clock::ClockReading;
use ckptd_core::config::HookMoment;
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;
use ckptd_core::store::layout;
use ckptd_history::record::HistoryEvent;

impl JobMachine {
    /// Has the program for `moment` told, where there is one; `more` is what only this moment has.
    pub(super) fn tell_hook(&mut self, moment: HookMoment, more: Value, now: ClockReading) {
        let Some(command) = self.config.hooks.on.get(&moment).filter(|command| !command.is_empty()).cloned() else {
            return;
        };
        let saved = self.progress.last_verified.as_ref().map(|last| last.step);
        let mut document = json!({
            "event": moment.name(),
            "time": now.wall,
            "job": self.config.job.name,
            "store": self.config.job.store,
            "host": rustix::system::uname().nodename().to_string_lossy(),
            "step": self.progress.step,
            "total_steps": self.config.train.steps,
            "loss": self.progress.loss,
            "saved_step": saved,
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        self.act(JobAction::Tell(Box::new(HookCall { moment, command, document })));
    }

    /// A snapshot is not what was written.
    pub(super) fn keep_quarantined(&mut self, id: &SnapshotId, reason: &str, now: ClockReading) {
        self.tell_hook(HookMoment::Quarantined, json!({ "snapshot": id, "reason": reason }), now);
        let step = layout::step_of(id).unwrap_or(0);
        let (id, reason) = (id.to_string(), reason.to_owned());
        self.keep(HistoryEvent::SnapshotQuarantined { step, id, reason }, now);
    }

    /// How the session ended.
    pub(super) fn tell_end(&mut self, outcome: &Result<SessionOutcome>, why: &str, now: ClockReading) {
        let moment = match outcome {
            Ok(SessionOutcome::Finished) => HookMoment::Finished,
            Ok(SessionOutcome::Resume | SessionOutcome::BudgetOver) => HookMoment::SessionOver,
            Err(_) => HookMoment::Failed,
        };
        self.tell_hook(moment, json!({ "why": why }), now);
    }
}
