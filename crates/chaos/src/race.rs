//! Eight daemons want one store at the same moment: one gets it, the others leave and name it.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::job::{self, ChaosJob, PATIENCE, WorkerKind};
use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;

const CONTENDERS: usize = 8;

pub fn campaign(rounds: u64, seed: u64) -> Result<CampaignRow> {
    let mut tally = CampaignTally::new("8 daemons race", seed);
    let mut random = SeededRandom::new(seed);
    let folder = place::on_disk()?;
    let job = ChaosJob::new(folder.path(), WorkerKind::Quick, 1_000_000, &[], "")?;
    for _ in 0..rounds {
        round(&job, &mut random, &mut tally)?;
    }
    Ok(tally.row())
}

fn round(job: &ChaosJob, random: &mut SeededRandom, tally: &mut CampaignTally) -> Result<()> {
    let mut contenders = (0..CONTENDERS)
        .map(|_| {
            // A head start decides nothing: a slow one may come when the winner has not even said its name.
            std::thread::sleep(random.up_to(Duration::from_millis(3)));
            job.command()?.stderr(Stdio::piped()).spawn().context("starting ckptd")
        })
        .collect::<Result<Vec<Child>>>()?;
    let mut losers = Vec::new();
    let began = Instant::now();
    while contenders.len() > 1 && began.elapsed() < PATIENCE {
        match contenders.iter_mut().position(|contender| matches!(contender.try_wait(), Ok(Some(_)))) {
            Some(ended) => losers.push(contenders.remove(ended)),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    let winners: Vec<u32> = contenders.iter().map(Child::id).collect();
    let order: Vec<i64> = losers.iter().map(|loser| i64::from(loser.id()) - i64::from(winners[0])).collect();
    tally.tried(order);
    tally.require(winners.len() == 1, || format!("{} daemons hold one store", winners.len()));
    for loser in losers {
        let pid = loser.id();
        let output = loser.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let named = said.contains(&format!("in use by process {} ", winners[0]));
        tally.require(output.status.code() == Some(1) && named, || {
            format!("{pid} lost against {} with {:?} and said {said}", winners[0], output.status)
        });
    }
    job.check(tally)?;
    let signal = if random.one_in(2) { Signal::KILL } else { Signal::TERM };
    for mut winner in contenders {
        std::thread::sleep(random.up_to(Duration::from_millis(100)));
        job::signal(winner.id(), signal);
        // Read to its end, so that it never waits for a reader; what it says is not looked at.
        if let Some(mut said) = winner.stderr.take() {
            std::io::copy(&mut said, &mut std::io::sink())?;
        }
        let code = winner.wait()?.code();
        let expected = if signal == Signal::KILL { None } else { Some(75) };
        tally.require(code == expected, || format!("the winner ended with {code:?}"));
    }
    job.check(tally)
}
