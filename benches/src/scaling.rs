// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time, descriptors and memory as functions of the number of lines, of sharers of a line, of routes and of pairs.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interrupt_core::forward::{EventfdId, Registration, Registry};
use interrupt_core::testing::{Journal, RecordingConsumer, RecordingProducer};
use interrupt_core::{EoiGuard, EoiNotifier as _, Gsi, LevelSource, Listener, LoweredBy};
use kvm_ioctls::Kvm;
use kvm_irqfd::{KvmInterrupts, Route, enable_split_irqchip};
use user_irqchip::Ioapic;

use crate::Result;
use crate::counters::heap_bytes;
use crate::operations::{Taker, programmed, vector};
use crate::results::{Series, Spread};

/// The numbers of lines to measure.
pub const LINES: [u64; 6] = [1, 4, 16, 64, 256, 1024];
/// The numbers of sharers of one line to measure.
pub const SHARERS: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// The numbers of pairs of a registry to measure.
pub const PAIRS: [u64; 5] = [1, 16, 256, 1024, 4096];
/// The numbers of routes to measure. A split irqchip begins without routes.
pub const ROUTES: [u64; 7] = [1, 4, 16, 64, 256, 1024, 4096];

/// The most pins that a chip can have, so that the chip's own memory is spread over many lines.
const PINS: u64 = Ioapic::MAX_PINS as u64;

/// Level lines of userspace IOAPICs, with a source and a listener each.
pub struct Lines {
    chips: Vec<Ioapic>,
    sources: Vec<(Arc<dyn LevelSource>, EoiGuard)>,
    next: usize,
}

impl Lines {
    /// Makes this many lines.
    ///
    /// # Errors
    /// The errors of building the chips.
    pub fn new(count: u64) -> Result<Self> {
        let mut chips = Vec::with_capacity(count.div_ceil(PINS) as usize);
        for n in 0..count.div_ceil(PINS) {
            let builder = Ioapic::builder()
                .pins(Ioapic::MAX_PINS)
                .first_gsi(Gsi((n * PINS) as u32));
            let chip = builder.build(Arc::new(Taker))?;
            chips.push(programmed(chip));
        }
        let mut lines = Self {
            chips,
            sources: Vec::with_capacity(count as usize),
            next: 0,
        };
        for n in 0..count {
            lines.add(n)?;
        }
        Ok(lines)
    }

    /// Makes one line with this many sources.
    ///
    /// # Errors
    /// The errors of building the chip.
    pub fn shared(count: u64) -> Result<Self> {
        let mut lines = Self::new(1)?;
        for _ in 1..count {
            lines.add(0)?;
        }
        Ok(lines)
    }

    fn add(&mut self, line: u64) -> Result<()> {
        let (chip, gsi) = (&self.chips[(line / PINS) as usize], Gsi(line as u32));
        let source = chip.source(gsi, "device", LoweredBy::Eoi)?;
        // The callback owns no memory, because a listener's memory does not belong to the line.
        let guard = chip.subscribe(source.key().into(), Listener::callback(|_| {}))?;
        self.sources.push((source, guard));
        Ok(())
    }

    /// The heap of the vectors that hold the sources and chips. It does not belong to the lines.
    fn owners_heap(&self) -> i64 {
        (self.sources.capacity() * size_of::<(Arc<dyn LevelSource>, EoiGuard)>()
            + self.chips.capacity() * size_of::<Ioapic>()) as i64
    }

    /// Makes a round trip on the next line: assertion, EOI, notification.
    ///
    /// # Errors
    /// The errors of the chip.
    pub fn round_trip(&mut self) -> Result<()> {
        // The stride visits all lines, in an order that no prefetcher predicts.
        self.next = (self.next + 617) % self.sources.len();
        let source = &self.sources[self.next].0;
        source.assert()?;
        let line = u64::from(source.gsi().0);
        self.chips[(line / PINS) as usize].eoi(vector((line % PINS) as u32));
        Ok(())
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sources on {} chips", self.sources.len(), self.chips.len())
    }
}

/// A registry with a number of pairs, and one more pair that is registered and removed.
pub struct Pairs {
    registry: Registry,
    next: EventfdId,
    journal: Journal,
    producer: Arc<RecordingProducer>,
    consumer: Arc<RecordingConsumer>,
    _others: Vec<[Registration; 2]>,
}

impl Pairs {
    /// Makes a registry with this many pairs.
    ///
    /// # Errors
    /// None: each pair has an identity of its own.
    pub fn new(count: u64) -> Result<Self> {
        let (registry, journal) = (Registry::default(), Journal::default());
        let mut others = Vec::with_capacity(count as usize);
        for n in 0..count {
            let (producer, consumer) = pair(n, &Journal::default());
            let line = registry.add_consumer(EventfdId(n), consumer)?;
            others.push([registry.add_producer(EventfdId(n), producer)?, line]);
        }
        let (producer, consumer) = pair(count, &journal);
        Ok(Self {
            registry,
            next: EventfdId(count),
            journal,
            producer,
            consumer,
            _others: others,
        })
    }

    /// Registers one more pair, which connects it, and removes the pair again.
    ///
    /// # Errors
    /// None: the pair is not registered yet.
    pub fn come_and_go(&self) -> Result<()> {
        let device = self.registry.add_producer(self.next, self.producer.clone())?;
        let line = self.registry.add_consumer(self.next, self.consumer.clone())?;
        drop((device, line));
        self.journal.take();
        Ok(())
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pairs", self.next.0)
    }
}

fn pair(n: u64, journal: &Journal) -> (Arc<RecordingProducer>, Arc<RecordingConsumer>) {
    (
        Arc::new(RecordingProducer::with_journal("device", journal.clone())),
        Arc::new(RecordingConsumer::with_journal(n as u32, journal.clone())),
    )
}

/// Measures all series that are possible on this host.
///
/// # Errors
/// The first measurement that fails.
pub fn measure(kvm: Option<&Kvm>) -> Result<Vec<Series>> {
    let mut series = vec![
        over(
            "lines",
            "time of a round trip, userspace IOAPIC",
            "ns",
            &LINES,
            |count| {
                let mut lines = Lines::new(count)?;
                nanoseconds(|| lines.round_trip())
            },
        )?,
        over("lines", "heap of a line, userspace IOAPIC", "B", &LINES, |count| {
            let chips = count.div_ceil(PINS);
            let before = heap_bytes();
            let lines = Lines::new(count)?;
            let all = heap_bytes() - before - lines.owners_heap();
            drop(lines);
            // A chip allocates all its pins, used or not, and memory that belongs to no pin.
            let (pin, own) = heap_of_a_chip()?;
            let not_the_lines = pin * (chips * PINS - count) as f64 + own * chips as f64;
            Ok((all as f64 - not_the_lines) / count as f64)
        })?,
        over(
            "sharers",
            "time of a round trip, userspace IOAPIC",
            "ns",
            &SHARERS,
            |count| {
                let mut lines = Lines::shared(count)?;
                nanoseconds(|| lines.round_trip())
            },
        )?,
        over("pairs", "a pair registered and taken apart", "ns", &PAIRS, |count| {
            let pairs = Pairs::new(count)?;
            nanoseconds(|| pairs.come_and_go())
        })?,
    ];
    if let Some(kvm) = kvm {
        series.push(over(
            "lines",
            "descriptors of a line, KVM split irqchip",
            "",
            &LINES,
            |count| {
                let before = descriptors()?;
                let lines = kvm_lines(kvm, count)?;
                let all = descriptors()? - before;
                drop(lines);
                // Subtract the VM's own descriptor.
                Ok((all - 1.0) / count as f64)
            },
        )?);
        series.push(over(
            "lines",
            "heap of a line, KVM split irqchip",
            "B",
            &LINES,
            |count| {
                let before = heap_bytes();
                let lines = kvm_lines(kvm, count)?;
                let all = heap_bytes() - before;
                drop(lines);
                Ok(all as f64 / count as f64)
            },
        )?);
        series.push(over("routes", "change of one route", "ns", &ROUTES, |count| {
            change_of_route(kvm, count)
        })?);
    }
    Ok(series)
}

fn over(of: &str, what: &str, unit: &str, counts: &[u64], mut value: impl FnMut(u64) -> Result<f64>) -> Result<Series> {
    let points = counts.iter().map(|&count| Ok((count, value(count)?)));
    Ok(Series {
        of: of.to_owned(),
        what: what.to_owned(),
        unit: unit.to_owned(),
        points: points.collect::<Result<_>>()?,
    })
}

/// The heap of an unused pin, and the heap of a chip without its pins.
fn heap_of_a_chip() -> Result<(f64, f64)> {
    let of = |pins: u8| {
        let before = heap_bytes();
        let chip = Ioapic::builder().pins(pins).build(Arc::new(Taker))?;
        let after = heap_bytes();
        drop(chip);
        Ok::<_, anyhow::Error>((after - before) as f64)
    };
    let pin = (of(64)? - of(32)?) / 32.0;
    Ok((pin, of(32)? - 32.0 * pin))
}

/// Makes a split irqchip with this many lines, each with an irqfd on its own GSI.
fn kvm_lines(kvm: &Kvm, count: u64) -> Result<(KvmInterrupts, Vec<Arc<dyn LevelSource>>)> {
    let vm = Arc::new(kvm.create_vm()?);
    enable_split_irqchip(&vm, count as u32)?;
    let interrupts = KvmInterrupts::with_split_pins(vm, count as u32)?;
    let mut sources = Vec::with_capacity(count as usize);
    for gsi in 0..count {
        sources.push(interrupts.split_source(Gsi(gsi as u32), "device")?);
    }
    Ok((interrupts, sources))
}

fn descriptors() -> Result<f64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as f64)
}

/// Measures changing one of a number of routes, back and forth.
fn change_of_route(kvm: &Kvm, count: u64) -> Result<f64> {
    let vm = Arc::new(kvm.create_vm()?);
    enable_split_irqchip(&vm, 24)?;
    let interrupts = KvmInterrupts::with_split_pins(vm, 24)?;
    let message = |data| Route::Msi {
        address: 0xfee0_0000,
        data,
        device: None,
    };
    let mut routing = interrupts.routing();
    for gsi in 0..count as u32 {
        routing.set(Gsi(gsi), &[message(0x31)])?;
    }
    routing.commit()?;
    let mut data = 0x31;
    nanoseconds(|| {
        data ^= 1;
        let mut routing = interrupts.routing();
        routing.set(Gsi(0), &[message(data)])?;
        routing.commit()?;
        Ok(())
    })
}

/// The time of one call in nanoseconds: the median of several batches.
fn nanoseconds(mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    const BATCHES: usize = 31;
    const BATCH: Duration = Duration::from_millis(2);
    // Find the number of calls in a batch, which also warms up the caches.
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < BATCH || count < 8 {
        one()?;
        count += 1;
    }
    let mut times = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..count {
            one()?;
        }
        times.push(start.elapsed().as_nanos() as f64 / f64::from(count));
    }
    Ok(Spread::of(&times).median)
}
