// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The traffic of a run: one request after the other, for each device in turn. A request is complete when its device is
//! notified of the EOI and finds its cause gone.
//!
//! Only one request is in flight, so that every interrupt has one assertion. With two requests in flight, the handler
//! could serve both before an irqfd's assertion for the second reaches the line. The second interrupt would then find
//! no request, without any fault.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::latency::Latency;
use crate::roundtrip::device::Device;
use crate::roundtrip::eoi_wait::EoiWait;

/// The number of round trips at the start that are observed by polling, for [`Traffic::trace`]. The latencies do not
/// include them.
pub const WATCHED: u64 = 5;

/// The progress of the traffic, for other threads.
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

    /// Ends the traffic after the current round trip.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Release);
    }

    /// Whether [`finish`](Self::finish) was called.
    pub fn is_finished(&self) -> bool {
        self.finish.load(Ordering::Acquire)
    }

    /// Unparks the calling thread after every `every` round trips. Only the first call has an effect.
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

/// The steps of one observed round trip. Times are since the first assertion of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The device is about to assert.
    pub asserted: Duration,
    /// The handler has served the request.
    pub handled: Duration,
    /// The device is notified of an EOI.
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
    /// EOIs that the devices were notified of.
    pub resampled: u64,
    /// From assertion to completion.
    pub latency: Latency,
    /// The observed round trips.
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

    /// As [`new`](Self::new), with every round trip measured and no trace.
    pub fn unwatched(self) -> Self {
        Self { watched: 0, ..self }
    }

    /// Makes the requests, until all are complete, `progress` is finished, or `eois` is stopped.
    ///
    /// # Errors
    /// The first error of a line or of a wait.
    pub fn run(&mut self, eois: &mut EoiWait, progress: &Progress) -> Result<()> {
        // Discard EOIs from before the first request: the guest's set-up unmasks the line, and an unmask causes a
        // resample.
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
                    // The request is served by now. If polling has not seen that earlier, use the current time.
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

    /// Notifies every device of an EOI, as all sharers of a line are. Returns whether all requests are served; all
    /// devices then answer "low", and the line is low.
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
