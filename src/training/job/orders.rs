//! What a person orders over the socket: to end the session, or to take a snapshot.

use tracing::info;

use super::events::JobAction;
use super::machine::{JobMachine, StopCause};
use crate::daemon::order::{DaemonOrder, OrderReply};
use crate::session::clock::ClockReading;
use ckptd_core::text::rough_duration;

impl JobMachine {
    /// Carries `order` out where that can be, and says so; with what is to be done for it.
    pub fn ordered(&mut self, order: DaemonOrder, now: ClockReading) -> (OrderReply, Vec<JobAction>) {
        let (taken, said) = match order {
            DaemonOrder::Snapshot if self.trains() && self.stop.is_none() => {
                info!("`ckptd snapshot`: snapshot now");
                self.request_snapshot("order", now);
                (true, format!("taking a snapshot after step {}", self.progress.step))
            }
            DaemonOrder::Snapshot => (false, "no worker trains now: there is nothing to save".to_owned()),
            DaemonOrder::Stop => {
                let grace = self.config.session.grace.0;
                self.stop("`ckptd stop`", now.at + grace, StopCause::Signal, now);
                let left = rough_duration(self.time_to_leave(now));
                (true, format!("ending the session with a last snapshot, within {left}"))
            }
            DaemonOrder::StopNow => {
                self.stop("`ckptd stop --now`", now.at, StopCause::Signal, now);
                self.end_as_it_is(now);
                (true, "ending the session as it is".to_owned())
            }
        };
        self.after(now);
        (OrderReply { taken, said }, std::mem::take(&mut self.actions))
    }
}
