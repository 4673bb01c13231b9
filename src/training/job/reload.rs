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
            Err(error) => {
                warn!("the job file is wrong, the job is unchanged: {error}");
                self.progress.file_problem = Some(format!("the job file is wrong since {}: {error}", clock(now)));
                return;
            }
        };
        let changed = match live::changes(&self.config, &config) {
            Ok(changed) if changed.is_empty() => {
                let again = self.progress.file_problem.take().map_or("", |_| "right again, and ");
                return info!("the job file is {again}unchanged: the job goes on as it does");
            }
            Ok(changed) => changed,
            Err(why) => {
                warn!("change of the job file refused: {why}");
                self.progress.file_problem =
                    Some(format!("a change of the job file was refused at {}: {why}", clock(now)));
                return;
            }
        };
        if let Some(deadline) = config.session.deadline.filter(|deadline| deadline.0 <= now.wall)
            && self.config.session.deadline != Some(deadline)
        {
            return warn!("change of the job file refused: [session] deadline: {} is past", deadline.0);
        }
        self.progress.file_problem = None;
        let before = std::mem::replace(&mut self.config, config);
        info!("the job file has changed: {} from now on", self.describe(&changed));
        let (old, new) = (&before.snapshot, &self.config.snapshot);
        let for_worker =
            (old.every_steps, old.level, old.encode_threads) != (new.every_steps, new.level, new.encode_threads);
        let evaluations = |config: &Config| (config.train.eval_every, config.train.eval_batches);
        let watched = evaluations(&before) != evaluations(&self.config);
        if for_worker || watched {
            self.tell_worker(watched);
        }
        if before.log != self.config.log {
            self.act(JobAction::SetLogLevel(self.config.log.level));
        }
        self.act(JobAction::Remember(Box::new(self.config.clone())));
    }

    /// A worker that is yet to be told `start` learns of it there, one that leaves not at all.
    fn tell_worker(&mut self, evaluations: bool) {
        let JobPhase::Running(run) = &self.phase else { return };
        if !matches!(run.phase, WorkerPhase::Loading | WorkerPhase::Training { .. }) {
            return;
        }
        if !run.configurable {
            return warn!(
                "this worker cannot change how it takes snapshots while it runs; it will from its next start on"
            );
        }
        if evaluations && !run.evaluates {
            warn!("this worker cannot change its evaluations while it runs; it will from its next start on");
        }
        let Config { snapshot: policy, train, .. } = &self.config;
        let (every_steps, level, encode_threads) = (policy.every_steps, policy.level, policy.encode_threads);
        let evaluations = run.evaluates.then_some((train.eval_every, train.eval_batches));
        let (eval_every, eval_batches) = evaluations.unzip();
        let command = AgentCommand::Configure { every_steps, level, encode_threads, eval_every, eval_batches };
        self.act(JobAction::Send(command));
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

/// "2026-11-24 23:10:00", here.
fn clock(now: ClockReading) -> String {
    now.wall.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
