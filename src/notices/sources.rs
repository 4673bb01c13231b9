//! Which sources are asked, each on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tracing::warn;

use super::ask::poll;
use super::http::DirectClient;
use super::notice_file::NoticeMemory;
use super::source::{NoticeSink, NoticeSource, SourceWake};
use super::{aws, azure, gcp, notice_file, slurm, systemd};
use ckptd_core::config::SessionSection;

/// The sources that the config and the environment ask for; they end with this.
pub struct NoticeSources {
    wakes: Vec<Sender<SourceWake>>,
    has_slurm: bool,
}

impl NoticeSources {
    /// Starts a thread per source, which puts its notices into `sink`. `memory`: of this process's session before.
    pub fn start(session: &SessionSection, sink: &NoticeSink, memory: &NoticeMemory) -> NoticeSources {
        let mut sources = NoticeSources { wakes: Vec::new(), has_slurm: false };
        let mut polled: Vec<Box<dyn NoticeSource>> = Vec::new();
        if session.slurm {
            polled.extend(slurm::SlurmSource::here().map(|source| Box::new(source) as Box<dyn NoticeSource>));
            sources.has_slurm = !polled.is_empty();
        }
        if session.systemd {
            polled.extend(systemd::SystemdSource::here().map(|source| Box::new(source) as Box<dyn NoticeSource>));
        }
        if session.aws {
            polled.push(Box::new(aws::SpotInterruption::new(DirectClient::new(), &session.aws_url)));
            polled.push(Box::new(aws::RebalanceAdvice::new(DirectClient::new(), &session.aws_url)));
        }
        if session.gcp {
            polled.push(Box::new(gcp::GcpPreemption::new(DirectClient::new(), &session.gcp_url)));
            polled.push(Box::new(gcp::GcpMaintenance::new(DirectClient::new(), &session.gcp_url)));
        }
        if session.azure {
            polled.push(Box::new(azure::AzureEvents::new(DirectClient::new(), &session.azure_url)));
        }
        for source in polled {
            sources.spawn(source.name(), sink, move |wakes, sink, _| poll(source, &wakes, &sink));
        }
        if let Some(path) = session.notice_file.clone() {
            let memory = memory.clone();
            sources.spawn(notice_file::NAME, sink, move |wakes, sink, wake| {
                notice_file::watch(&path, &wakes, wake, &sink, &memory);
            });
        }
        sources
    }

    /// Has every source asked now, whenever it was asked last; each says again what it knows.
    pub fn look(&self) {
        for wake in &self.wakes {
            // One that has nothing more to say is gone.
            let _ = wake.send(SourceWake::Look);
        }
    }

    /// Whether this process is in an allocation of Slurm.
    pub fn has_slurm(&self) -> bool {
        self.has_slurm
    }

    fn spawn(
        &mut self,
        name: &'static str,
        sink: &NoticeSink,
        run: impl FnOnce(Receiver<SourceWake>, NoticeSink, Sender<SourceWake>) + Send + 'static,
    ) {
        let (wake, wakes) = channel();
        let (sink, other) = (Arc::clone(sink), wake.clone());
        match std::thread::Builder::new().name(name.into()).spawn(move || run(wakes, sink, other)) {
            Ok(_) => self.wakes.push(wake),
            Err(e) => warn!("{name} is not asked: no thread could be started: {e}"),
        }
    }
}

impl Drop for NoticeSources {
    fn drop(&mut self) {
        for wake in &self.wakes {
            let _ = wake.send(SourceWake::Stop);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::source::SourceAnswer;
    use super::*;

    #[test]
    fn a_source_is_not_asked_any_more_once_its_owner_is_gone() {
        struct Counting(Sender<()>);
        impl NoticeSource for Counting {
            fn name(&self) -> &'static str {
                "counting"
            }
            fn ask(&mut self) -> Result<SourceAnswer, String> {
                self.0.send(()).unwrap();
                Err("nothing there".into())
            }
            fn retry_after(&self) -> Duration {
                Duration::from_secs(3600)
            }
        }
        let (asked, questions) = channel();
        let sink: NoticeSink = Arc::new(|notice| panic!("{notice:?}"));
        let mut sources = NoticeSources { wakes: Vec::new(), has_slurm: false };
        let source: Box<dyn NoticeSource> = Box::new(Counting(asked));
        sources.spawn("counting", &sink, move |wakes, sink, _| poll(source, &wakes, &sink));
        questions.recv().unwrap();
        drop(sources);
        // The thread ends, and with it the sender.
        questions.recv().unwrap_err();
    }
}
