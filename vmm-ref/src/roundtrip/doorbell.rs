// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's doorbell: two places, one in port space and one in memory space, each with an eventfd that a store of the guest
//! signals.
//!
//! Both are registered on an [`IoeventBus`]. With `--doorbell ioeventfd` that is one on KVM, and what KVM refuses is served from the
//! exit; with `--doorbell trap` KVM is not asked, and everything is. The guest rings before it takes interrupts: `--count` stores
//! to each place, every one counted by the guest, by the eventfd, and by the exit path if it exits.
//!
//! **Cost.** The guest reads its time-stamp counter before and after each store. A figure is the median of the difference, in ns
//! by KVM_GET_TSC_KHZ, and so contains what reading the counter takes. That is measured in the same way with no store in between,
//! and is reported beside it: some 20 ns where the CPU reads it, some 500 ns where KVM emulates each instruction. The ratio of two
//! figures is therefore lower than that of the stores alone. The counter needs no fence: each store leaves the guest. Nobody waits on
//! the eventfds while the guest rings, so waking a device's thread, which both ways have to do, is in neither.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ioevent::{IoeventBus, Length, Match, Path, Registration, ReservedRange, Space};
use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::composition::options as composition;
use crate::error::{Error, Result};
use crate::latency::Latency;
use crate::roundtrip::guest::layout::{BATCH_MAX, BATCH_PORT, DOORBELL_ADDRESS, DOORBELL_PORT, MEMORY_SIZE};
use crate::roundtrip::guest::ringing::{Ringing, Timed};
use crate::roundtrip::machine::{Machine, Running};
use crate::vm::stall::{INTERVAL, STALL_LIMIT};

impl composition::Doorbell {
    /// The bus that makes it so.
    pub fn bus(self, machine: &Machine) -> IoeventBus {
        match self {
            Self::Ioeventfd => IoeventBus::kvm(Arc::clone(machine.vm())),
            Self::Trap => IoeventBus::userspace(),
        }
    }
}

/// The places, the port first.
const PLACES: [Match; 2] = [
    Match::pio(DOORBELL_PORT as u64, Length::Bytes4),
    Match::mmio(DOORBELL_ADDRESS, Length::Bytes4),
];

/// See the [module](self).
#[derive(Debug)]
pub struct Doorbell {
    registrations: [Registration; 2],
    bell: Arc<Bell>,
}

/// The part of a [`Doorbell`] that is in the vCPU's exit path.
#[derive(Debug)]
pub struct Bell {
    bus: IoeventBus,
    ringing: Ringing,
    exits: [AtomicU64; 2],
    tsc_khz: u64,
    batches: Mutex<Batches>,
    finish: AtomicBool,
    done: AtomicBool,
    waits: Thread,
}

/// What is looked at between batches only.
#[derive(Debug)]
struct Batches {
    left: u64,
    pio: Latency,
    mmio: Latency,
    clock: Latency,
    samples: Vec<u32>,
}

/// What became of the stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// By PIO.
    pub pio: Rung,
    /// By MMIO.
    pub mmio: Rung,
    /// Median of what reading the guest's clock takes, in ns: a part of each other figure.
    pub clock_p50_ns: Option<u64>,
}

/// What became of the stores to one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rung {
    /// Who took them. It may be another than was asked for: KVM can refuse.
    pub path: composition::Doorbell,
    /// Why not KVM.
    pub why: Option<String>,
    /// Stores that the guest says it has made.
    pub stores: u64,
    /// Signals of the eventfd.
    pub signals: u64,
    /// Stores that exited.
    pub exits: u64,
    /// Median of what a store takes the guest, reading the clock included, in ns. `None` when it made none.
    pub p50_ns: Option<u64>,
}

impl Doorbell {
    /// Registers the places on `bus`, and lets the guest of `machine` make `stores` to each when it starts. The calling thread is
    /// the one that may [`wait`](Self::wait).
    ///
    /// # Errors
    /// When the bus rejects the places, or an eventfd or the guest's clock rate cannot be had.
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
        let [pio, mmio] = PLACES;
        let registrations = [bus.register(pio, event()?)?, bus.register(mmio, event()?)?];
        let bell = Bell {
            bus,
            ringing: machine.status()?.ringing()?,
            exits: Default::default(),
            tsc_khz: machine.tsc_khz()?.into(),
            batches: Mutex::new(Batches {
                left: stores,
                pio: Latency::new(),
                mmio: Latency::new(),
                clock: Latency::new(),
                samples: Vec::with_capacity(BATCH_MAX as usize),
            }),
            finish: AtomicBool::new(false),
            done: AtomicBool::new(false),
            waits: thread::current(),
        };
        bell.next(&bell.batches());
        let bell = Arc::new(bell);
        machine.connect(Arc::clone(&bell));
        Ok(Self { registrations, bell })
    }

    /// Returns when the guest has made its stores, when `interrupted` became true and it has made those of the batch, or when it
    /// has ended.
    ///
    /// # Errors
    /// [`Error::Guest`] when it stops half-way.
    pub fn wait(&self, running: &Running, interrupted: &AtomicBool) -> Result<()> {
        let (mut rung, mut since) = (self.bell.ringing.rung(), Instant::now());
        while !self.bell.done.load(Ordering::Acquire) && !running.has_ended() {
            if interrupted.load(Ordering::Acquire) {
                self.bell.finish.store(true, Ordering::Release);
            }
            let now = self.bell.ringing.rung();
            if now != rung {
                (rung, since) = (now, Instant::now());
            }
            if since.elapsed() > STALL_LIMIT {
                return Err(Error::Guest(format!(
                    "it stopped ringing its doorbells, after {rung:?} stores"
                )));
            }
            thread::park_timeout(INTERVAL);
        }
        Ok(())
    }

    /// Ends the registrations and says what became of the stores. The guest is to be stopped by now.
    ///
    /// # Errors
    /// When the kernel does not remove what it had accepted, or an eventfd cannot be read.
    pub fn account(self) -> Result<Account> {
        let stores = self.bell.ringing.rung();
        let batches = self.bell.batches();
        let [pio, mmio] = self.registrations;
        let exits = self.bell.exits.each_ref().map(|exits| exits.load(Ordering::Relaxed));
        Ok(Account {
            pio: Rung::new(pio, stores[0], exits[0], &batches.pio)?,
            mmio: Rung::new(mmio, stores[1], exits[1], &batches.mmio)?,
            clock_p50_ns: p50_ns(&batches.clock),
        })
    }
}

impl Bell {
    /// Serves a store that exited. Returns whether it has to do with the doorbell.
    ///
    /// # Errors
    /// When its eventfd cannot be written.
    pub fn serve(&self, space: Space, address: u64, data: &[u8]) -> Result<bool> {
        let dispatched = self.bus.dispatch(space, address, data)?;
        if let Some(place) = PLACES.iter().position(|at| at.space == space && at.address == address) {
            // One that was not dispatched is not signalled either, and the account says so.
            self.exits[place].fetch_add(1, Ordering::Relaxed);
            return Ok(true);
        }
        if (space, address) == (Space::Pio, BATCH_PORT.into()) {
            self.batch_made()?;
            return Ok(true);
        }
        Ok(dispatched)
    }

    /// Takes the samples of a batch, and puts down the next one.
    fn batch_made(&self) -> Result<()> {
        let batches = &mut *self.batches();
        let Batches {
            left,
            pio,
            mmio,
            clock,
            samples,
        } = batches;
        for (timed, latency) in [(Timed::Pio, pio), (Timed::Mmio, mmio), (Timed::Clock, clock)] {
            self.ringing.samples(timed, samples)?;
            for ticks in samples.iter() {
                // 2^32 ticks times 10^6 fit.
                latency.record(Duration::from_nanos(u64::from(*ticks) * 1_000_000 / self.tsc_khz));
            }
        }
        *left -= u64::from(self.ringing.batch()).min(*left);
        if self.finish.load(Ordering::Acquire) {
            *left = 0;
        }
        self.next(batches);
        Ok(())
    }

    fn next(&self, batches: &Batches) {
        self.ringing.next(u32::try_from(batches.left).unwrap_or(BATCH_MAX));
        if batches.left == 0 {
            self.done.store(true, Ordering::Release);
            self.waits.unpark();
        }
    }

    fn batches(&self) -> MutexGuard<'_, Batches> {
        // Whoever panics with it held ends the run.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Whether each store was signalled exactly once.
    pub fn is_exact(&self) -> bool {
        self.pio.is_exact() && self.mmio.is_exact()
    }

    /// Whether there were `count` stores to each place.
    pub fn made(&self, count: u64) -> bool {
        self.pio.stores == count && self.mmio.stores == count
    }
}

impl Rung {
    fn new(registration: Registration, stores: u32, exits: u64, latency: &Latency) -> Result<Self> {
        let (path, why) = match registration.path() {
            Path::Kernel => (composition::Doorbell::Ioeventfd, None),
            Path::Trapped(refusal) => (composition::Doorbell::Trap, Some(refusal.to_string())),
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

    /// As many signals as stores, and as many exits where each store is to exit. Of the others some may: KVM does not find all
    /// that it has accepted.
    fn is_exact(&self) -> bool {
        let exited = match self.path {
            composition::Doorbell::Ioeventfd => self.exits <= self.stores,
            composition::Doorbell::Trap => self.exits == self.stores,
        };
        self.signals == self.stores && exited
    }
}

/// Takes what an eventfd has counted.
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
