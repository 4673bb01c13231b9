//! The command line: one file per command, each from its arguments to its output.
//!
//! Invariant: with `--json` stdout holds one JSON document and nothing else; errors go to stderr and say what failed,
//! on which path and what to do; exit codes are those of the contract. Nothing here asks a question. Deliberately not
//! here: what the commands are about (training, core's store, interop).

mod adapter_merge;
mod begin;
mod check;
pub mod command;
mod compare;
mod console;
mod exit_code;
mod export;
mod fetch;
mod from_remote;
mod generate;
mod history;
mod history_rows;
mod history_table;
mod import;
mod imported_job;
mod init;
mod inspect;
mod job_text;
mod jobs;
mod list;
mod log;
mod logs;
mod model_probe;
mod orders;
mod output;
mod pin;
mod plan;
mod plan_figures;
mod plot;
mod prune;
mod push;
mod remote;
mod remote_bundle;
mod remote_job;
mod remote_list;
mod run;
mod serve;
mod status;
mod target;
mod unpack;
mod usage;
mod verify;
mod worker_task;
