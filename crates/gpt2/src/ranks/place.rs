//! Which rank this process is, of how many, and where rank 0 is to be found: from the environment that launchers set.
//!
//! Deliberately not here: connecting.

use std::io::Write;

use ckptd_core::{Error, Result};

/// Names of the variables of ckptd's own.
pub(super) const RANK: &str = "CKPTD_RANK";
pub(super) const COUNT: &str = "CKPTD_RANKS";
pub(super) use ckptd_core::protocol::{RANKS_ADDRESS as ADDRESS, RANKS_SECRET as SECRET};

/// Says something for people, on standard error, in one write: ranks may have that in common, and `eprintln!` writes in
/// pieces.
pub fn say(rank: usize, what: &str) {
    // Nobody may read it.
    let _ = std::io::stderr().write_all(format!("ckptd-gpt2 rank {rank}: {what}\n").as_bytes());
}

/// (the variable of the rank, that of how many there are, and whether it alone says that there are ranks)
const LAUNCHERS: [(&str, &str, bool); 5] = [
    (RANK, COUNT, true),
    ("RANK", "WORLD_SIZE", true),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", true),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", false),
    // Slurm sets them for a step of one task, too, and for programs that know nothing of ranks.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", false),
];

/// This process among the ranks of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankPlace {
    /// From 0.
    pub rank: usize,
    /// At least 2.
    pub size: usize,
    /// Where rank 0 listens, and it alone: `host:port`.
    pub address: String,
    pub(super) secret: String,
}

impl RankPlace {
    /// As the environment says; `None` where this process is the only rank.
    ///
    /// # Errors
    /// [`Error::Config`] that names the variable which is missing or makes no sense.
    pub fn from_environment() -> Result<Option<RankPlace>> {
        RankPlace::parse(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Option<RankPlace>> {
        let secret = variable(SECRET);
        let said = LAUNCHERS.iter().find_map(|&(rank, count, alone)| {
            let told = alone || secret.is_some();
            Some((rank, variable(rank)?, count, variable(count)?)).filter(|_| told)
        });
        let Some((rank_name, rank, count_name, count)) = said else {
            return match half_said(&variable).filter(|_| secret.is_some()) {
                Some(what) => Err(Error::Config(what)),
                None => Ok(None),
            };
        };
        let wrong = |name: &str, text: &str| Error::Config(format!("{name}={text} in the environment is no number"));
        let rank: usize = rank.parse().map_err(|_| wrong(rank_name, &rank))?;
        let size: usize = count.parse().map_err(|_| wrong(count_name, &count))?;
        if size < 2 {
            return Ok(None);
        }
        if rank >= size {
            return Err(Error::Config(format!("{rank_name}={rank} is no rank of {count_name}={size}")));
        }
        let secret = secret.ok_or_else(|| {
            Error::Config(format!(
                "{count_name}={size} says that there are {size} ranks, and {SECRET} is not set; give all of them the \
                 same random text, as `export {SECRET}=$(openssl rand -hex 32)` does"
            ))
        })?;
        Ok(Some(RankPlace { rank, size, address: address(variable)?, secret }))
    }
}

/// One of two variables that belong together is set, and none of the other pairs is whole.
fn half_said(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    LAUNCHERS.iter().find_map(|&(rank, count, alone)| match (variable(rank), variable(count)) {
        (Some(value), None) => Some(format!("{rank}={value} is set in the environment, and {count} is not")),
        (None, Some(value)) if alone => Some(format!("{count}={value} is set in the environment, and {rank} is not")),
        _ => None,
    })
}

/// Where rank 0 listens.
fn address(variable: impl Fn(&str) -> Option<String>) -> Result<String> {
    if let Some(address) = variable(ADDRESS) {
        return Ok(address);
    }
    let (Some(host), Some(port)) = (variable("MASTER_ADDR"), variable("MASTER_PORT")) else {
        return Err(Error::Config(format!(
            "where rank 0 listens is not said; set MASTER_ADDR and MASTER_PORT, or {ADDRESS}=host:port, for all ranks"
        )));
    };
    let port: u16 =
        port.parse().map_err(|_| Error::Config(format!("MASTER_PORT={port} in the environment is no port")))?;
    // torchrun's own store listens there.
    let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    Ok(format!("{host}:{}", if is_taken { port.wrapping_add(1) } else { port }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<RankPlace>> {
        RankPlace::parse(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const AT: [(&str, &str); 3] = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500"), (SECRET, "s")];

    fn found(rank: usize, size: usize, address: &str) -> Option<RankPlace> {
        Some(RankPlace { rank, size, address: address.into(), secret: "s".into() })
    }

    #[test]
    fn each_launcher_says_rank_and_size_in_its_own_variables() {
        let with = |more: &[(&str, &str)]| place(&[&AT[..], more].concat()).unwrap();
        assert_eq!(with(&[("RANK", "2"), ("WORLD_SIZE", "3")]), found(2, 3, "10.0.0.1:29500"));
        let both = [("RANK", "1"), ("WORLD_SIZE", "3"), ("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "9")];
        assert_eq!(with(&both), found(1, 3, "10.0.0.1:29500"));
        assert_eq!(with(&both[2..]), found(0, 9, "10.0.0.1:29500"));
        assert_eq!(with(&[("PMIX_RANK", "1"), ("SLURM_STEP_NUM_TASKS", "2")]), found(1, 2, "10.0.0.1:29500"));
        assert_eq!(with(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")]), found(1, 2, "10.0.0.1:29500"));
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(with(&torchrun), found(1, 2, "10.0.0.1:29501"));
        assert_eq!(with(&[("RANK", "1"), ("WORLD_SIZE", "2"), (ADDRESS, "h:1")]), found(1, 2, "h:1"));
    }

    #[test]
    fn one_rank_and_a_step_of_slurm_without_a_secret_are_alone() {
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        assert_eq!(place(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4")]).unwrap(), None);
    }

    #[test]
    fn what_is_missing_or_makes_no_sense_is_named() {
        for (variables, named) in [
            (vec![("RANK", "0"), ("WORLD_SIZE", "2")], SECRET),
            (vec![("RANK", "0"), ("WORLD_SIZE", "2"), (SECRET, "s")], "MASTER_ADDR"),
            ([&AT[..], &[("RANK", "2"), ("WORLD_SIZE", "2")]].concat(), "RANK=2"),
            ([&AT[..], &[("RANK", "1")]].concat(), "RANK=1 is set in the environment, and WORLD_SIZE is not"),
            ([&AT[..], &[("OMPI_COMM_WORLD_SIZE", "2")]].concat(), "OMPI_COMM_WORLD_RANK is not"),
            ([&AT[..], &[("SLURM_PROCID", "1")]].concat(), "SLURM_STEP_NUM_TASKS is not"),
            ([&AT[..], &[("RANK", "x"), ("WORLD_SIZE", "2")]].concat(), "RANK=x"),
        ] {
            let error = place(&variables).unwrap_err();
            assert!(error.exit_code() == 78 && error.to_string().contains(named), "{error}");
        }
    }
}
