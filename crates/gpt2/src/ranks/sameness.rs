//! What must be equal on all ranks, before the first step: else they would compute different things, or the same thing
//! with other bits.
//!
//! Deliberately not here: finding these facts out, apart from the machine's.

use ckptd_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::group::RankGroup;
use super::mesh::libtorch_config;

/// What a rank says of itself. Texts are compared, and told where they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankFacts {
    /// This program's release.
    pub release: String,
    /// A hash of the job file, as this rank read it.
    pub job: String,
    /// The hash that stands for its tokens.
    pub data: String,
    /// Release, and which of its kernels it takes here.
    pub libtorch: String,
    pub processor: String,
    /// Threads of one operation.
    pub threads: usize,
    /// A hash of all tensors and the train state that it begins with.
    pub state: String,
}

impl RankFacts {
    /// Compares what all ranks say of themselves.
    ///
    /// # Errors
    /// [`Error::Config`] with every rank that differs from rank 0 and in what; it is the same on all ranks.
    pub fn compare(&self, group: &mut dyn RankGroup) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| Error::Other(format!("writing facts: {e}")))?;
        let said = group.gather(&json)?;
        let facts: Result<Vec<RankFacts>, _> = said.iter().map(|json| serde_json::from_slice(json)).collect();
        let facts = facts.map_err(|e| Error::Other(format!("what another rank says of itself: {e}")))?;
        let differences = differences(&facts);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Config(format!(
            "the ranks differ, and would not compute the same: {}; nothing was trained",
            differences.join("; ")
        )))
    }

    fn fields(&self) -> [(&'static str, String); 7] {
        let RankFacts { release, job, data, libtorch, processor, threads, state } = self.clone();
        [
            ("release", release),
            ("job file", job),
            ("data", data),
            ("libtorch", libtorch),
            ("processor", processor),
            ("threads", threads.to_string()),
            ("state", state),
        ]
    }
}

/// "rank 2: threads 1, not 2 as on rank 0" for each rank and each difference.
fn differences(facts: &[RankFacts]) -> Vec<String> {
    let Some(first) = facts.first() else { return Vec::new() };
    let mut differences = Vec::new();
    for (rank, others) in facts.iter().enumerate() {
        for ((name, here), (_, there)) in first.fields().into_iter().zip(others.fields()) {
            if here != there {
                differences.push(format!("rank {rank}: {name} {there}, not {here} as on rank 0"));
            }
        }
    }
    differences
}

/// The kind of this processor, and the settings that make libtorch take it for another one.
pub fn processor_kind() -> String {
    let mut kind = processor_field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    for name in ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"] {
        if let Ok(value) = std::env::var(name) {
            kind.push_str(&format!(" {name}={value}"));
        }
    }
    kind
}

/// What this processor can do, by the names that Linux has for it.
pub fn processor_flags() -> String {
    processor_field("flags").or_else(|| processor_field("Features")).unwrap_or_default()
}

fn processor_field(name: &str) -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Release of the libtorch that is loaded, and which of its kernels it takes on this processor.
pub fn libtorch_kind() -> String {
    let config = libtorch_config();
    let after = |key: &str| {
        let rest = config.split_once(key)?.1;
        Some(rest.split([',', '\n']).next()?.trim().to_owned())
    };
    let release = after("TORCH_VERSION=").unwrap_or_else(|| "unknown".into());
    match after("CPU capability usage:") {
        Some(kernels) => format!("{release} ({kernels})"),
        None => release,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> RankFacts {
        let text = |text: &str| text.to_owned();
        RankFacts {
            release: text("1"),
            job: text("a"),
            data: text("b"),
            libtorch: text("2.11.0 (AVX2)"),
            processor: text("c"),
            threads: 2,
            state: text("d"),
        }
    }

    #[test]
    fn the_rank_and_the_field_that_differ_are_named() {
        assert_eq!(differences(&[facts(), facts(), facts()]), Vec::<String>::new());
        type Change = fn(&mut RankFacts);
        let changed: [(Change, &str); 7] = [
            (|f| f.release = "0".into(), "release 0, not 1"),
            (|f| f.job = "x".into(), "job file x, not a"),
            (|f| f.data = "x".into(), "data x, not b"),
            (|f| f.libtorch = "x".into(), "libtorch x, not 2.11.0 (AVX2)"),
            (|f| f.processor = "x".into(), "processor x, not c"),
            (|f| f.threads = 1, "threads 1, not 2"),
            (|f| f.state = "x".into(), "state x, not d"),
        ];
        for (change, told) in changed {
            let mut other = facts();
            change(&mut other);
            assert_eq!(differences(&[facts(), facts(), other]), [format!("rank 2: {told} as on rank 0")]);
        }
    }

    #[test]
    fn the_machine_says_what_it_is() {
        assert!(!processor_kind().is_empty());
        assert!(libtorch_kind().starts_with("2."), "{}", libtorch_kind());
    }
}
