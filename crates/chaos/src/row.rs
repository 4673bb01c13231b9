//! What a campaign reports.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;

/// Violations that a row tells in full.
const EXAMPLES: usize = 5;

/// One line of the table.
#[derive(Serialize)]
pub struct CampaignRow {
    pub kind: &'static str,
    pub points: u64,
    pub distinct: u64,
    pub violations: u64,
    pub seed: u64,
    /// The first violations, in a sentence each.
    pub examples: Vec<String>,
    /// Why nothing was tried on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

impl CampaignRow {
    pub fn not_run(kind: &'static str, seed: u64, why: impl Into<String>) -> CampaignRow {
        CampaignRow {
            kind,
            points: 0,
            distinct: 0,
            violations: 0,
            seed,
            examples: Vec::new(),
            not_run: Some(why.into()),
        }
    }

    pub fn to_json(&self) -> String {
        // Plain fields with string keys always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Counts while a campaign runs; what breaks is told at once, on stderr.
pub struct CampaignTally {
    kind: &'static str,
    seed: u64,
    points: u64,
    distinct: HashSet<u64>,
    violations: u64,
    examples: Vec<String>,
}

impl CampaignTally {
    pub fn new(kind: &'static str, seed: u64) -> CampaignTally {
        CampaignTally { kind, seed, points: 0, distinct: HashSet::new(), violations: 0, examples: Vec::new() }
    }

    /// A point was tried; `what` tells it from others.
    pub fn tried(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.points += 1;
        self.distinct.insert(hasher.finish());
    }

    pub fn points(&self) -> u64 {
        self.points
    }

    pub fn violation(&mut self, what: impl std::fmt::Display) {
        self.violations += 1;
        let what = format!("point {}: {what}", self.points);
        eprintln!("{} (seed {}), {what}", self.kind, self.seed);
        if self.examples.len() < EXAMPLES {
            self.examples.push(what);
        }
    }

    /// Holds a promise to what was found.
    pub fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violation(otherwise());
        }
    }

    /// Takes in what another thread counted of the same campaign.
    pub fn add(&mut self, other: CampaignTally) {
        self.points += other.points;
        self.distinct.extend(other.distinct);
        self.violations += other.violations;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }

    pub fn row(self) -> CampaignRow {
        CampaignRow {
            kind: self.kind,
            points: self.points,
            distinct: self.distinct.len() as u64,
            violations: self.violations,
            seed: self.seed,
            examples: self.examples,
            not_run: None,
        }
    }
}
