//! A job file that is changed while the job runs.

use tracing::{info, warn};

use super::events::JobAction;
use super::machine::JobMachine;
use super::phase::{JobPhase, WorkerPhase};
use crate::session::clock::ClockReading;
use ckptd_core::config::{Config, live};
use ckptd_core::error::Result;
use ckptd_core::protocol::AgentCommand;

impl JobMachine {
    /// Takes over what may change while running; a change that may not, or a file that is wrong, changes nothing.
    pub(super) fn reconfigured(&mut self, config: Result<Box<Config>>, now: ClockReading) {
        if matches!(self.phase, JobPhase::Ended) {
            return;
        }
        let config = match config {
            Ok(config) => *config,
            Err(error) => return warn!("the job file is wrong, the job is unchanged: {error}"),
        };
        let changed = match live::changes(&self.config, &config) {
            Ok(changed) if changed.is_empty() => return info!("the job file is unchanged"),
            Ok(changed) => changed,
            Err(why) => return warn!("change of the job file refused: {why}"),
        };
        if let Some(deadline) = config.session.deadline.filter(|deadline| deadline.0 <= now.wall)
            && self.config.session.deadline != Some(deadline)
        {
            return warn!("change of the job file refused: [session] deadline: {} is past", deadline.0);
        }
        let before = std::mem::replace(&mut self.config, config);
        info!("the job file has changed: {} from now on", self.describe(&changed));
        let (old, new) = (&before.snapshot, &self.config.snapshot);
        let for_worker =
            (old.every_steps, old.level, old.encode_threads) != (new.every_steps, new.level, new.encode_threads);
        if for_worker {
            self.tell_worker();
        }
        if before.log != self.config.log {
            self.act(JobAction::SetLogLevel(self.config.log.level));
        }
        self.act(JobAction::Remember(Box::new(self.config.clone())));
    }

    /// A worker that is yet to be told `start` learns of it there, one that leaves not at all.
    fn tell_worker(&mut self) {
        let JobPhase::Running(run) = &self.phase else { return };
        if !matches!(run.phase, WorkerPhase::Loading | WorkerPhase::Training { .. }) {
            return;
        }
        if !run.configurable {
            return warn!(
                "this worker cannot change how it takes snapshots while it runs; it will from its next start on"
            );
        }
        let policy = &self.config.snapshot;
        let (every_steps, level, encode_threads) = (policy.every_steps, policy.level, policy.encode_threads);
        self.act(JobAction::Send(AgentCommand::Configure { every_steps, level, encode_threads }));
    }

    /// "[snapshot] every = \"7s\"" and so on.
    fn describe(&self, changed: &[String]) -> String {
        let config = serde_json::to_value(&self.config).unwrap_or_default();
        let value = |name: &str| {
            let (section, key) = name.strip_prefix('[')?.split_once("] ")?;
            config
                .get(section)?
                .get(key)
                .map(|value| if value.is_null() { "not set".into() } else { value.to_string() })
        };
        let parts = changed.iter().map(|name| format!("{name} = {}", value(name).unwrap_or_default()));
        parts.collect::<Vec<_>>().join(", ")
    }
}
