//! Every parser of answers against damaged answers and noise.

use std::time::Duration;

use proptest::prelude::*;

use super::{aws, azure, gcp, slurm, systemd};

/// Answers as they should be; one of them is damaged, or what comes is no answer at all.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![
        r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#,
        r#"{"noticeTime": "2026-11-24T08:22:00Z"}"#,
        r#"{"DocumentIncarnation":1,"Events":[{"EventId":"A","EventStatus":"Scheduled","EventType":"Preempt",
            "Resources":["vm"],"NotBefore":"Tue, 24 Nov 2026 18:29:47 GMT"}]}"#,
        "TERMINATE_ON_HOST_MAINTENANCE",
        "1795508520",
        "2026-11-24T08:22:00",
        "RuntimeMaxUSec=1h 30min\nActiveEnterTimestampMonotonic=1\nActiveState=active\n",
        "1:name=systemd:/system.slice/run-r1.scope\n0::/user.slice/user@1.service/a.service\n",
    ]);
    let damaged = (good, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(good, at, byte)| {
        let mut bytes = good.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    prop_oneof![damaged, prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #[test]
    fn no_answer_whatever_it_holds_makes_a_source_fall_over(answer in answers()) {
        let _ = aws::parse_action(&answer);
        let _ = aws::parse_rebalance(&answer);
        let _ = aws::parse_token(&answer);
        let _ = gcp::parse_preempted(&answer);
        let _ = gcp::parse_maintenance(&answer);
        let _ = azure::parse_name(&answer);
        if let Ok(events) = azure::parse_events(&answer) {
            let _ = azure::judge(&events, "vm");
        }
        let text = String::from_utf8_lossy(&answer);
        let _ = slurm::parse_end(&text, &jiff::tz::TimeZone::UTC);
        let _ = systemd::parse_cgroup(&text);
        let now = Duration::from_secs(1000);
        if let Ok(Some(limit)) = systemd::parse_show(&text) {
            prop_assert!(limit.left(now) <= limit.max || limit.since > Some(now));
        }
    }
}
