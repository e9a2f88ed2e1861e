// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures how much time a program had on a busy machine. `xtask` uses this file too.
//!
//! A limit on wall-clock time depends on the other load: with seven other programs on two CPUs, everything takes four
//! times as long. The limits here are on a program's *own time*: wall-clock time without the time in which one of its
//! threads was ready and waited for a CPU (`schedstat`, which every Linux of a distribution has). On a quiet machine
//! the two are equal. The own time of a program that sleeps or runs for ever reaches the limit. The own time of a
//! program without CPU does not advance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// The interval between two readings.
pub const TICK: Duration = Duration::from_secs(1);

/// The time that a program and its descendants have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time on a CPU, of all threads together.
    pub cpu: Duration,
    /// Own time.
    pub own: Duration,
    /// Wall-clock time.
    pub wall: Duration,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [wall, own, cpu] = [self.wall, self.own, self.cpu].map(|time| time.as_secs_f64());
        write!(f, "{wall:.1} s")?;
        if self.own.is_zero() {
            return Ok(()); // not measured
        }
        write!(f, ", {own:.1} s of them its own, {cpu:.1} s on a CPU")
    }
}

/// Watches a process and its descendants.
#[derive(Debug)]
pub struct Meter {
    process: u32,
    last: Instant,
    threads: BTreeMap<u32, Thread>,
    spent: Spent,
}

impl Meter {
    /// Starts with the process `process`, which has just been started.
    pub fn new(process: u32) -> Self {
        Self {
            process,
            last: Instant::now(),
            threads: BTreeMap::new(),
            spent: Spent::default(),
        }
    }

    /// Calls [`Self::look`] if the last reading is a second old, so that callers may call this at any rate.
    pub fn tick(&mut self) -> Option<Spent> {
        (self.last.elapsed() >= TICK).then(|| self.look())
    }

    /// Takes a reading, and returns the time used since the start. Misses threads that start and end between two
    /// readings.
    pub fn look(&mut self) -> Spent {
        let now = Instant::now();
        let wall = now - self.last;
        self.last = now;
        let threads = threads_of(self.process);
        let (cpu, waited) = used(&self.threads, &threads);
        self.threads = threads;
        self.spent.cpu += cpu;
        self.spent.wall += wall;
        self.spent.own += own(wall, cpu, waited);
        self.spent
    }
}

/// The own time in `wall`. Threads of one program also wait for each other, and together for longer than `wall`: a program
/// that was on a CPU had at least half of that time.
fn own(wall: Duration, cpu: Duration, waited: Duration) -> Duration {
    wall.saturating_sub(waited).max(cpu.min(wall) / 2)
}

/// The kernel's counts of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Thread {
    on_cpu: Duration,
    /// The time in which the thread was ready and waited for a CPU.
    waited: Duration,
}

/// The time that all threads together used between two readings. The sum of their waits may exceed the time between the
/// readings.
fn used(before: &BTreeMap<u32, Thread>, now: &BTreeMap<u32, Thread>) -> (Duration, Duration) {
    let mut sum = (Duration::ZERO, Duration::ZERO);
    for (id, thread) in now {
        let before = before.get(id).copied().unwrap_or_default();
        sum.0 += thread.on_cpu.saturating_sub(before.on_cpu);
        sum.1 += thread.waited.saturating_sub(before.waited);
    }
    sum
}

/// The threads of a process and of its descendants.
fn threads_of(process: u32) -> BTreeMap<u32, Thread> {
    let mut found = BTreeMap::new();
    for process in family(process) {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
            continue; // it has just ended
        };
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat"));
            let id = thread.file_name().to_string_lossy().parse();
            if let (Ok(id), Some(thread)) = (id, text.ok().as_deref().and_then(parse_schedstat)) {
                found.insert(id, thread);
            }
        }
    }
    found
}

/// A process and its descendants.
pub fn family(process: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            parents.extend(parse_parent(&stat).map(|parent| (id, parent)));
        }
    }
    let mut family = BTreeSet::from([process]);
    loop {
        let children = parents.iter().filter(|(_, parent)| family.contains(parent));
        let new: Vec<u32> = children.map(|(id, _)| *id).filter(|id| !family.contains(id)).collect();
        if new.is_empty() {
            return family;
        }
        family.extend(new);
    }
}

/// `TIME-ON-CPU TIME-WAITED TURNS`, in nanoseconds.
fn parse_schedstat(text: &str) -> Option<Thread> {
    let mut words = text
        .split_whitespace()
        .map(|word| word.parse().map(Duration::from_nanos));
    Some(Thread {
        on_cpu: words.next()?.ok()?,
        waited: words.next()?.ok()?,
    })
}

/// The parent in `ID (NAME) STATE PARENT ..`, where the name may contain any character.
fn parse_parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn what_is_used_is_the_sum_over_the_threads() {
        let thread = |on_cpu, waited| Thread {
            on_cpu: ms(on_cpu),
            waited: ms(waited),
        };
        let before = BTreeMap::from([(1, thread(5, 50)), (2, thread(7, 70))]);
        let now = BTreeMap::from([(1, thread(6, 53)), (3, thread(10, 20))]);
        assert_eq!(used(&before, &now), (ms(11), ms(23)));
    }

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(
            parse_schedstat("1000000 2000000 3\n"),
            Some(Thread {
                on_cpu: ms(1),
                waited: ms(2)
            })
        );
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_parent("12 (a) b) S 7 12 12 0"), Some(7));
    }

    #[test]
    fn threads_that_wait_for_each_other_are_no_busy_machine() {
        assert_eq!(own(ms(100), ms(20), ms(30)), ms(70));
        assert_eq!(
            own(ms(100), ms(90), ms(250)),
            ms(45),
            "one CPU, and three more threads that are ready"
        );
        assert_eq!(
            own(ms(100), ms(190), ms(200)),
            ms(50),
            "never more than half of the clock's time"
        );
        assert_eq!(own(ms(100), ms(0), ms(100)), ms(0), "others have the CPU");
    }

    /// A sleeping child uses own time, but no CPU time.
    #[test]
    fn sleep_is_own_time_of_a_family() {
        let shell = Command::new("sh")
            .args(["-c", "cat; true"])
            .stdin(Stdio::piped())
            .spawn();
        let mut shell = shell.unwrap();
        let mut meter = Meter::new(shell.id());
        while family(shell.id()).len() < 2 {
            thread::yield_now();
        }
        thread::sleep(ms(300));
        let spent = meter.look();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(spent.own >= ms(100) && spent.own <= spent.wall, "{spent}");
        assert!(spent.cpu < spent.own, "{spent}");
    }
}
