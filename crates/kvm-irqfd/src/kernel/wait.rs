// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a thread waits for an eventfd: by sleeping, by polling, or by polling for as long as polling has shortened the
//! last waits.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

use crate::kernel::eventfd::take;

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitMode {
    /// Sleep until the event: one `read` for each event. Two context switches, and no CPU time in between.
    Block,
    /// Poll until the event: the shortest wait, and a whole CPU.
    Spin,
    /// Poll for a short time, then sleep. The time to poll depends on the duration of the last waits, and is at most
    /// [`Waiter::MAX_POLL`]. The wait does not poll while polling does not shorten waits, which is so when the
    /// signalling thread needs this CPU.
    Adaptive,
}

/// Waits on one thread for one event at a time.
///
/// ```
/// use std::os::fd::AsFd;
/// use kvm_irqfd::{WaitMode, Waiter};
/// use rustix::event::{EventfdFlags, eventfd};
///
/// let resamplefd = eventfd(0, EventfdFlags::empty())?;
/// rustix::io::write(&resamplefd, &1u64.to_ne_bytes())?;
/// let mut waiter = Waiter::new(WaitMode::Adaptive);
/// assert_eq!(waiter.wait(resamplefd.as_fd())?, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Waiter {
    mode: WaitMode,
    /// Waits have been longer than polling lasts.
    idle: bool,
    /// The average cost of the last waits, with and without polling.
    polled: Average,
    blocked: Average,
    waits: u32,
}

impl Waiter {
    /// The longest time that [`WaitMode::Adaptive`] polls for one event.
    pub const MAX_POLL: Duration = Duration::from_micros(100);
    /// The shortest time to poll, and the initial time.
    const MIN_POLL: Duration = Duration::from_micros(12);
    /// Polling lasts for this multiple of the average wait.
    const PATIENCE: u64 = 3;
    /// One wait in this number polls instead of sleeping, or the reverse, to learn which is better now.
    const EXPLORE: u32 = 64;
    /// The first wait that does so.
    const FIRST_EXPLORED: u32 = 8;

    /// A waiter without measurements.
    pub fn new(mode: WaitMode) -> Self {
        Self {
            mode,
            idle: false,
            polled: Average::default(),
            blocked: Average::default(),
            waits: 0,
        }
    }

    /// The waiter's mode.
    pub fn mode(&self) -> WaitMode {
        self.mode
    }

    /// Waits for the eventfd to be signalled, takes its counter and returns it. To end a wait early, signal the
    /// eventfd.
    ///
    /// The eventfd may be blocking or non-blocking; a blocking eventfd saves a `poll` call for each sleep.
    ///
    /// # Errors
    /// The error of `read`, `preadv2` or `poll`. A signal to the thread does not end the wait.
    pub fn wait(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<u64> {
        self.wait_with(
            || match take(eventfd)? {
                0 => Ok(None),
                count => Ok(Some(count)),
            },
            || sleep(eventfd),
        )
    }

    /// Waits as [`wait`](Self::wait) does, with `try_now` as the poll and `sleep` as the blocking wait.
    ///
    /// # Errors
    /// The errors of `try_now` and `sleep`.
    pub fn wait_with<T, E>(
        &mut self,
        mut try_now: impl FnMut() -> Result<Option<T>, E>,
        sleep: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.mode {
            WaitMode::Block => sleep(),
            WaitMode::Spin => loop {
                if let Some(event) = try_now()? {
                    return Ok(event);
                }
                std::hint::spin_loop();
            },
            WaitMode::Adaptive => {
                let start = Instant::now();
                let window = self.window();
                let mut event = None;
                while event.is_none() && start.elapsed() < window {
                    event = try_now()?;
                }
                let event = match event {
                    Some(event) => event,
                    None => sleep()?,
                };
                self.learn(window, start.elapsed());
                Ok(event)
            }
        }
    }

    /// Decides how long to poll this time; no other code does.
    fn window(&mut self) -> Duration {
        self.waits = self.waits.wrapping_add(1);
        let pays = !self.idle && (self.polled.0 <= self.blocked.0 || self.blocked.0 == 0);
        if pays == self.explores() {
            return Duration::ZERO;
        }
        let usual = match (self.polled.0, self.blocked.0) {
            (0, other) | (other, 0) => other,
            (polled, blocked) => polled.min(blocked),
        };
        Duration::from_nanos(usual * Self::PATIENCE).clamp(Self::MIN_POLL, Self::MAX_POLL)
    }

    /// Whether the current wait does the reverse of what pays.
    fn explores(&self) -> bool {
        self.waits % Self::EXPLORE == Self::FIRST_EXPLORED
    }

    /// Takes the outcome of a wait into account.
    fn learn(&mut self, window: Duration, took: Duration) {
        // The event came after MAX_POLL, so the line is idle: sleep at once next time. An exploratory sleep does not
        // count.
        self.idle = took > Self::MAX_POLL && (self.idle || window > Duration::ZERO);
        // A wait beyond MAX_POLL counts as MAX_POLL: perhaps no event was due, or polling kept this CPU from the
        // signalling thread.
        let counted = took.min(Self::MAX_POLL);
        let explores = self.explores();
        let average = match window {
            Duration::ZERO => &mut self.blocked,
            _ => &mut self.polled,
        };
        // The first wait often includes the start of the guest. Alone, it says nothing about the others.
        if average.0 > 0 || took <= Self::MAX_POLL {
            average.add(counted, if explores { 2 } else { 8 });
        }
    }
}

/// A moving average, in nanoseconds; 0 before the first value.
#[derive(Clone, Copy, Debug, Default)]
struct Average(u64);

impl Average {
    /// Takes a value with the weight `1 / share`.
    ///
    /// A value far above the average counts as a little more than the average. Otherwise one interrupted wait in a
    /// hundred decides between two averages that are closer to each other, and the decision lasts: the way that is given
    /// up is measured rarely.
    fn add(&mut self, value: Duration, share: u64) {
        // Values are at most MAX_POLL. The 100 ns let an average of a few nanoseconds grow.
        let value = value.as_nanos() as u64;
        self.0 = match self.0 {
            0 => value,
            average => (average * (share - 1) + value.min(average * 5 / 4 + 100)) / share,
        };
    }
}

fn sleep(eventfd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = [0; 8];
    loop {
        match read(eventfd, &mut count) {
            Ok(_) => return Ok(u64::from_ne_bytes(count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::from_borrowed_fd(eventfd, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes one wait, which takes `asleep` if the thread sleeps at once, and `awake` if the thread polls first.
    /// Returns whether the thread polled.
    fn polls(waiter: &mut Waiter, asleep: Duration, awake: impl Fn(Duration) -> Duration) -> bool {
        let window = waiter.window();
        let polled = window > Duration::ZERO;
        waiter.learn(window, if polled { awake(window) } else { asleep });
        polled
    }

    #[test]
    fn after_a_long_wait_it_sleeps_at_once() {
        let mut waiter = Waiter::new(WaitMode::Adaptive);
        let long = Duration::from_millis(1);
        assert!(polls(&mut waiter, long, |_| long), "it knows nothing yet");
        let polled = (0..128).filter(|_| polls(&mut waiter, long, |_| long)).count();
        assert_eq!(polled, 2, "of 128: only to learn whether that has changed");
    }

    #[test]
    fn polling_that_never_brings_the_event_sooner_is_given_up() {
        let mut waiter = Waiter::new(WaitMode::Adaptive);
        let asleep = Duration::from_micros(1);
        let polled = (0..640)
            .filter(|_| polls(&mut waiter, asleep, |window| window + asleep))
            .count();
        assert!(polled < 40, "{polled} of 640: one in 64 is for learning");
    }

    #[test]
    fn polling_that_brings_the_event_goes_on() {
        let mut waiter = Waiter::new(WaitMode::Adaptive);
        let (awake, asleep) = (Duration::from_micros(5), Duration::from_micros(50));
        let polled = (0..640).filter(|_| polls(&mut waiter, asleep, |_| awake)).count();
        assert!(polled > 600, "{polled} of 640");
    }
    /// The fraction of `waits` waits that poll, in percent, on a line where polling takes 25 us and sleeping 31 us. Wait
    /// `n` takes `disturbed(n)` instead, if that is some time.
    fn percent_polled(waits: u32, disturbed: impl Fn(u32) -> Option<Duration>) -> u32 {
        let mut waiter = Waiter::new(WaitMode::Adaptive);
        let mut wait = |n: u32| {
            let or = |usual| disturbed(n).unwrap_or(Duration::from_micros(usual));
            polls(&mut waiter, or(31), |_| or(25))
        };
        (0..waits).filter(|&n| wait(n)).count() as u32 * 100 / waits
    }

    #[test]
    fn a_slow_first_wait_is_forgotten() {
        let percent = percent_polled(1000, |n| (n == 0).then_some(Duration::from_millis(1)));
        assert!(percent >= 95, "{percent} %");
    }

    #[test]
    fn some_long_waits_do_not_end_polling() {
        let percent = percent_polled(5000, |n| (n % 40 == 39).then_some(Duration::from_micros(400)));
        assert!(percent >= 90, "{percent} %");
    }
}
