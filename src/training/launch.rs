//! What starts a worker: its own command, or a launcher that starts one process per rank.
//!
//! Invariant: a pure function of the job, the environment and the machine. A launcher's exit code decides nothing: what
//! rank 0 has said does. Deliberately not here: starting it (`worker`), how ranks find one another (ckptd-gpt2).

use std::path::{Path, PathBuf};

use ckptd_core::config::{Config, RankBackend, RankLauncher, RankRoom, RanksSection};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::os::port::free_port;
use ckptd_core::os::process::processors;
use ckptd_core::protocol::{RANKS_ADDRESS, RANKS_SECRET};

const PROGRAM: &str = "ckptd-gpt2";
/// What says which rank a process is, in the environment of one that was itself started by a launcher.
const OF_ANOTHER_LAUNCH: [&str; 7] = [
    "RANK",
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMIX_RANK",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
];
/// In a launcher's command, the number of ranks.
const COUNT: &str = "{count}";

/// A worker, or a launcher with its workers, ready to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLaunch {
    pub command: Vec<String>,
    /// Variables that it is given besides those of this process.
    pub given: Vec<(&'static str, String)>,
    /// Variables of this process that it is not given.
    pub withheld: Vec<&'static str>,
    pub ranks: usize,
    /// All of it is ckptd's own worker: it needs no credentials.
    pub is_ours: bool,
}

/// What the environment of this process says.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How a worker of `config` is started here and now, `recorded` being the threads that the snapshot was computed with.
///
/// # Errors
/// [`Error::Config`] where rank 0 has no address to listen at.
pub fn worker_launch(config: &Config, recorded: Option<usize>, environment: Environment<'_>) -> Result<WorkerLaunch> {
    let worker = match config.worker.command.as_slice() {
        [] => vec![default_program()?.to_string_lossy().into_owned()],
        given => given.to_vec(),
    };
    let threads = Some(config.job.threads).filter(|threads| *threads > 0).or(recorded);
    let room = RankRoom {
        tasks: allocated_tasks(environment),
        processors: processors(),
        threads,
        micro_batches: config.train.grad_accumulation,
    };
    let ranks = config.ranks.how_many(&room);
    let is_ours = config.worker.command.is_empty() && !matches!(config.ranks.launcher, RankLauncher::Command(_));
    if config.ranks.launcher == RankLauncher::None {
        return Ok(WorkerLaunch { command: worker, given: Vec::new(), withheld: Vec::new(), ranks, is_ours });
    }
    let mut command = launcher_command(&config.ranks, ranks, threads);
    command.extend(worker);
    let mut given = Vec::new();
    if environment(RANKS_SECRET).is_none() {
        given.push((RANKS_SECRET, RunId::random()?.to_string() + RunId::random()?.as_str()));
    }
    if environment(RANKS_ADDRESS).is_none() {
        given.push((RANKS_ADDRESS, rank_zero_address(environment)?));
    }
    Ok(WorkerLaunch { command, given, withheld: OF_ANOTHER_LAUNCH.to_vec(), ranks, is_ours })
}

/// The launcher's own part of the command line.
fn launcher_command(section: &RanksSection, ranks: usize, threads: Option<usize>) -> Vec<String> {
    let count = ranks.to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    match &section.launcher {
        RankLauncher::None => Vec::new(),
        // Its own restarts would hide from the daemon what happened.
        RankLauncher::Torchrun => words(&[
            "torchrun",
            "--no-python",
            "--standalone",
            "--nnodes=1",
            &format!("--nproc-per-node={count}"),
            "--max-restarts=0",
        ]),
        // Threads are settled by the worker, and more ranks than cores were asked for by the user.
        RankLauncher::Mpirun => {
            let exported = [RANKS_SECRET, RANKS_ADDRESS, "OMP_WAIT_POLICY"].map(|name| ["-x", name]).concat();
            words(&[&["mpirun", "-n", &count, "--oversubscribe", "--bind-to", "none"], exported.as_slice()].concat())
        }
        // Rank 0 alone is spoken to, and it has to outlive another rank to save.
        RankLauncher::Srun => {
            let mut command = words(&[
                "srun",
                &format!("--ntasks={count}"),
                "--input=0",
                "--kill-on-bad-exit=0",
                "--overlap",
                "--export=ALL",
            ]);
            command.extend(threads.map(|threads| format!("--cpus-per-task={threads}")));
            // What MPIs ask for their neighbours.
            command.extend((section.backend == RankBackend::Mpi).then(|| "--mpi=pmix".to_owned()));
            command
        }
        RankLauncher::Command(command) => command.iter().map(|word| word.replace(COUNT, &count)).collect(),
    }
}

/// Tasks of the Slurm allocation that this process runs in: as asked for, else one per node.
fn allocated_tasks(environment: Environment<'_>) -> Option<usize> {
    environment("SLURM_JOB_ID")?;
    let number = |name: &str| environment(name)?.parse().ok().filter(|count| *count > 0);
    number("SLURM_NTASKS").or_else(|| number("SLURM_JOB_NUM_NODES"))
}

/// Where rank 0 is to listen: on this machine, where Slurm and mpirun start the first task.
fn rank_zero_address(environment: Environment<'_>) -> Result<String> {
    let nodes: usize = environment("SLURM_JOB_NUM_NODES").and_then(|nodes| nodes.parse().ok()).unwrap_or(1);
    let host = match nodes {
        0 | 1 => "127.0.0.1".to_owned(),
        _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    // The launcher itself listens at ports that the system gives it, before rank 0 does.
    let port = free_port(&host).map_err(|e| {
        Error::Config(format!("no port is to be had at {host} for rank 0: {e}; set {RANKS_ADDRESS}=host:port"))
    })?;
    Ok(format!("{host}:{port}"))
}

/// `ckptd-gpt2` beside this program, else in PATH.
pub fn default_program() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(PROGRAM)));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = beside.iter().cloned().chain(std::env::split_paths(&in_path).map(|folder| folder.join(PROGRAM)));
    candidates.into_iter().find(|path| is_program(path)).ok_or_else(|| {
        Error::Other(format!(
            "the worker {PROGRAM} is neither beside ckptd nor in PATH; build it with `make build` \
             or name one in [worker] command"
        ))
    })
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

/// Refuses a daemon that a scheduler has started once per task: one of them is enough.
///
/// # Errors
/// [`Error::Config`] in all of them but the first.
pub fn refuse_other_tasks(environment: Environment<'_>) -> Result<()> {
    let pairs = [
        ("RANK", "WORLD_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ];
    for (rank, count) in pairs {
        let number = |name: &str| environment(name)?.parse::<usize>().ok();
        if let (Some(rank_number @ 1..), Some(tasks @ 2..)) = (number(rank), number(count)) {
            return Err(Error::Config(format!(
                "this is one of {tasks} processes that were started as `ckptd run` ({rank}={rank_number}); start it \
                 once, and let it start the ranks: [ranks] launcher and count in the job file (docs/ranks.md)"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn launch(more: &str, variables: &[(&str, &str)]) -> WorkerLaunch {
        let base = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[train]\ngrad_accumulation = 6\n[worker]\n\
                    command = [\"w\"]\n";
        let config = Config::parse(&format!("{base}{more}"), "/job.toml".as_ref()).unwrap();
        let found = |name: &str| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_owned());
        worker_launch(&config, Some(2), &found).unwrap()
    }

    #[test]
    fn each_launcher_gets_its_own_command_line_and_the_worker_behind_it() {
        let plain = launch("[ranks]\ncount = 3\n", &[]);
        assert_eq!((plain.command.join(" ").as_str(), plain.ranks, plain.given.len()), ("w", 3, 0));
        let known = [(RANKS_SECRET, "s"), (RANKS_ADDRESS, "h:1")];
        let command = |launcher: &str| {
            let launch = launch(&format!("[ranks]\nlauncher = {launcher}\ncount = 3\n"), &known);
            assert!(launch.given.is_empty() && launch.ranks == 3 && launch.withheld.contains(&"RANK"));
            launch.command.join(" ")
        };
        assert_eq!(
            command("\"torchrun\""),
            "torchrun --no-python --standalone --nnodes=1 --nproc-per-node=3 --max-restarts=0 w"
        );
        assert_eq!(
            command("\"mpirun\""),
            "mpirun -n 3 --oversubscribe --bind-to none -x CKPTD_RANKS_SECRET -x CKPTD_RANKS_ADDRESS -x \
             OMP_WAIT_POLICY w"
        );
        assert_eq!(
            command("\"srun\""),
            "srun --ntasks=3 --input=0 --kill-on-bad-exit=0 --overlap --export=ALL --cpus-per-task=2 w"
        );
        assert_eq!(
            command("\"srun\"\nbackend = \"mpi\""),
            "srun --ntasks=3 --input=0 --kill-on-bad-exit=0 --overlap --export=ALL --cpus-per-task=2 --mpi=pmix w"
        );
        assert_eq!(command("[\"mpiexec\", \"-np\", \"{count}\"]"), "mpiexec -np 3 w");
    }

    #[test]
    fn ranks_get_a_secret_and_an_address_of_their_own_and_auto_is_the_allocation() {
        let auto = "[ranks]\nlauncher = \"srun\"\ncount = \"auto\"\n";
        let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NUM_NODES", "1")];
        let (one, other) = (launch(auto, &slurm), launch(auto, &slurm[..1]));
        assert_eq!(one.ranks, 4);
        assert!(one.command.contains(&"--ntasks=4".to_owned()));
        assert_ne!(other.ranks, 0);
        let value = |launch: &WorkerLaunch, name: &str| {
            launch.given.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap()
        };
        assert_eq!(value(&one, RANKS_SECRET).len(), 64);
        assert_ne!(value(&one, RANKS_SECRET), value(&other, RANKS_SECRET));
        assert!(value(&one, RANKS_ADDRESS).starts_with("127.0.0.1:"));
    }

    #[test]
    fn a_daemon_per_task_is_refused_but_for_the_first() {
        let refused = |variables: &[(&str, &str)]| {
            let found = |name: &str| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_owned());
            refuse_other_tasks(&found).err().map(|error| error.to_string())
        };
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "4")]), None);
        assert_eq!(refused(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "1")]), None);
        let told = refused(&[("SLURM_PROCID", "2"), ("SLURM_STEP_NUM_TASKS", "4")]).unwrap();
        assert!(told.contains("one of 4") && told.contains("SLURM_PROCID=2") && told.contains("[ranks]"), "{told}");
    }
}
