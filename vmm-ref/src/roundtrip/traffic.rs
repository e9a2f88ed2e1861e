// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What makes the devices want interrupts: one request after the other, each to the next device in turn, each followed
//! through until its device is told of the EOI and finds its cause gone.
//!
//! There is one request at a time, so that every interrupt has its one assertion. With two on the way, an irqfd's
//! assertion can reach the line after the handler has served its request together with another one's, and an interrupt
//! that finds nothing would not be an error.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::latency::Latency;
use crate::roundtrip::device::Device;
use crate::roundtrip::eoi_wait::EoiWait;

/// The first so many round trips are watched closely, by polling, for [`Traffic::trace`]. They are no part of the
/// latencies.
pub const WATCHED: u64 = 5;

/// How far the traffic is, for other threads.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    finish: AtomicBool,
    called: OnceLock<(u64, Thread)>,
}

impl Progress {
    /// Round trips completed.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Lets the round trip under way be the last.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Release);
    }

    /// Whether [`finish`](Self::finish) was called.
    pub fn is_finished(&self) -> bool {
        self.finish.load(Ordering::Acquire)
    }

    /// Unparks the calling thread after every so many round trips. The first caller is the only one.
    pub fn call_every(&self, round_trips: u64) {
        let _ = self.called.set((round_trips, thread::current()));
    }

    fn reached(&self, done: u64) {
        self.done.store(done, Ordering::Release);
        if let Some((every, thread)) = self.called.get() {
            if done % every == 0 {
                thread.unpark();
            }
        }
    }
}

/// One round trip as it was watched. Times are since the first assertion of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The device is about to assert.
    pub asserted: Duration,
    /// The handler has served the request.
    pub handled: Duration,
    /// The device is told of an EOI.
    pub told: Duration,
}

/// A run's traffic. See the [module](self).
#[derive(Debug)]
pub struct Traffic {
    devices: Arc<[Device]>,
    count: u64,
    watched: u64,
    /// Round trips completed.
    pub done: u64,
    /// EOIs that the devices were told of.
    pub resampled: u64,
    /// From assertion to completion.
    pub latency: Latency,
    /// The round trips that were watched.
    pub trace: Vec<Watched>,
    /// From the first assertion to the last completion.
    pub elapsed: Duration,
}

impl Traffic {
    /// Traffic of `count` requests in all.
    pub fn new(devices: Arc<[Device]>, count: u64) -> Self {
        Self {
            devices,
            count,
            // At least the last one is measured.
            watched: WATCHED.min(count.saturating_sub(1)),
            done: 0,
            resampled: 0,
            latency: Latency::new(),
            trace: Vec::with_capacity(WATCHED as usize),
            elapsed: Duration::ZERO,
        }
    }

    /// The same with every round trip measured, and no trace.
    pub fn unwatched(self) -> Self {
        Self { watched: 0, ..self }
    }

    /// Makes the requests, until all are completed, `progress` says to finish, or `eois` is stopped.
    ///
    /// # Errors
    /// The first error of a line or of a wait.
    pub fn run(&mut self, eois: &mut EoiWait, progress: &Progress) -> Result<()> {
        // Not of a request: the guest's set-up unmasks the line, and an unmask asks for the level.
        eois.try_wait()?;
        let start = Instant::now();
        let ended = loop {
            if self.done >= self.count || progress.is_finished() {
                break Ok(());
            }
            let round_trip = if self.done < self.watched {
                self.watch(eois, start)
            } else {
                self.measure(eois)
            };
            match round_trip {
                Ok(true) => {
                    self.done += 1;
                    progress.reached(self.done);
                }
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.elapsed = start.elapsed();
        ended
    }

    /// One round trip, timed. Returns whether it was completed.
    fn measure(&mut self, eois: &mut EoiWait) -> Result<bool> {
        let asserted = Instant::now();
        self.in_turn().request()?;
        loop {
            match eois.wait()? {
                0 => return Ok(false),
                told => self.resampled += told,
            }
            let told = asserted.elapsed();
            if self.answer(eois)? {
                self.latency.record(told);
                return Ok(true);
            }
        }
    }

    /// One round trip, with its steps timed by polling for each. Returns whether it was completed.
    fn watch(&mut self, eois: &mut EoiWait, start: Instant) -> Result<bool> {
        let asserted = start.elapsed();
        self.in_turn().request()?;
        let (mut handled, mut first_told) = (None, None);
        while !eois.is_stopped() {
            if handled.is_none() && self.in_turn().is_served() {
                handled = Some(start.elapsed());
            }
            let told = eois.try_wait()?;
            if told == 0 {
                // The thread that brings the EOI may need this CPU.
                thread::yield_now();
                continue;
            }
            self.resampled += told;
            let told = *first_told.get_or_insert_with(|| start.elapsed());
            if self.answer(eois)? {
                self.trace.push(Watched {
                    asserted,
                    // The request is served, so if that was not seen before, it was seen just now.
                    handled: handled.unwrap_or_else(|| start.elapsed()),
                    told,
                });
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn in_turn(&self) -> &Device {
        // There is at least one device, and the remainder is a valid index.
        &self.devices[(self.done % self.devices.len() as u64) as usize]
    }

    /// Tells every device of an EOI, as every sharer of a line is told. Returns whether all requests are served: the
    /// answer of all devices is "low" then, and low the line is.
    fn answer(&self, eois: &EoiWait) -> Result<bool> {
        let mut all_served = true;
        for device in self.devices.iter() {
            all_served &= device.update()?;
        }
        if !all_served {
            eois.tell()?;
        }
        Ok(all_served)
    }
}
