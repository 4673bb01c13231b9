//! A training on a rank that follows rank 0: it prepares what rank 0 has prepared, from copies of its own where it has
//! them, else from rank 0.
//!
//! Invariant: a copy counts by its hash, and nowhere by its name; what comes from rank 0 takes no memory but its
//! place. Deliberately not here: choosing snapshot, settings and tokens (rank 0 has), comparing what all hold
//! (`ranks`).

use std::path::Path;

use ckptd_core::config::Config;
use ckptd_core::protocol::Start;
use ckptd_core::snapshot::{Role, TrainState};
use ckptd_core::store::layout::Folder;
use ckptd_core::store::{SnapshotReader, Store};
use ckptd_core::text::grouped;
use ckptd_core::{Error, Result};
use ckptd_interop::hf;
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::names;
use serde::{Deserialize, Serialize};

use super::machine::TrainingMachine;
use super::open::{TrainingSetup, begin, owned_by_rank, provenance, train_settings};
use super::restore::{OTHER_LOGITS, fill_from, gives_logits};
use crate::capture::{TensorDestination, TrainingState};
use crate::data::{FoundTokens, KnownTokens};
use crate::gpt2::{Activations, Gpt2Config, Gpt2Model};
use crate::optim::ModelOptimizer;
use crate::ranks::{RankGroup, SpreadEnd, say, spread};
use crate::reduction::norm_gradients;
use crate::tokens::TokenView;

/// What rank 0 has prepared.
#[derive(Debug, Serialize, Deserialize)]
struct PreparedTraining {
    shape: Gpt2Config,
    train: TrainState,
    /// The hash of the snapshot that it went on from.
    snapshot: Option<String>,
    /// What that one says of the model's logits.
    fingerprint: Option<String>,
    tokens: KnownTokens,
}

/// What a rank has of it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RankNeeds {
    state: bool,
    tokens: bool,
    /// Its `[data] tokens` is another file, with this hash.
    other_tokens: Option<String>,
}

impl TrainingSetup {
    /// On rank 0: lets the other ranks prepare the same.
    ///
    /// # Errors
    /// That a rank is lost, or [`Error::Config`] that names one with other tokens.
    pub fn hand_out(&mut self, resume: Option<&Path>, group: &mut dyn RankGroup) -> Result<()> {
        let prepared = PreparedTraining {
            shape: self.model.config().clone(),
            train: self.state.train().0,
            snapshot: self.resumed.as_ref().map(|resumed| resumed.file_hash.clone()),
            fingerprint: self.resumed.as_ref().and_then(|resumed| resumed.fingerprint.clone()),
            tokens: KnownTokens::of(&self.data),
        };
        let json = serde_json::to_vec(&prepared).map_err(|e| Error::Other(format!("writing a training: {e}")))?;
        group.broadcast(&json)?;
        let needs = RankNeeds::default().gather(group, &prepared.tokens)?;
        let file = self.data.train.file();
        spread(group, &wanting(&needs, |needs| needs.tokens), file.len() as u64, SpreadEnd::Source(file))?;
        let wanting = wanting(&needs, |needs| needs.state);
        let is_sharded = self.owned_by(0).is_some();
        self.state.fill(|destinations| {
            let whole = destinations.iter().filter(|destination| !is_sharded || destination.meta.role == Role::Param);
            let mut sources = whole.map(|TensorDestination { bytes, .. }| &**bytes);
            sources.try_for_each(|bytes| spread(group, &wanting, bytes.len() as u64, SpreadEnd::Source(bytes)))
        })?;
        match resume.filter(|_| is_sharded && wanting.contains(&true)) {
            Some(path) => self.hand_out_moments(&SnapshotReader::open(path)?, &wanting, group),
            None => Ok(()),
        }
    }

    /// On another rank: prepares what rank 0 has prepared from `start`. `local` says where things lie here.
    ///
    /// # Errors
    /// That a rank is lost, or what is wrong with this one's machine, snapshot or memory.
    pub fn follow(start: Start, local: &Config, group: &mut dyn RankGroup) -> Result<TrainingSetup> {
        let json = group.broadcast(&[])?;
        let prepared: PreparedTraining = serde_json::from_slice(&json)
            .map_err(|e| Error::Other(format!("rank 0 says what this release does not understand: {e}")))?;
        let config = start.config;
        let machine = TrainingMachine::as_on_rank_zero(&config, prepared.train.arithmetic)?;
        let optimizer = ModelOptimizer::new(&config.train, machine.threads)?;
        let (shape, tokens) = (&prepared.shape, &prepared.tokens);
        let settings = train_settings(&config, &machine, shape, tokens.content());
        let train = TrainState { settings, ..prepared.train.clone() };
        let (params, roles, device) = (shape.parameters(), optimizer.roles(), machine.device);
        let owned = owned_by_rank(&config, &params, group.rank());
        let is_sharded = owned.is_some();
        let state = match owned {
            Some(owned) => TrainingState::sharded(&params, roles, device, train, &owned)?,
            None => TrainingState::new(&params, roles, device, train)?,
        };
        let mut state = state.sparing(config.snapshot.memory);
        let snapshot = start.resume.as_deref().and_then(|path| own_snapshot(path, local, prepared.snapshot.as_deref()));
        let has_state = match (&start.resume, &snapshot) {
            (Some(_), Some(snapshot)) => fill_from(snapshot, &mut state, machine.threads).is_ok(),
            (Some(_), None) => false,
            (None, _) => begins_alike(local, &config, shape, &mut state),
        };
        let found = tokens.find(&local.data);
        let needs = RankNeeds {
            state: !has_state,
            tokens: matches!(found, FoundTokens::Missing),
            other_tokens: if let FoundTokens::Other(hash) = &found { Some(hash.clone()) } else { None },
        };
        let all = needs.gather(group, tokens)?;
        let view = take_tokens(tokens, found, local, &wanting(&all, |needs| needs.tokens), group)?;
        let wanting = wanting(&all, |needs| needs.state);
        let mut came = take_state(&mut state, (is_sharded, &needs), &wanting, group)?;
        let model = Gpt2Model::new(prepared.shape.clone(), machine.device)
            .adding_norms(norm_gradients(prepared.train.arithmetic))
            .keeping(Activations::of(&config.train));
        if let (Some(saved), false) = (&prepared.fingerprint, start.accept_changes)
            && !gives_logits(saved, (&model, config.train.precision), &state)?
        {
            return Err(Error::Config(format!("on rank {} {OTHER_LOGITS}", group.rank())));
        }
        let TrainingMachine { device, threads, .. } = machine;
        let (data, files, provenance) = (tokens.dataset(&view), Vec::new(), provenance(device));
        let mut setup =
            TrainingSetup { config, device, threads, data, model, state, optimizer, files, provenance, resumed: None };
        if is_sharded && prepared.snapshot.is_some() && wanting.contains(&true) {
            came += setup.take_moments(&wanting, group)?;
        }
        if needs.state {
            tell(group, "state", came);
        }
        Ok(setup)
    }
}

impl RankNeeds {
    /// What each rank needs, in order; nothing of those that have it.
    fn gather(&self, group: &mut dyn RankGroup, tokens: &KnownTokens) -> Result<Vec<RankNeeds>> {
        let json = serde_json::to_vec(self).map_err(|e| Error::Other(format!("writing what is missing: {e}")))?;
        let said = group.gather(&json)?;
        let needs: Result<Vec<RankNeeds>, _> = said.iter().map(|json| serde_json::from_slice(json)).collect();
        let needs = needs.map_err(|e| Error::Other(format!("what another rank lacks: {e}")))?;
        let others = needs.iter().enumerate().filter_map(|(rank, needs)| {
            let other = needs.other_tokens.as_ref()?;
            Some(format!("rank {rank}: data {other}, not {} as on rank 0", tokens.content()))
        });
        let others: Vec<String> = others.collect();
        if others.is_empty() {
            return Ok(needs);
        }
        Err(Error::Config(format!(
            "the ranks differ, and would not compute the same: {}; nothing was trained",
            others.join("; ")
        )))
    }
}

fn wanting(needs: &[RankNeeds], what: impl Fn(&RankNeeds) -> bool) -> Vec<bool> {
    needs.iter().map(what).collect()
}

/// The same snapshot in this rank's store, where it is there.
fn own_snapshot(path: &Path, local: &Config, hash: Option<&str>) -> Option<SnapshotReader> {
    let folder = Store::open(&local.job.store).and_then(|store| store.folder(Folder::Snapshots)).ok()?;
    let reader = SnapshotReader::open_past_cache(&folder.join(&path.file_name()?.to_string_lossy())).ok()?;
    (hash == Some(blake3::Hash::from_bytes(reader.file_hash()).to_hex().as_str())).then_some(reader)
}

/// Fills the state of a training that begins, where this rank can: from a seed, or from the same folder.
fn begins_alike(local: &Config, config: &Config, shape: &Gpt2Config, state: &mut TrainingState) -> bool {
    let folder = match &local.model.from {
        Some(dir) if dir.join(names::CONFIG).is_file() => match hf::open(dir, &ReadLimits::default()) {
            Ok(folder) => Some(folder),
            Err(_) => return false,
        },
        Some(_) => return false,
        None => None,
    };
    begin(config, shape, folder.as_ref(), state).is_ok()
}

/// This rank's own tokens, or rank 0's.
fn take_tokens(
    tokens: &KnownTokens,
    found: FoundTokens,
    local: &Config,
    wanting: &[bool],
    group: &mut dyn RankGroup,
) -> Result<TokenView> {
    if let FoundTokens::Own(view) = found {
        spread(group, wanting, tokens.bytes, SpreadEnd::Bystander)?;
        return Ok(view);
    }
    let mut copy = tokens.receive(&local.data)?;
    spread(group, wanting, tokens.bytes, SpreadEnd::Sink(&mut |piece| copy.push(piece)))?;
    let view = tokens.received(copy, &local.data)?;
    tell(group, "tokens", tokens.bytes);
    Ok(view)
}

/// Rank 0's state, where this rank has none. It is compared later on. Returns the bytes that are whole on each rank.
fn take_state(
    state: &mut TrainingState,
    (is_sharded, needs): (bool, &RankNeeds),
    wanting: &[bool],
    group: &mut dyn RankGroup,
) -> Result<u64> {
    let mut bytes = 0;
    state.fill(|destinations| {
        let whole = destinations.iter_mut().filter(|destination| !is_sharded || destination.meta.role == Role::Param);
        for TensorDestination { bytes: memory, .. } in whole {
            let (length, mut at) = (memory.len() as u64, 0);
            let mut sink = |piece: &[u8]| {
                memory[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
                Ok(())
            };
            let end = if needs.state { SpreadEnd::Sink(&mut sink) } else { SpreadEnd::Bystander };
            spread(group, wanting, length, end)?;
            bytes += length;
        }
        Ok(bytes)
    })
}

fn tell(group: &dyn RankGroup, what: &str, bytes: u64) {
    say(group.rank(), &format!("the {what} came from rank 0 ({} bytes)", grouped(bytes)));
}
