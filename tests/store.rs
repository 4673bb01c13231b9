//! What is saved is read back to the bit; what is damaged is never accepted; order, locks and rotation hold.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use ckptd_core::Error;
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::Role;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::{CommitOptions, CommitPace, SnapshotReader, SnapshotState, Store, StoreLock, commit};
use ckptd_testkit::small;
use ckptd_testkit::small::{RUN, save, save_verified, snapshot, store};
use tempfile::TempDir;

#[test]
fn every_tensor_file_and_state_is_read_back_to_the_bit() {
    let (_folder, store) = store();
    // More than one chunk in a tensor, a row that crosses chunks, an empty tensor, a scalar.
    let saved = snapshot(7, 6000);
    let (alone, beside, hurried) = (CommitPace::Alone, CommitPace::Background, CommitPace::Hurried);
    let paces = [(0, 1, alone), (1, 1, hurried), (1, 3, beside), (1, 2, hurried), (3, 2, alone)];
    for (seq, (level, threads, pace)) in paces.into_iter().enumerate() {
        let options = CommitOptions { level, threads, pace, ..CommitOptions::new(RUN, seq as u64) };
        let committed = commit(&store, &StoreLock::inherited(), saved.clone(), &options).unwrap();
        let reader = SnapshotReader::open(&committed.path).unwrap();
        let read = reader.read_snapshot().unwrap();
        for (a, b) in saved.tensors.iter().zip(&read.tensors) {
            assert_eq!(a.meta, b.meta);
            assert!((*a.bytes).as_ref() == (*b.bytes).as_ref(), "{} differs", a.meta.label());
        }
        assert_eq!(read.train, saved.train);
        assert_eq!(read.metrics, saved.metrics);
        assert_eq!(read.files[0].bytes, saved.files[0].bytes);
        let mut parallel = vec![0; (*saved.tensors[1].bytes).as_ref().len()];
        reader.read_into(vec![(1, &mut parallel)], 4).unwrap();
        assert!(parallel == (*saved.tensors[1].bytes).as_ref());
    }
}

#[test]
fn root_depends_on_the_state_alone() {
    let (_folder, store) = store();
    let mut saved = snapshot(7, 300);
    let root = |saved: &ckptd_core::snapshot::Snapshot, seq, level| {
        commit(&store, &StoreLock::inherited(), saved.clone(), &CommitOptions { level, ..CommitOptions::new(RUN, seq) })
            .unwrap()
            .root
    };
    let first = root(&saved, 1, 1);
    saved.tensors.reverse();
    saved.provenance.host = "another".into();
    assert_eq!(root(&saved, 2, 0), first, "order, codec, host and sequence number do not enter it");
    saved.train.position += 1;
    assert_ne!(root(&saved, 3, 1), first, "the data position does");
}

#[test]
fn a_nan_makes_the_snapshot_unhealthy_and_resume_passes_over_it() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let mut bad = snapshot(20, 64);
    let mut bytes = (*bad.tensors[0].bytes).as_ref().to_vec();
    bytes[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
    bad.tensors[0] = small::tensor(Role::Param, "h.0.weight", &[64, 48], bytes);
    let committed = commit(&store, &StoreLock::inherited(), bad, &CommitOptions::new(RUN, 2)).unwrap();
    assert!(!committed.healthy);
    let chosen = store.choose_resume(&StoreLock::inherited(), 1, &mut |_| ()).unwrap().unwrap();
    assert_eq!(chosen.entry.step(), 10);
    assert!(committed.path.exists(), "it stays for a post-mortem");
}

#[test]
fn resume_quarantines_what_is_damaged_and_takes_the_one_before() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let newest = save(&store, 20, 2);
    let file = std::fs::OpenOptions::new().write(true).open(&newest.path).unwrap();
    file.write_all_at(b"!", newest.bytes / 3).unwrap();
    let mut said = Vec::new();
    let chosen = store.choose_resume(&StoreLock::inherited(), 1, &mut |line| said.push(line)).unwrap().unwrap();
    assert_eq!(chosen.entry.step(), 10);
    assert!(said[0].contains("damaged") && said[0].contains("quarantine"), "{said:?}");
    let aside = &store.quarantined().unwrap()[0];
    assert_eq!(aside.name, "step-000000000020.ckpt");
    assert!(aside.reason.contains("does not match its hash"), "{}", aside.reason);
}

#[test]
fn a_receipt_stops_counting_when_its_file_changes() {
    let (_folder, store) = store();
    let committed = save_verified(&store, 10, 1);
    assert_eq!(store.find("10").unwrap().state, SnapshotState::Verified);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&committed.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    assert_eq!(store.find("10").unwrap().state, SnapshotState::Committed);
    let error = store.verify(&store.find("10").unwrap(), 1, &NoProgress).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn a_receipt_does_not_pass_to_another_file_of_the_same_name() {
    let (_folder, store) = store();
    let a = save_verified(&store, 10, 1);
    let b = save_verified(&store, 20, 2);
    let aside = a.path.with_extension("tmp");
    std::fs::rename(&a.path, &aside).unwrap();
    std::fs::rename(&b.path, &a.path).unwrap();
    std::fs::rename(&aside, &b.path).unwrap();
    // The names lie now; order and steps come from the manifests, and neither file counts as verified.
    let entries = store.entries().unwrap();
    assert_eq!(
        entries.iter().map(|e| (e.step(), e.state.clone())).collect::<Vec<_>>(),
        [(20, SnapshotState::Committed), (10, SnapshotState::Committed)]
    );
}

#[test]
fn the_second_snapshot_of_a_step_does_not_overwrite_the_first() {
    let (_folder, store) = store();
    let a = save(&store, 10, 1);
    let b = save(&store, 10, 2);
    assert_ne!(a.path, b.path);
    assert_eq!(store.entries().unwrap().iter().map(|e| e.seq()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn prune_applies_the_plan_and_only_to_verified_snapshots() {
    let (_folder, store) = store();
    for seq in 1..=6 {
        save_verified(&store, seq * 10, seq);
    }
    save(&store, 70, 7);
    store.pin(&store.find("10").unwrap()).unwrap();
    let policy = RetentionPolicy { keep_last: 2, ..RetentionPolicy::default() };
    store.prune(&StoreLock::inherited(), &policy, jiff::Timestamp::now()).unwrap();
    let left: Vec<u64> = store.entries().unwrap().iter().map(|e| e.step()).collect();
    assert_eq!(left, [70, 60, 50, 10]);
}

#[test]
fn a_listing_never_sees_half_a_rotation() {
    // In memory, where there is one, a rotation is quick enough to meet a look.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
    let store = Store::create(folder.path()).unwrap();
    store.set_run_id(&StoreLock::inherited(), RUN).unwrap();
    let policy = RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() };
    for seq in 1..=2 {
        save_verified(&store, seq * 10, seq);
    }
    std::thread::scope(|scope| {
        let rotation = scope.spawn(|| {
            for seq in 3..=300 {
                save_verified(&store, seq * 10, seq);
                store.prune(&StoreLock::inherited(), &policy, jiff::Timestamp::now()).unwrap();
            }
        });
        while !rotation.is_finished() {
            let entries = store.entries().unwrap();
            let verified = entries.iter().filter(|e| e.state == SnapshotState::Verified).count();
            let seen: Vec<_> = entries.iter().map(|e| (e.step(), &e.state)).collect();
            assert!(verified >= 2, "{seen:?}");
        }
    });
}

#[test]
fn a_store_has_one_writer_and_the_refusal_names_it() {
    let (_folder, store) = store();
    let lock = store.lock("the first").unwrap();
    // flock belongs to the open file, so a second open in this process stands for another process.
    let error = store.lock("the second").unwrap_err();
    assert!(matches!(&error, Error::Locked { pid, alive: true, .. } if *pid == std::process::id()), "{error}");
    drop(lock);
    store.lock("the second").unwrap();
}

#[test]
fn an_abandoned_commit_leaves_nothing() {
    let (_folder, store) = store();
    let options = CommitOptions::new(RUN, 1);
    options.handle.cancel();
    commit(&store, &StoreLock::inherited(), snapshot(1, 64), &options).unwrap_err();
    assert!(store.entries().unwrap().is_empty());
    assert_eq!(store.clean_staging(&StoreLock::inherited()).unwrap(), 0);
}

#[test]
fn a_commit_that_is_hurried_on_writes_the_same_snapshot() {
    let (_folder, store) = store();
    let saved = snapshot(7, 6000);
    let usual = commit(&store, &StoreLock::inherited(), saved.clone(), &CommitOptions::new(RUN, 1)).unwrap();
    let options = CommitOptions { pace: CommitPace::Background, ..CommitOptions::new(RUN, 2) };
    options.handle.hurry();
    let hurried = commit(&store, &StoreLock::inherited(), saved, &options).unwrap();
    assert_eq!((hurried.root, options.handle.fraction()), (usual.root, 1.0));
    assert_eq!(hurried.bytes, std::fs::metadata(&hurried.path).unwrap().len());
}

#[test]
fn links_planted_in_the_store_are_neither_read_nor_followed() {
    let (folder, store) = store();
    let outside = folder.path().join("outside");
    std::fs::write(&outside, b"precious").unwrap();
    let root = store.path();
    std::os::unix::fs::symlink(&outside, root.join("snapshots/step-000000000005.ckpt")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("staging/step-000000000010.1.part")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("receipts/step-000000000010.json")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("pins/step-000000000010")).unwrap();
    save_verified(&store, 10, 1);
    store.pin(&store.find("10").unwrap()).unwrap();
    assert_eq!(store.entries().unwrap().len(), 1);
    assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
    std::os::unix::fs::symlink(&outside, root.join("ckptd.lock")).unwrap();
    store.lock("test").unwrap_err();
    assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
}
