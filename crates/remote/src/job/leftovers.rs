//! What killed machines leave behind at a remote: parts of uploads, which are paid for, and files that never got a
//! name.
//!
//! Invariant: only the owner of the job removes them, and never the upload that its own store can go on with.

use std::time::Duration;

use super::error::Result;
use super::place::RemoteJob;
use crate::layout::{ContentHash, JobObject, Prefix};
use crate::objects::UploadId;
use crate::records::UploadRecord;

/// What nobody has touched for so long is nobody's.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// Removes what is left behind; `own` is the file whose upload this store goes on with.
pub async fn clear(job: &RemoteJob, own: Option<&ContentHash>) -> Result<()> {
    for (object, _) in job.list(Prefix::Uploads).await? {
        let JobObject::Upload(hash) = &object else { continue };
        if own == Some(hash) {
            continue;
        }
        if let Ok(Some((record, _))) = job.read::<UploadRecord>(&object).await {
            let upload = UploadId(record.upload_id);
            for target in [JobObject::Data(hash.clone()), JobObject::Blob(hash.clone())] {
                job.storage().abort_upload(&target.name(), &upload).await?;
            }
        }
        job.delete(&object).await?;
    }
    if job.storage().abilities().sweeps {
        job.storage().sweep(IDLE).await?;
    }
    Ok(())
}
