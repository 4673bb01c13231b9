//! `[ranks]`: how many processes compute a training together, and what starts them.
//!
//! Invariant: how many there are is never part of the result. Deliberately not here: the command lines of launchers
//! (the daemon), how ranks find one another (the worker).

use serde::{Deserialize, Serialize};

/// `[ranks]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RanksSection {
    /// What starts them.
    pub launcher: RankLauncher,
    /// Processes that compute the training together. The result does not depend on it.
    pub count: RankCount,
    /// Each rank holds and updates only its shard of the optimizer's state (ZeRO-1). The result does not depend on it.
    pub shard_optimizer: bool,
    /// What carries gradients between them. The result does not depend on it.
    pub backend: RankBackend,
}

/// `[ranks] backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankBackend {
    /// TCP, by the gloo in libtorch.
    #[default]
    Gloo,
    /// An MPI library, in a worker that was built with one: for fabrics that it knows.
    Mpi,
}

/// `[ranks] launcher`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LauncherText", into = "LauncherText")]
pub enum RankLauncher {
    /// Rank 0 starts the others, on its own machine.
    #[default]
    None,
    /// PyTorch's, on one machine.
    Torchrun,
    /// That of an MPI.
    Mpirun,
    /// Slurm's, within an allocation.
    Srun,
    /// Any other one: a command that is followed by the worker's; "{count}" in it stands for the number of ranks.
    Command(Vec<String>),
}

/// `[ranks] count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CountText", into = "CountText")]
pub enum RankCount {
    /// So many.
    Fixed(usize),
    /// As many as there is room for when a worker is started.
    Auto,
}

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankRoom {
    /// Tasks of the scheduler's allocation; `None` outside of one.
    pub tasks: Option<usize>,
    /// Processors that this process may use.
    pub processors: usize,
    /// Threads of a rank; `None`: not settled yet, the first rank takes all processors.
    pub threads: Option<usize>,
    /// Micro-batches per step: a rank beyond them has nothing to compute.
    pub micro_batches: u64,
}

impl RanksSection {
    /// How many ranks are to be started where there is such `room`.
    pub fn how_many(&self, room: &RankRoom) -> usize {
        let spread = matches!(self.launcher, RankLauncher::Mpirun | RankLauncher::Srun | RankLauncher::Command(_));
        match (self.count, room.tasks.filter(|_| spread)) {
            (RankCount::Fixed(count), _) => count,
            (RankCount::Auto, tasks) => {
                let here = room.threads.map_or(1, |threads| room.processors / threads.max(1));
                let most = usize::try_from(room.micro_batches).unwrap_or(usize::MAX);
                tasks.unwrap_or(here).min(most).max(1)
            }
        }
    }
}

impl RankLauncher {
    /// Its name or program, for people; `None` where there is no launcher.
    pub fn name(&self) -> Option<&str> {
        match self {
            RankLauncher::None => None,
            RankLauncher::Torchrun => Some("torchrun"),
            RankLauncher::Mpirun => Some("mpirun"),
            RankLauncher::Srun => Some("srun"),
            RankLauncher::Command(command) => command.first().map(String::as_str),
        }
    }
}

impl Default for RankCount {
    fn default() -> RankCount {
        RankCount::Fixed(1)
    }
}

/// `[ranks] launcher` as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LauncherText {
    Name(String),
    Command(Vec<String>),
}

impl TryFrom<LauncherText> for RankLauncher {
    type Error = String;
    fn try_from(text: LauncherText) -> Result<RankLauncher, String> {
        match text {
            LauncherText::Command(command) if command.is_empty() => Ok(RankLauncher::None),
            LauncherText::Command(command) => Ok(RankLauncher::Command(command)),
            LauncherText::Name(name) => match name.as_str() {
                "none" => Ok(RankLauncher::None),
                "torchrun" => Ok(RankLauncher::Torchrun),
                "mpirun" => Ok(RankLauncher::Mpirun),
                "srun" => Ok(RankLauncher::Srun),
                other => Err(format!("{other:?} is no launcher; a command of your own is a list of texts")),
            },
        }
    }
}

impl From<RankLauncher> for LauncherText {
    fn from(launcher: RankLauncher) -> LauncherText {
        match launcher {
            RankLauncher::Command(command) => LauncherText::Command(command),
            known => LauncherText::Name(known.name().unwrap_or("none").to_owned()),
        }
    }
}

/// `[ranks] count` as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CountText {
    Number(usize),
    Word(String),
}

impl TryFrom<CountText> for RankCount {
    type Error = String;
    fn try_from(text: CountText) -> Result<RankCount, String> {
        match text {
            CountText::Number(0) => Err("there is at least one rank".into()),
            CountText::Number(count) => Ok(RankCount::Fixed(count)),
            CountText::Word(word) if word == "auto" => Ok(RankCount::Auto),
            CountText::Word(word) => Err(format!("{word:?} is neither a number nor \"auto\"")),
        }
    }
}

impl From<RankCount> for CountText {
    fn from(count: RankCount) -> CountText {
        match count {
            RankCount::Fixed(count) => CountText::Number(count),
            RankCount::Auto => CountText::Word("auto".into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn section(toml: &str) -> RanksSection {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn what_the_file_says_comes_back_as_it_was() {
        for toml in [
            "launcher = \"none\"\ncount = 1\nshard_optimizer = false\nbackend = \"gloo\"\n",
            "launcher = \"torchrun\"\ncount = \"auto\"\nshard_optimizer = false\nbackend = \"gloo\"\n",
            "launcher = \"mpirun\"\ncount = 3\nshard_optimizer = true\nbackend = \"mpi\"\n",
            "launcher = \"srun\"\ncount = 2\nshard_optimizer = false\nbackend = \"gloo\"\n",
            "launcher = [\"mpiexec\", \"-n\", \"{count}\"]\ncount = 6\nshard_optimizer = false\nbackend = \"gloo\"\n",
        ] {
            assert_eq!(toml::to_string(&section(toml)).unwrap(), toml);
        }
        assert!(toml::from_str::<RanksSection>("launcher = \"qsub\"").is_err());
        assert!(toml::from_str::<RanksSection>("count = \"many\"").is_err());
    }

    #[test]
    fn auto_is_what_there_is_room_for_and_no_more_than_there_are_micro_batches() {
        let room = RankRoom { tasks: Some(4), processors: 16, threads: Some(3), micro_batches: 8 };
        assert_eq!(section("count = 2").how_many(&room), 2);
        assert_eq!(section("count = \"auto\"").how_many(&room), 5, "processes of this machine");
        let srun = section("launcher = \"srun\"\ncount = \"auto\"");
        assert_eq!(srun.how_many(&room), 4);
        assert_eq!(srun.how_many(&RankRoom { micro_batches: 3, ..room }), 3);
        assert_eq!(srun.how_many(&RankRoom { tasks: None, ..room }), 5);
        assert_eq!(srun.how_many(&RankRoom { tasks: None, threads: None, ..room }), 1, "it takes all processors");
        assert_eq!(section("launcher = \"torchrun\"\ncount = \"auto\"").how_many(&room), 5, "of one machine");
        assert_eq!(section("count = \"auto\"").how_many(&RankRoom { threads: Some(32), ..room }), 1);
    }
}
