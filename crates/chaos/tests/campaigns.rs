//! Every campaign at a small size, from a fixed seed: it runs, and finds nothing.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

fn finds_nothing(campaign: &[&str], points: u64) {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(campaign)
        .args(["--seed", "1", "--points", &points.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert!(output.status.success(), "{row}\n{said}");
    if let Some(why) = row["not_run"].as_str() {
        println!("not run: {why}");
        return;
    }
    assert_eq!(row["violations"], 0, "{row}");
    assert!(row["points"].as_u64().unwrap() >= points, "{row}");
}

#[test]
fn retention_never_takes_what_it_must_keep_in_20_000_lives_of_a_store() {
    finds_nothing(&["retention"], 20_000);
}

#[test]
fn no_flipped_bit_of_a_manifest_no_cut_and_no_exchange_is_accepted() {
    finds_nothing(&["damage"], 400);
}

#[test]
fn links_planted_in_a_store_lead_nowhere() {
    finds_nothing(&["links"], 40);
}

#[test]
fn a_store_survives_the_deaths_of_those_who_work_in_it() {
    finds_nothing(&["kills"], 40);
}

#[test]
fn of_eight_daemons_one_gets_the_store_and_the_others_name_it() {
    finds_nothing(&["race"], 3);
}

#[test]
fn a_training_under_fire_ends_in_the_state_of_an_undisturbed_one() {
    finds_nothing(&["storm"], 12);
}

#[test]
fn a_worker_that_the_kernel_kills_for_memory_is_told_and_costs_nothing_that_is_saved() {
    finds_nothing(&["memory"], 2);
}

#[test]
fn gpt2_trains_on_while_the_disk_is_full_and_is_verified_again_when_there_is_room() {
    finds_nothing(&["disk-full"], 1);
}
