//! What a job file has otherwise than the snapshot that it goes on from, as far as the file alone tells: what is known
//! before a worker is started.
//!
//! Deliberately not here: what depends on the machine and on the data (the worker compares it).

use ckptd_core::config::{Config, ResolvedJob};
use ckptd_core::schedule;
use ckptd_core::settings::TrainSettings;
use ckptd_core::text::significant;

/// Differences that are told one by one.
const TOLD: usize = 3;

/// The settings that differ, in words; empty where nothing does that changes the arithmetic.
pub fn differences(config: &Config, then: &TrainSettings) -> Vec<String> {
    let device = if then.get("device") == Some("cuda") { "cuda" } else { "cpu" };
    let resolved = ResolvedJob {
        device,
        threads: then.threads().unwrap_or_default(),
        data_content: then.data_content().unwrap_or_default(),
    };
    let now = config.train_settings(&resolved);
    let in_file = |line: &String| ["train.", "seed:", "data.validation:"].iter().any(|key| line.starts_with(key));
    // What an older or another program did not record says nothing.
    let recorded = |line: &String| !line.contains("not set then");
    then.changes_of_arithmetic(&now).into_iter().filter(|line| in_file(line) && recorded(line)).collect()
}

/// The first few of `differences`, and how many more there are.
pub fn list(differences: &[String]) -> String {
    let told = differences.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
    match differences.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}

/// "the learning rate is 0.0001 from step 40 on, it was 3e-5": what a change does to the next step; empty for nothing.
pub fn rate_change(config: &Config, then: &TrainSettings, step: u64) -> String {
    let before = config.train.clone().with_recorded(then);
    let was = schedule::learning_rate(&before, step.saturating_sub(1));
    let is = schedule::learning_rate(&config.train, step);
    if significant(was) == significant(is) {
        return String::new();
    }
    format!("the learning rate is {} from step {step} on, it was {}", significant(is), significant(was))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn job(more: &str) -> Config {
        let text = format!("[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[train]\n{more}\n");
        Config::parse(&text, "/job.toml".as_ref()).unwrap()
    }

    fn recorded(job: &Config) -> TrainSettings {
        job.train_settings(&ResolvedJob { device: "cpu", threads: 2, data_content: "c0ffee" })
    }

    #[test]
    fn more_steps_are_a_change_with_its_rate_and_other_evaluations_are_none() {
        let then = recorded(&job("steps = 40\nwarmup_steps = 0"));
        assert!(differences(&job("steps = 40\nwarmup_steps = 0\neval_every = 3\neval_batches = 1"), &then).is_empty());
        let longer = job("steps = 80\nwarmup_steps = 0");
        assert_eq!(differences(&longer, &then), ["train.steps: 40 then, 80 now"]);
        let text = rate_change(&longer, &then, 40);
        assert!(text.starts_with("the learning rate is 0.0001") && text.contains("it was 3"), "{text}");
        assert_eq!(rate_change(&job("steps = 40\nwarmup_steps = 0"), &then, 40), "");
        assert_eq!(differences(&longer, &TrainSettings::default()), Vec::<String>::new());
    }

    #[test]
    fn a_long_list_ends_after_three_and_a_count() {
        let all: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!((list(&all).as_str(), list(&all[..2]).as_str()), ("0; 1; 2; and 2 more", "0; 1"));
    }
}
