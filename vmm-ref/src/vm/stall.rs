// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells a stalled guest from a busy host.
//!
//! A limit on wall-clock time would also limit the other load of the host. The limits here are on this process's *own
//! time*: wall-clock time without the time in which one of its threads was ready and waited for a CPU. On a quiet host
//! the two are equal.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// How much own time a round trip may take. Round trips take microseconds.
pub const STALL_LIMIT: Duration = Duration::from_secs(5);

/// How often a run's progress is checked.
pub const INTERVAL: Duration = Duration::from_millis(20);

/// Detects that a count has not changed for a limit of own time.
#[derive(Debug)]
pub struct StallDetector {
    limit: Duration,
    progress: u64,
    last: Instant,
    /// The time that each thread had waited for a CPU at `last`. `None` right after progress, so that progress costs no
    /// read of `schedstat`.
    waited: Option<BTreeMap<u32, Duration>>,
    /// Own time since the last progress.
    own: Duration,
}

impl StallDetector {
    /// A detector with this limit. The count starts at 0.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            progress: 0,
            last: Instant::now(),
            waited: None,
            own: Duration::ZERO,
        }
    }

    /// Whether `progress` has not changed for the limit. May be called at any rate: it reads `schedstat` at most once
    /// in each [`INTERVAL`].
    pub fn is_stalled(&mut self, progress: u64) -> bool {
        if progress != self.progress {
            (self.progress, self.own) = (progress, Duration::ZERO);
            self.last = Instant::now();
            self.waited = None;
            return false;
        }
        let wall = self.last.elapsed();
        if wall >= INTERVAL {
            let now = waited();
            if let Some(before) = &self.waited {
                let delay = |(thread, waited): (&u32, &Duration)| {
                    waited.saturating_sub(before.get(thread).copied().unwrap_or_default())
                };
                self.own += wall.saturating_sub(now.iter().map(delay).sum());
            }
            self.last += wall;
            self.waited = Some(now);
        }
        self.own >= self.limit
    }
}

/// How long each thread of this process has been ready and waited for a CPU. Empty on a kernel without `schedstat`: own
/// time is then wall-clock time.
fn waited() -> BTreeMap<u32, Duration> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        // Time on a CPU, time waited, number of turns; in nanoseconds.
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        let thread = entry.file_name().to_str()?.parse().ok()?;
        Some((thread, Duration::from_nanos(waited)))
    };
    threads.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn only_what_makes_no_progress_has_stalled() {
        let mut detector = StallDetector::new(INTERVAL * 3);
        for progress in 0..10 {
            assert!(!detector.is_stalled(progress), "{detector:?}");
            thread::sleep(INTERVAL);
        }
        while !detector.is_stalled(9) {
            thread::sleep(INTERVAL);
        }
        assert!(!detector.is_stalled(10), "it goes on");
    }
}
