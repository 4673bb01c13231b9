//! What goes to a remote once in a session, before its first snapshot: the job, and what snapshots need besides.
//!
//! Deliberately not here: which files these are (`companions`).

use ckptd_core::store::Manifest;

use super::companions::{are_there, send_companions};
use super::error::Result;
use super::place::RemoteJob;
use super::replica::ReplicatorSettings;
use super::send::SendOptions;
use crate::layout::JobObject;
use crate::records::{BlobRecord, JobRecord};

/// What was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct SentOnce {
    job: bool,
    /// With the data that they belong to.
    companions: Option<(Option<String>, Vec<BlobRecord>)>,
    /// What the user is to be told.
    pub(super) complaint: Option<String>,
}

impl SentOnce {
    /// Sends what was not sent yet for a snapshot with this manifest.
    pub(super) async fn send(
        &mut self,
        job: &RemoteJob,
        settings: &ReplicatorSettings,
        manifest: &Manifest,
        options: &SendOptions<'_>,
    ) -> Result<()> {
        if let (false, Some(record)) = (self.job, &settings.job) {
            // One that cannot be read is replaced.
            let there = job.read::<JobRecord>(&JobObject::Job).await.ok().flatten();
            if there.is_none_or(|(there, _)| there != *record) {
                job.put(&JobObject::Job, record).await?;
            }
            self.job = true;
        }
        let data = manifest.train.settings.data_content().map(str::to_owned);
        if let Some((of, blobs)) = &self.companions
            && *of == data
            // Somebody may have removed them.
            && are_there(job, blobs).await?
        {
            return Ok(());
        }
        let blobs = match settings.companions.of(manifest) {
            Ok(companions) => send_companions(job, companions, options).await?,
            Err(error) => {
                self.complaint =
                    Some(format!("{error}; a machine that has only the URL of {} will not have the data", job.place()));
                Vec::new()
            }
        };
        self.companions = Some((data, blobs));
        Ok(())
    }

    /// What belongs to the snapshot that was sent for last.
    pub(super) fn blobs(&self) -> Vec<BlobRecord> {
        self.companions.as_ref().map_or_else(Vec::new, |(_, blobs)| blobs.clone())
    }
}
