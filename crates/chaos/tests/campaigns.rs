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
fn retention_never_deletes_what_it_must_keep_in_20_000_random_stores() {
    finds_nothing(&["retention"], 20_000);
}

#[test]
fn no_flipped_bit_cut_or_swapped_file_is_accepted() {
    finds_nothing(&["damage"], 400);
}

#[test]
fn links_planted_in_a_store_are_not_followed() {
    finds_nothing(&["links"], 40);
}

#[test]
fn a_store_survives_the_kills_of_its_writers() {
    finds_nothing(&["kills"], 40);
}

#[test]
fn only_one_of_eight_daemons_gets_the_store() {
    finds_nothing(&["race"], 3);
}

#[test]
fn a_training_under_kills_ends_in_the_state_of_an_undisturbed_one() {
    finds_nothing(&["storm"], 12);
}

#[test]
fn a_worker_killed_for_memory_is_told_and_nothing_saved_is_lost() {
    finds_nothing(&["memory"], 2);
}

#[test]
fn gpt2_trains_on_a_full_disk_and_is_verified_again_once_there_is_room() {
    finds_nothing(&["disk-full"], 1);
}
