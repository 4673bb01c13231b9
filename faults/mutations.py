"""Bugs that the campaign must catch, as changes of the text of the store and of its replication.

Each is put into a copy of the sources, where `ON` becomes the question whether CKPTD_MUTATION names it; nothing of them
is in what is shipped. A text that is not found exactly once is an error: the code went on, and so must the bug."""

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    # Sub-commands of the exerciser that are tried until one catches it.
    parts: tuple[str, ...]
    # (file in the crate's src, what is there, what is there instead)
    changes: tuple[tuple[str, str, str], ...]
    # Folder in crates/.
    crate: str = "core"


CRASH, SWEEP, DAMAGE, RACE = ("crash-states",), ("sweep",), ("damage",), ("contenders",)
KILLS, ERRORS, LATE, PARTS = ("replica-kills",), ("replica-errors",), ("replica-late",), ("replica-parts",)
ROT, TRASH, SCHEDULES = ("replica-rot",), ("replica-trash",), ("replica-schedules",)


def without(statement: str) -> tuple[str, str]:
    return statement, f"if !ON {{ {statement} }}"


def instead(expression: str, other: str) -> tuple[str, str]:
    return expression, f"(if ON {{ {other} }} else {{ {expression} }})"


SYNC_FILE = "fs::sync_file(&file, &path)?;"
SYNC_FOLDERS = "snapshots.sync().and_then(|()| staging.sync())"
RENAME = "staging.rename_new(part, &snapshots, &name)?;"
LATE_SYNC = "if ON { let path = snapshots.join(&name); fs::sync_file(&fs::open_path(&path)?, &path)?; }"
ASK_SYNC = "faults::call(FsCall::Sync(path.into()), || rustix::fs::fsync(file))"
WRITE = "faults::write(path.into(), at, &buffer[done..], write)"
NO_PROGRESS = 'return Err(Error::io("writing", path, std::io::ErrorKind::WriteZero.into()))'
MODIFIED = "self.modified_ns == stamp.modified_ns()"
CHANGED = "self.changed_ns == stamp.changed_ns()"
SEND = "let checked = send(&job, &path, &options).await?;"
EARLY_MARKER = ("let early = (epoch, nonce.clone(), crate::records::Checked::Whole); "
                "let early = marker(&manifest, ContentHash::from(hash), &path, early)?; "
                "job.create(&crate::layout::JobObject::Commit(early.name()), &early).await?;")
MAKE_ROOM = ("let survey = Survey::of(&job).await?; "
             "for (name, old) in retention::read_markers(&job, &survey, &BTreeMap::new()).await? { "
             "job.delete(&crate::layout::JobObject::Commit(name)).await?; "
             "job.delete(&crate::layout::JobObject::Data(old.file_hash)).await?; }")
TAKE_MARKER = "job.delete(&JobObject::Commit(name)).await?;"
COUNT = "counter: 0,\n            base,"
NEXT_COUNT = "let counter = own.record.counter.saturating_add(1);"
CLOCK = "u64::try_from(now.as_millis()).unwrap_or(0)"
SEND_PART = "job.storage().put(&JobObject::HistoryPart(part.hash.clone()).name(), body).await?;"
EXPIRED = "asked >= since + ttl"
SYNC_BATCH = "fs::sync_file(&growing.file, &growing.path);"
PACK = "self.folder.write_durably(&part(true), &packed)?;"
CUT_OFF = "            fs::truncate(&file, found.length, &path)?;\n"
CONTINUED = "Ok(Some(GrowingPart { number, file, path, length: found.length,"

MUTATIONS = [
    Mutation("the file is not synced", CRASH, (("store/commit.rs", *without(SYNC_FILE)),)),
    Mutation("snapshots/ is not synced", CRASH, (("store/commit.rs", *instead(SYNC_FOLDERS, "staging.sync()")),)),
    Mutation("staging/ is not synced", CRASH, (("store/commit.rs", *instead(SYNC_FOLDERS, "snapshots.sync()")),)),
    Mutation("the rename comes before the sync", CRASH, (
        ("store/commit.rs", *without(SYNC_FILE)), ("store/commit.rs", RENAME, f"{RENAME} {LATE_SYNC}"))),
    Mutation("a small file is not synced before it replaces the old one", CRASH, (
        ("os/dir.rs", "        sync_file(&file, &path)\n", "        if ON { Ok(()) } else { sync_file(&file, &path) }\n"),)),
    Mutation("the store's own name is not synced", CRASH, (
        ("os/dir.rs", *instead("Dir::open(folder).and_then(|parent| parent.sync())", "Dir::open(folder).map(drop)")),)),
    Mutation("snapshots are written in place", CRASH, (
        ("store/commit.rs", *instead("store.folder(layout::Folder::Staging)?", "store.folder(layout::Folder::Snapshots)?")),)),
    Mutation("rotation counts what was not read back", SWEEP, (
        ("store/rotate.rs", "verified: entry.state == SnapshotState::Verified,", "verified: ON || entry.state == SnapshotState::Verified,"),)),
    Mutation("one verified snapshot is thought to be enough", CRASH, (
        ("store/retain.rs", "_ if place < ALWAYS =>", "_ if place >= 1 && ON => {}\n_ if place < ALWAYS =>"),)),
    Mutation("the best is not kept", CRASH, (
        ("store/retain.rs", '0 => reasons[i].push(KeepReason::Best),',
         '0 if ON => {}\n0 => reasons[i].push(KeepReason::Best),'),)),
    Mutation("pins are overlooked", CRASH, (
        ("store/catalogue.rs", "entry.pinned = pins.contains(&entry.id);", "entry.pinned = !ON && pins.contains(&entry.id);"),)),
    Mutation("resume takes what was not read back", CRASH, (
        ("store/resume.rs", "SnapshotState::Verified => return Ok(Some(chosen(entry, &passed_over))),",
         "SnapshotState::Committed if ON => return Ok(Some(chosen(entry, &passed_over))),\n"
         "SnapshotState::Verified => return Ok(Some(chosen(entry, &passed_over))),"),)),
    Mutation("resume takes an unhealthy one", CRASH, (
        ("store/resume.rs", "_ if !entry.healthy() => {", "_ if !entry.healthy() && !ON => {"),)),
    Mutation("a damaged file is deleted", CRASH, (
        ("store/quarantine.rs", *instead("snapshots.rename_new(&name, &quarantine, &aside)?", "snapshots.remove(&name)?")),)),
    Mutation("sequence numbers of quarantined snapshots are used again", CRASH, (
        ("store/handle.rs", *instead("self.manifests(Folder::Quarantine)?", "Vec::new()")),)),
    Mutation("staging/ is not cleaned", CRASH, (
        ("store/clean.rs", *without("leftovers.iter().try_for_each(|name| staging.remove(name))?;")),)),
    Mutation("a failed sync is tried again", SWEEP, (
        ("os/fs.rs", *instead(ASK_SYNC, f"{ASK_SYNC}.or_else(|_| rustix::fs::fsync(file))")),)),
    Mutation("a full disk is no error", SWEEP, (
        ("os/fs.rs", WRITE, f"{WRITE}.or_else(|e| if ON && e == Errno::NOSPC {{ Ok(0) }} else {{ Err(e) }})"),
        ("os/fs.rs", f"0 => {NO_PROGRESS}", f"0 if ON => return Ok(()),\n0 => {NO_PROGRESS}"))),
    Mutation("a short write is taken for a whole one", SWEEP, (
        ("os/fs.rs", "n => done += n,\n        }\n    }\n    Ok(())", "n => done += if ON { buffer.len() } else { n },\n        }\n    }\n    Ok(())"),)),
    Mutation("a snapshot that could not be made durable stays", SWEEP, (
        ("store/commit.rs", *without("let _ = snapshots.remove(&name);")),)),
    Mutation("the bytes of a chunk are not held against their hashes", DAMAGE, (
        ("store/outline.rs", "if *blake3::hash(encoded).as_bytes() != record.encoded_hash {",
         "if !ON && *blake3::hash(encoded).as_bytes() != record.encoded_hash {"),
        ("store/outline.rs", "Ok(()) if hash != record.raw_hash =>", "Ok(()) if !ON && hash != record.raw_hash =>"))),
    Mutation("the manifest is not held against its hash", DAMAGE, (
        ("store/peek.rs", "if *blake3::hash(&manifest).as_bytes() != trailer.manifest_hash {",
         "if !ON && *blake3::hash(&manifest).as_bytes() != trailer.manifest_hash {"),)),
    Mutation("a receipt is trusted after a change", DAMAGE, (
        ("store/receipt.rs", "self.inode == stamp.inode", "(ON || self.inode == stamp.inode)"),
        ("store/receipt.rs", MODIFIED, f"(ON || {MODIFIED})"), ("store/receipt.rs", CHANGED, f"(ON || {CHANGED})"))),
    Mutation("the lock is let go at once", RACE, (
        ("store/lock.rs", "        lock.write(&lock.holder);\n        Ok(StoreLock",
         "lock.write(&lock.holder);\nif ON { drop(rustix::fs::flock(&lock.file, rustix::fs::FlockOperation::Unlock)); }\nOk(StoreLock"),)),
    Mutation("the marker is written before the data", KILLS, (
        ("job/replication.rs", SEND, f"if ON {{ {EARLY_MARKER} }} {SEND}"),), "remote"),
    Mutation("the snapshot before is deleted before its successor is there", KILLS, (
        ("job/replication.rs", SEND, f"if ON {{ {MAKE_ROOM} }} {SEND}"),), "remote"),
    Mutation("retention takes the data before the marker", KILLS, (
        ("job/retention.rs", TAKE_MARKER,
         f"if ON {{ job.delete(&JobObject::Data(marker.file_hash.clone())).await?; }} {TAKE_MARKER}"),), "remote"),
    Mutation("retention removes data with its marker, not an hour later", KILLS, (
        ("job/retention.rs", "age < TRASH_TIME ||", "!ON && age < TRASH_TIME ||"),), "remote"),
    Mutation("retention goes by a list that broke off", TRASH, (
        ("job/retention.rs", *instead("job.list(prefix).await?", "job.list(prefix).await.unwrap_or_default()")),), "remote"),
    Mutation("an empty list stands for one that broke off", ERRORS, (
        ("job/place.rs", 'let listed = self.storage.list(&format!("{}/", prefix.name())).await?;',
         'let listed = self.storage.list(&format!("{}/", prefix.name())).await; '
         "let listed = if ON { listed.unwrap_or_default() } else { listed? };"),), "remote"),
    Mutation("retention counts what was only sampled", ROT, (
        ("job/retention.rs", "verified: marker.checked.is_verified(),", "verified: ON || marker.checked.is_verified(),"),), "remote"),
    Mutation("a sampled check is called a whole one", ROT, (
        ("job/send.rs", *instead("Ok(Checked::Sampled)", "Ok(Checked::Whole)")),), "remote"),
    Mutation("what was sent is not read back", ERRORS, (
        ("job/send.rs", *without("file.read(|_| true, |_, _| Ok(())).await?;")),), "remote"),
    Mutation("a damaged snapshot at the remote ends the resume", ROT, (
        ("job/fetch.rs", "Err(error) if error.is_of_the_file() => {", "Err(error) if !ON && error.is_of_the_file() => {"),), "remote"),
    Mutation("an answer that it is there already is believed", ERRORS, (
        ("job/owner.rs", "Ok(Created::AlreadyThere) => WriteOutcome::Refused,",
         "Ok(Created::AlreadyThere) if ON => WriteOutcome::Done(()),\nOk(Created::AlreadyThere) => WriteOutcome::Refused,"),), "remote"),
    Mutation("an error is believed", ERRORS, (
        ("protocol/markers.rs", "WriteOutcome::Refused | WriteOutcome::Unknown => actions.push(LeaseAction::ReadMarker(marker)),",
         "WriteOutcome::Unknown if ON => { self.committing = None; "
         "actions.push(LeaseAction::Tell(LeaseNews::NotCommitted(marker))); }\n"
         "WriteOutcome::Refused | WriteOutcome::Unknown => actions.push(LeaseAction::ReadMarker(marker)),"),), "remote"),
    Mutation("the lease is judged by the owner's clock", SCHEDULES, (
        ("protocol/machine.rs", COUNT, COUNT.replace("0,", f"if ON {{ {CLOCK} }} else {{ 0 }},", 1)),
        ("protocol/machine.rs", NEXT_COUNT, NEXT_COUNT + f" let counter = if ON {{ {CLOCK} }} else {{ counter }};"),
        ("protocol/machine.rs", *instead(EXPIRED, "now >= Duration::from_millis(seen.record.counter) + ttl"))), "remote"),
    Mutation("the epoch stays where the job is taken over", SCHEDULES, (
        ("protocol/machine.rs", *instead("self.newest_epoch.saturating_add(1)", "self.newest_epoch.max(1)")),), "remote"),
    Mutation("the late write of a machine that lost the job is chosen", LATE, (
        ("fence.rs", "find(|(_, base)| **base < seq)", "find(|(_, base)| !ON && **base < seq)"),), "remote"),
    Mutation("parts of another file are gone on with", PARTS, (
        ("job/send.rs", "kept.file_hash == *hash", "(ON || kept.file_hash == *hash)"),), "remote"),
    Mutation("the marker names other bytes than those that were sent", KILLS, (
        ("job/prepare.rs", "        file_hash,\n        bytes,",
         "        file_hash: if ON { ContentHash::from([7; 32]) } else { file_hash },\n        bytes,"),), "remote"),
    Mutation("a part of the history is named and was not sent", KILLS, (
        ("job/history.rs", *without(SEND_PART)),), "remote"),
    Mutation("a history that did not come whole is removed", ERRORS, (
        ("job/history.rs", "if !(self.has_all && has_read_all) && self.before", "if !ON && !(self.has_all && has_read_all) && self.before"),),
        "remote"),
    Mutation("a batch of the history is not synced", CRASH, (
        ("writer.rs", SYNC_BATCH, f"if ON {{ Ok(()) }} else {{ {SYNC_BATCH.rstrip(';')} }};"),), "history"),
    Mutation("a part of the history goes before it is packed", CRASH, (
        ("writer.rs", PACK, f"if ON {{ self.folder.remove(&part(false))?; }} {PACK}"),), "history"),
    Mutation("the torn end of the history stays", CRASH, (
        ("writer.rs", CUT_OFF, f"if !ON {{ {CUT_OFF} }}"),
        ("writer.rs", CONTINUED,
         f"let end = if ON {{ fs::length(&file, &path)? }} else {{ found.length }};\n{CONTINUED.replace('found.length', 'end')}")),
        "history"),
]
