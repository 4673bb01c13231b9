//! Rules between the keys of a job file.
//!
//! Invariant: a problem names the key that is to be changed, and what to write. Deliberately not here: what a key takes
//! by itself (`keys`), whether files exist (`files`).

use super::document::PlacedKeys;
use super::problem::{ConfigProblem, Correction};
use super::ranks::{RankBackend, RankLauncher};
use super::sections::Config;

impl Config {
    /// Every rule between keys that does not hold; `placed` says where the keys stand.
    pub(super) fn contradictions(&self, placed: &PlacedKeys) -> Vec<ConfigProblem> {
        let (model, data, train) = (&self.model, &self.data, &self.train);
        let models = [("from", model.from.is_some()), ("preset", model.preset.is_some())];
        let texts = [("text", !data.text.is_empty()), ("tokens", data.tokens.is_some())];
        let model = either(
            placed,
            "model",
            models,
            "it says neither from, a Hugging Face folder to start from, nor preset, a shape for random weights",
            "preset = \"gpt2-mini\"",
        );
        let data = either(
            placed,
            "data",
            texts,
            "it says neither text, a list of files, globs and folders, nor tokens, a file of token ids",
            "text = [\"data/*.txt\"]",
        );
        // A script has a model and data of its own.
        let is_script = !self.worker.script.is_empty();
        let mut problems: Vec<ConfigProblem> = model.into_iter().chain(data).filter(|_| !is_script).collect();
        if let (true, false, Some((line, place))) =
            (is_script, self.worker.command.is_empty(), placed.place("worker", "command"))
        {
            let what = "a script is given, too, and one of the two has to go".to_owned();
            problems.push(ConfigProblem { line: Some(line), place, what, correction: Correction::TakeOut });
        }
        if train.eval_every > 0 && self.data.validation <= 0.0 {
            let what = "an evaluation needs [data] validation above 0";
            problems.push(instead(placed, "eval_every", what, "eval_every = 0"));
        }
        if train.eval_every > 0 && train.eval_batches == 0 {
            let what = "an evaluation needs at least 1 batch";
            problems.push(instead(placed, "eval_batches", what, "eval_batches = 8"));
        }
        for (key, has, other, has_other) in [
            ("tokens_dtype", self.data.tokens_dtype.is_some(), "tokens", self.data.tokens.is_some()),
            ("field", self.data.field.is_some(), "text", !self.data.text.is_empty()),
        ] {
            if let (true, false, Some((line, place))) = (has, has_other, placed.place("data", key)) {
                let what = format!("it is about {other}, which is not given");
                problems.push(ConfigProblem { line: Some(line), place, what, correction: Correction::TakeOut });
            }
        }
        problems.extend(self.unguarded_page(placed));
        problems.extend(self.mpi_without_launcher(placed));
        problems
    }

    /// MPI's ranks are those that a launcher of an MPI has started.
    fn mpi_without_launcher(&self, placed: &PlacedKeys) -> Option<ConfigProblem> {
        let is_without = matches!(self.ranks.launcher, RankLauncher::None | RankLauncher::Torchrun);
        let (line, place) = placed.place("ranks", "backend").filter(|_| is_without)?;
        let what = "MPI connects what mpirun, srun or a command of an MPI has started, and launcher names none of them";
        (self.ranks.backend == RankBackend::Mpi).then(|| ConfigProblem {
            line: Some(line),
            place,
            what: what.to_owned(),
            correction: Correction::Write("backend = \"gloo\"".to_owned()),
        })
    }

    /// A page that other machines can reach has a token of the user's own.
    fn unguarded_page(&self, placed: &PlacedKeys) -> Option<ConfigProblem> {
        let status = &self.status;
        let is_guarded = status.http_token_file.is_some() && !status.http_open;
        let http = status.http.filter(|http| !http.ip().is_loopback() && !is_guarded)?;
        let (line, place) = placed.place("status", "http")?;
        let what = if status.http_open {
            "other machines can reach this address, and http_open lets everybody in"
        } else {
            "other machines can reach this address, and no http_token_file holds what they must know"
        };
        let what = what.to_owned();
        let correction = Correction::Write(format!("http = \"127.0.0.1:{}\"", http.port()));
        Some(ConfigProblem { line: Some(line), place, what, correction })
    }
}

/// The problem where both or neither of two keys of a section are given.
fn either(
    placed: &PlacedKeys,
    section: &'static str,
    keys: [(&str, bool); 2],
    neither: &str,
    example: &str,
) -> Option<ConfigProblem> {
    let [(first, has_first), (second, has_second)] = keys;
    match (has_first, has_second) {
        (false, false) => {
            // An empty list stands there and says nothing.
            let empty = placed.place(section, first).or_else(|| placed.place(section, second));
            let correction = match &empty {
                Some(_) => Correction::Write(example.to_owned()),
                None => Correction::WriteUnder { line: example.to_owned(), section },
            };
            let (line, place) = empty.map_or((None, format!("[{section}]")), |(line, place)| (Some(line), place));
            Some(ConfigProblem { line, place, what: neither.to_owned(), correction })
        }
        (true, true) => {
            let (line, place) = placed.place(section, second)?;
            let other = placed.place(section, first).map_or(0, |(line, _)| line);
            let what = format!("{first} in line {other} says the same thing otherwise, and one of the two has to go");
            Some(ConfigProblem { line: Some(line), place, what, correction: Correction::TakeOut })
        }
        _ => None,
    }
}

/// A key of `[train]` whose value must be another one.
fn instead(placed: &PlacedKeys, key: &str, what: &str, line: &str) -> ConfigProblem {
    match placed.place("train", key) {
        Some((at, place)) => {
            ConfigProblem { line: Some(at), place, what: what.into(), correction: Correction::Write(line.into()) }
        }
        None => ConfigProblem {
            line: None,
            place: format!("[train] {key}"),
            what: what.into(),
            correction: Correction::WriteUnder { line: line.into(), section: "train" },
        },
    }
}
