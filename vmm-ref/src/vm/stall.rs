// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells a stalled guest from a busy host.
//!
//! A limit on wall-clock time would also limit the other load of the host. The limits here are on this process's *own
//! time*: wall-clock time without the time in which one of its threads was ready and waited for a CPU. On a quiet host
//! the two are equal.
//!
//! Threads of this process also wait for each other: on one CPU a polling thread is ready and waits for as long as a
//! guest spins. So own time is at least half of the time that the process was on a CPU.

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
    /// What each thread had spent at `last`. `None` right after progress, so that progress costs no read of `schedstat`.
    spent: Option<BTreeMap<u32, Spent>>,
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
            spent: None,
            own: Duration::ZERO,
        }
    }

    /// Whether `progress` has not changed for the limit. May be called at any rate: it reads `schedstat` at most once
    /// in each [`INTERVAL`].
    pub fn is_stalled(&mut self, progress: u64) -> bool {
        if progress != self.progress {
            (self.progress, self.own) = (progress, Duration::ZERO);
            self.last = Instant::now();
            self.spent = None;
            return false;
        }
        let wall = self.last.elapsed();
        if wall >= INTERVAL {
            let now = spent();
            if let Some(before) = &self.spent {
                let (mut running, mut waiting) = (Duration::ZERO, Duration::ZERO);
                for (thread, now) in &now {
                    let before = before.get(thread).copied().unwrap_or_default();
                    running += now.running.saturating_sub(before.running);
                    waiting += now.waiting.saturating_sub(before.waiting);
                }
                self.own += wall.saturating_sub(waiting).max(running.min(wall) / 2);
            }
            self.last += wall;
            self.spent = Some(now);
        }
        self.own >= self.limit
    }
}

/// What a thread has spent since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// Time on a CPU.
    running: Duration,
    /// Time in which the thread was ready and waited for a CPU.
    waiting: Duration,
}

/// What each thread of this process has spent. Empty on a kernel without `schedstat`: own time is then wall-clock time.
fn spent() -> BTreeMap<u32, Spent> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        // Time on a CPU, time waited, number of turns; in nanoseconds.
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let mut fields = text
            .split_whitespace()
            .map(|field| field.parse().map(Duration::from_nanos).ok());
        let (running, waiting) = (fields.next()??, fields.next()??);
        let thread = entry.file_name().to_str()?.parse().ok()?;
        Some((thread, Spent { running, waiting }))
    };
    threads.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_wait_for_each_other_are_no_starved_host() {
        let stop = AtomicBool::new(false);
        // More than there are CPUs, so that some of them are ready and wait at any time, and together for longer than
        // the clock goes.
        let threads = 3 * thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let mut detector = StallDetector::new(INTERVAL * 5);
            let start = Instant::now();
            let mut stalled = false;
            // On a quiet host it takes 10 intervals.
            while !stalled && start.elapsed() < INTERVAL * 1000 {
                thread::sleep(INTERVAL);
                stalled = detector.is_stalled(0);
            }
            stop.store(true, Ordering::Relaxed);
            assert!(stalled, "{detector:?}");
        });
    }

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
