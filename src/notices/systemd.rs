//! systemd: when the unit's RuntimeMaxSec is over.
//!
//! systemd tells a service nothing about it, and at its end kills it as failed: so it is asked, through systemctl,
//! about the unit that this process is in. Its count begins when the unit is started up, and stands still while the
//! machine sleeps, so what is found here is never too late. Deliberately not here: what the service manager is
//! told (daemon/service). Source: systemd.service(5), systemctl(1).

use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use ckptd_core::text::{exact_duration, parse_duration};

use super::program;
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer, ask_again};

const RETRY: Duration = Duration::from_secs(60);

/// The unit that this process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUnit {
    pub name: String,
    /// Of the user's service manager, not of the system's.
    pub of_user: bool,
}

pub struct SystemdSource {
    unit: ServiceUnit,
    systemctl: String,
}

impl SystemdSource {
    /// `None` where no systemd runs, or this process is in no unit of it.
    pub fn here() -> Option<SystemdSource> {
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        let unit = parse_cgroup(&std::fs::read_to_string("/proc/self/cgroup").ok()?)?;
        Some(SystemdSource { unit, systemctl: "systemctl".into() })
    }
}

impl NoticeSource for SystemdSource {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let mut arguments = vec!["show", "-p", "RuntimeMaxUSec,ActiveEnterTimestampMonotonic,ActiveState"];
        arguments.extend(self.unit.of_user.then_some("--user"));
        arguments.extend(["--", self.unit.name.as_str()]);
        let answer = program::output(&self.systemctl, &arguments, &[("LC_ALL", Some("C"))])
            .map_err(|what| format!("{what}, so that RuntimeMaxSec is not known; set [session] budget below it"))?;
        let Some(limit) = parse_show(&answer)? else { return Ok(SourceAnswer::default()) };
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
        let end = Announcement {
            text: format!("RuntimeMaxSec of {} is {}", self.unit.name, exact_duration(limit.max)),
            end: AnnouncedEnd::Left(limit.left(now)),
        };
        Ok(SourceAnswer { end: Some(end), again: Some(ask_again(limit.left(now))), ..SourceAnswer::default() })
    }

    fn retry_after(&self) -> Duration {
        RETRY
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeLimit {
    pub max: Duration,
    /// When the unit was up, on CLOCK_MONOTONIC; `None`: it is still starting.
    pub since: Option<Duration>,
}

impl RuntimeLimit {
    /// What is left of it, `now` on the same clock.
    pub fn left(&self, now: Duration) -> Duration {
        let since = self.since.unwrap_or(now);
        since.saturating_add(self.max).saturating_sub(now)
    }
}

/// What `systemctl show` says; `None`: the unit has no limit.
pub fn parse_show(answer: &str) -> Result<Option<RuntimeLimit>, String> {
    let value = |name: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::trim).ok_or_else(|| format!("systemctl does not say {name}"))
    };
    let max = match value("RuntimeMaxUSec")? {
        "infinity" => return Ok(None),
        text => parse_duration(text).map_err(|e| format!("RuntimeMaxUSec: {e}"))?,
    };
    let since = value("ActiveEnterTimestampMonotonic")?;
    let since: u64 = since.parse().map_err(|_| format!("ActiveEnterTimestampMonotonic={since:?} is no number"))?;
    let is_up = !matches!(value("ActiveState")?, "activating" | "inactive" | "failed");
    Ok(Some(RuntimeLimit { max, since: (is_up && since > 0).then_some(Duration::from_micros(since)) }))
}

/// The innermost unit in /proc/self/cgroup: of the unified hierarchy, or else of systemd's own.
pub fn parse_cgroup(text: &str) -> Option<ServiceUnit> {
    let unified = text.lines().filter_map(|line| line.strip_prefix("0::"));
    let own = text.lines().filter_map(|line| Some(line.split_once(":name=systemd:")?.1));
    unified.chain(own).find_map(unit_of)
}

fn unit_of(path: &str) -> Option<ServiceUnit> {
    let parts: Vec<&str> = path.split('/').collect();
    let at = parts.iter().rposition(|part| part.ends_with(".service") || part.ends_with(".scope"))?;
    let of_user = parts[..at].iter().any(|part| part.starts_with("user@") && part.ends_with(".service"));
    let name = parts[at].to_owned();
    // init.scope holds the manager, and in a container what stayed beside it. A name with a dash would be an option.
    (name != "init.scope" && !name.starts_with('-')).then_some(ServiceUnit { name, of_user })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_one_of_the_right_manager() {
        let unit = |text: &str| parse_cgroup(text).map(|unit| (unit.name, unit.of_user));
        let of_system = |name: &str| Some((name.to_owned(), false));
        assert_eq!(unit("0::/system.slice/system-ckptd.slice/ckptd@job.service\n"), of_system("ckptd@job.service"));
        let hybrid = "12:pids:/x\n1:name=systemd:/system.slice/run-r1.scope\n0::/\n";
        assert_eq!(unit("1:name=systemd:/system.slice/run-r1.scope\n0::/\n"), of_system("run-r1.scope"));
        assert_eq!(unit(hybrid), of_system("run-r1.scope"));
        assert_eq!(unit("1:name=systemd:/\n0::/system.slice/a.service\n"), of_system("a.service"));
        let of_user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ckptd@job.service";
        assert_eq!(unit(of_user), Some(("ckptd@job.service".into(), true)));
        assert_eq!(unit("0::/user.slice/user-0.slice/session-3.scope"), of_system("session-3.scope"));
        for none in ["", "0::/", "0::/init.scope", "0::/kubepods/burstable/pod1", "garbage"] {
            assert_eq!(unit(none), None, "{none}");
        }
    }

    #[test]
    fn systemctl_is_asked_about_the_unit_and_a_failure_names_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let systemctl = folder.path().join("systemctl");
        let script = "#!/bin/sh\n[ \"$4 $5 $6\" = '--user -- job.service' ] || exit 1\n\
                      printf 'ActiveState=active\\nRuntimeMaxUSec=1w\\nActiveEnterTimestampMonotonic=1\\n'\n";
        let source = folder.path().join("source");
        std::fs::write(&source, script).unwrap();
        // Written by another process: what a sibling's fork holds open for writing cannot be run.
        let install = std::process::Command::new("install").arg("-m755").args([&source, &systemctl]).status().unwrap();
        assert!(install.success());
        let ask = |of_user| {
            let unit = ServiceUnit { name: "job.service".into(), of_user };
            SystemdSource { unit, systemctl: systemctl.to_string_lossy().into_owned() }.ask()
        };
        let end = ask(true).unwrap().end.unwrap();
        assert_eq!(end.text, "RuntimeMaxSec of job.service is 7days");
        assert!(matches!(end.end, AnnouncedEnd::Left(left) if left < Duration::from_secs(7 * 86400)));
        assert!(ask(false).unwrap_err().contains("set [session] budget below it"));
    }

    #[test]
    fn a_limit_counts_from_the_start_of_the_unit_and_not_before() {
        let show = |max: &str, since: &str, state: &str| {
            parse_show(&format!("RuntimeMaxUSec={max}\nActiveEnterTimestampMonotonic={since}\nActiveState={state}\n"))
        };
        let secs = Duration::from_secs;
        let limit = show("1h 30min", "1000000000", "active").unwrap().unwrap();
        assert_eq!(limit, RuntimeLimit { max: secs(5400), since: Some(secs(1000)) });
        assert_eq!((limit.left(secs(1600)), limit.left(secs(9000))), (secs(4800), Duration::ZERO));
        // The time stamp is that of the run before.
        let starting = show("5s 500ms", "1000000000", "activating").unwrap().unwrap();
        assert_eq!((starting.since, starting.left(secs(9000))), (None, Duration::from_millis(5500)));
        assert_eq!(show("infinity", "0", "active").unwrap(), None);
        for bad in
            [show("soon", "1", "active"), show("5s", "-1", "active"), parse_show(""), parse_show("ActiveState=x")]
        {
            assert!(bad.is_err());
        }
    }
}
