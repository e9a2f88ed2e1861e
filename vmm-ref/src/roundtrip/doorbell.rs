// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's doorbell: two places, one in port space and one in memory space, each with an eventfd that a store of
//! the guest signals.
//!
//! Both are registered on an [`IoeventBus`]. With `--doorbell ioeventfd` the bus registers both with KVM, and serves
//! from the exit what KVM refuses. With `--doorbell trap` the bus does not ask KVM, and every store exits. The guest
//! rings before it takes interrupts: `--count` stores to each place, every one counted by the guest, by the eventfd,
//! and by the exit path if it exits.
//!
//! **Cost.** The guest reads its time-stamp counter before and after each store. A figure is the median of the
//! difference, in ns by KVM_GET_TSC_KHZ, and so contains the cost of reading the counter. That cost is measured in the
//! same way with no store in between, and is reported beside the figures: about 20 ns where the CPU reads the counter,
//! about 500 ns where KVM emulates each instruction. The ratio of two figures is therefore lower than that of the
//! stores alone. The counter needs no fence: each store leaves the guest. No thread waits on the eventfds while the
//! guest rings, so neither figure contains the wake-up of a device's thread, which both ways have to make.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use ioevent::{IoeventBus, Length, Match, Path, Registration, ReservedRange, Space};
use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::composition::options::DoorbellPath;
use crate::error::{Error, Result};
use crate::latency::Latency;
use crate::roundtrip::guest::layout::{BATCH_MAX, DOORBELL_ADDRESS, DOORBELL_PORT, MEMORY_SIZE};
use crate::roundtrip::guest::ringing::{Ringing, Timed};
use crate::roundtrip::machine::{Machine, Running};
use crate::vm::exits::DoorbellStores;
use crate::vm::stall::{INTERVAL, STALL_LIMIT, StallDetector};

impl DoorbellPath {
    /// Makes the bus for this choice.
    pub fn bus(self, machine: &Machine) -> IoeventBus {
        match self {
            Self::Ioeventfd => IoeventBus::kvm(Arc::clone(machine.vm())),
            Self::Trap => IoeventBus::userspace(),
        }
    }
}

/// The doorbells, the port first.
const DOORBELLS: [Match; 2] = [
    Match::pio(DOORBELL_PORT as u64, Length::Bytes4),
    Match::mmio(DOORBELL_ADDRESS, Length::Bytes4),
];

/// The guest's doorbells, from their registration to their counts.
#[derive(Debug)]
pub struct Doorbell {
    registrations: [Registration; 2],
    /// The stores that exited.
    exits: Arc<DoorbellStores>,
    batches: Arc<Batches>,
}

/// The guest's batches of stores. The vCPU's thread takes the lock at the end of each batch, the waiting thread in
/// between.
#[derive(Debug)]
struct Batches {
    ringing: Ringing,
    tsc_khz: u64,
    samples: Mutex<Samples>,
    finish: AtomicBool,
    done: AtomicBool,
    waits: Thread,
}

/// The times of the batches so far.
#[derive(Debug)]
struct Samples {
    left: u64,
    pio: Latency,
    mmio: Latency,
    clock: Latency,
    /// Room for the samples of one batch.
    batch: Vec<u32>,
}

/// The counts and times of the stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoorbellSummary {
    /// By PIO.
    pub pio: DoorbellStats,
    /// By MMIO.
    pub mmio: DoorbellStats,
    /// Median time of reading the guest's clock, in ns. Each other figure contains this time.
    pub clock_p50_ns: Option<u64>,
}

/// The counts and times of the stores to one doorbell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoorbellStats {
    /// The path of the stores. KVM may refuse an ioeventfd that was asked for.
    pub path: DoorbellPath,
    /// Why KVM did not take the stores.
    pub why: Option<String>,
    /// Stores that the guest reports.
    pub stores: u64,
    /// Signals of the eventfd.
    pub signals: u64,
    /// Stores that exited.
    pub exits: u64,
    /// Median time of a store, in ns, including the reading of the clock. `None` when the guest made no store.
    pub p50_ns: Option<u64>,
}

impl Doorbell {
    /// Registers the doorbells on `bus`, and lets the guest of `machine` make `stores` to each when it starts. Only the
    /// calling thread may [`wait`](Self::wait).
    ///
    /// # Errors
    /// When the bus rejects the doorbells, when an eventfd cannot be made, or when KVM does not report the guest's
    /// clock rate.
    pub fn new(machine: &mut Machine, bus: IoeventBus, stores: u64) -> Result<Self> {
        bus.reserve(&[ReservedRange::ram(0..=MEMORY_SIZE as u64 - 1)])?;
        bus.reserve(&ReservedRange::X86_IRQCHIP)?;
        let event = || {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map(Arc::new)
                .map_err(|source| Error::System {
                    step: "eventfd",
                    source,
                })
        };
        let [pio, mmio] = DOORBELLS;
        let registrations = [bus.register(pio, event()?)?, bus.register(mmio, event()?)?];
        let batches = Arc::new(Batches {
            ringing: machine.status()?.ringing()?,
            tsc_khz: machine.tsc_khz()?.into(),
            samples: Mutex::new(Samples {
                left: stores,
                pio: Latency::new(),
                mmio: Latency::new(),
                clock: Latency::new(),
                batch: Vec::with_capacity(BATCH_MAX as usize),
            }),
            finish: AtomicBool::new(false),
            done: AtomicBool::new(false),
            waits: thread::current(),
        });
        batches.next(stores);
        let made = Arc::clone(&batches);
        Ok(Self {
            registrations,
            exits: machine.connect(bus, move || made.batch_made())?,
            batches,
        })
    }

    /// Waits until the guest has made its stores, until `interrupted` is true and the current batch is complete, or
    /// until the guest has ended.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest stops half-way.
    pub fn wait(&self, running: &Running, interrupted: &AtomicBool) -> Result<()> {
        let mut stall = StallDetector::new(STALL_LIMIT);
        while !self.batches.done.load(Ordering::Acquire) && !running.has_ended() {
            if interrupted.load(Ordering::Acquire) {
                self.batches.finish.store(true, Ordering::Release);
            }
            let rung = self.batches.ringing.rung();
            if stall.is_stalled(rung.map(u64::from).iter().sum()) {
                return Err(Error::Guest(format!(
                    "it stopped ringing its doorbells, after {rung:?} stores"
                )));
            }
            thread::park_timeout(INTERVAL);
        }
        Ok(())
    }

    /// Ends the registrations and returns the counts and times of the stores. The guest has to be stopped.
    ///
    /// # Errors
    /// When the kernel does not remove an ioeventfd, or an eventfd cannot be read.
    pub fn summary(self) -> Result<DoorbellSummary> {
        let stores = self.batches.ringing.rung();
        let samples = self.batches.samples();
        let [pio, mmio] = self.registrations;
        Ok(DoorbellSummary {
            pio: DoorbellStats::new(pio, stores[0], self.exits.of(Space::Pio), &samples.pio)?,
            mmio: DoorbellStats::new(mmio, stores[1], self.exits.of(Space::Mmio), &samples.mmio)?,
            clock_p50_ns: p50_ns(&samples.clock),
        })
    }
}

impl Batches {
    /// Takes the samples of a batch, and lets the guest make the next batch.
    fn batch_made(&self) -> Result<()> {
        let samples = &mut *self.samples();
        let Samples {
            left,
            pio,
            mmio,
            clock,
            batch,
        } = samples;
        for (timed, latency) in [(Timed::Pio, pio), (Timed::Mmio, mmio), (Timed::Clock, clock)] {
            self.ringing.samples(timed, batch)?;
            for ticks in batch.iter() {
                // 2^32 ticks times 10^6 fit into 64 bits.
                latency.record(Duration::from_nanos(u64::from(*ticks) * 1_000_000 / self.tsc_khz));
            }
        }
        *left -= u64::from(self.ringing.batch()).min(*left);
        if self.finish.load(Ordering::Acquire) {
            *left = 0;
        }
        self.next(*left);
        Ok(())
    }

    fn next(&self, left: u64) {
        self.ringing.next(u32::try_from(left).unwrap_or(BATCH_MAX));
        if left == 0 {
            self.done.store(true, Ordering::Release);
            self.waits.unpark();
        }
    }

    fn samples(&self) -> MutexGuard<'_, Samples> {
        // A panic with the lock held ends the run.
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DoorbellSummary {
    /// Whether each store was signalled exactly once.
    pub fn is_exact(&self) -> bool {
        self.pio.is_exact() && self.mmio.is_exact()
    }

    /// Whether there were `count` stores to each place.
    pub fn made(&self, count: u64) -> bool {
        self.pio.stores == count && self.mmio.stores == count
    }
}

impl DoorbellStats {
    fn new(registration: Registration, stores: u32, exits: u64, latency: &Latency) -> Result<Self> {
        let (path, why) = match registration.path() {
            Path::Kernel => (DoorbellPath::Ioeventfd, None),
            Path::Trapped(refusal) => (DoorbellPath::Trap, Some(refusal.to_string())),
        };
        let event = Arc::clone(registration.eventfd());
        registration.remove()?;
        Ok(Self {
            path,
            why,
            stores: stores.into(),
            signals: count(&event)?,
            exits,
            p50_ns: p50_ns(latency),
        })
    }

    /// Checks that there are as many signals as stores, and with `trap` as many exits. With an ioeventfd some stores
    /// may exit, because KVM does not match every store that it should.
    fn is_exact(&self) -> bool {
        let exited = match self.path {
            DoorbellPath::Ioeventfd => self.exits <= self.stores,
            DoorbellPath::Trap => self.exits == self.stores,
        };
        self.signals == self.stores && exited
    }
}

/// Reads and resets the count of an eventfd.
fn count(event: &EventFd) -> Result<u64> {
    match event.read() {
        Ok(count) => Ok(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(source) => Err(Error::System {
            step: "reading the doorbell's eventfd",
            source,
        }),
    }
}

fn p50_ns(latency: &Latency) -> Option<u64> {
    latency
        .percentiles()
        .map(|percentiles| (percentiles.p50 * 1000.0).round() as u64)
}
