// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shared conformance body, with the guest's controllers in the kernel and every source and EOI through this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use interrupt_core::{Delivery, EoiGuard, EoiNotifier, Gsi, LevelSource, Listener};
use kvm_irqfd::{EdgeIrqfd, KvmInterrupts};
use testkit::conformance::{Row, add_rows, ioapic};
#[cfg(target_arch = "aarch64")]
use testkit::gic_machine::GicMachine as Guest;
use testkit::harness::Suite;
#[cfg(target_arch = "x86_64")]
use testkit::kernel_rig::KernelRig as Guest;
use testkit::rig::{EdgeLine, ResampleLine, Rig};
#[cfg(target_arch = "x86_64")]
use testkit::{conformance::pic, kernel_rig::KernelPicRig, rig::PicRig};

mod common;
use common::{eventfd, taken};

/// Rows that put KVM_IRQ_LINE and a resample irqfd on one GSI, which this crate refuses, or that ask the kernel twice
/// for the level it has already. tests/library.rs has what the crate does instead.
#[cfg(target_arch = "x86_64")]
const ELSEWHERE: [&str; 2] = [
    "row_46_bound_while_a_plain_line_is_in_service",
    "row_50_delivery_status_of_a_plain_line",
];

/// The same, and rows of what an IOAPIC and a LAPIC have and a GIC has not: a question at the unmask (32, 34, 62), a
/// write of the high half (37), a pseudo-EOI (38), a stray EOI, which is unpredictable (40), a notification of an edge
/// (41), a pulse that a level pin latches (42), a LAPIC that is disabled (45), a throttle (47), and a vector that pins
/// share (61, 62, 74). tests/gic.rs has what a GIC does instead.
#[cfg(target_arch = "aarch64")]
const ELSEWHERE: [&str; 14] = [
    "row_32_unmask_asks_instead_of_injecting",
    "row_34_oneshot_mask_eoi_unmask",
    "row_37_high_half_write_asks",
    "row_38_pseudo_eoi_by_edge_and_back",
    "row_40_stray_eoi",
    "row_41_resample_line_on_an_edge_pin",
    "row_42_edge_source_on_a_level_pin",
    "row_45_lapic_soft_disabled",
    "row_46_bound_while_a_plain_line_is_in_service",
    "row_47_storm_is_throttled_every_10000",
    "row_50_delivery_status_of_a_plain_line",
    "row_61_pins_with_one_vector",
    "row_62_foreign_eoi_is_survived_by_restating",
    "row_74_resampled_with_nothing_asserted",
];

#[cfg(target_arch = "x86_64")]
const CONTROLLER: &str = "ioapic";
#[cfg(target_arch = "aarch64")]
const CONTROLLER: &str = "gic";

/// The guest's part.
#[cfg(target_arch = "x86_64")]
fn guest() -> Guest {
    Guest::new()
}

/// The guest's part: a GIC that is turned on.
#[cfg(target_arch = "aarch64")]
fn guest() -> Guest {
    common::gic_machine()
}

/// How long an interrupt is looked for before it is made sure that none is on its way, which takes several ioctls that
/// wait for every CPU.
const LOOK: Duration = Duration::from_micros(500);

fn main() -> ExitCode {
    let ioapic_needs = |row: &Row<dyn Rig>| [Guest::NEEDS, row.kernel_needs].concat();
    let suite = Suite::new("kvm-irqfd::conformance");
    let suite = add_rows(suite, CONTROLLER, ioapic_rows(), ioapic_needs, || {
        Box::new(LibraryRig::new())
    });
    #[cfg(target_arch = "x86_64")]
    let suite = {
        let pic_needs = |row: &Row<dyn PicRig>| [KernelPicRig::NEEDS, row.kernel_needs].concat();
        add_rows(suite, "pic", pic::ROWS, pic_needs, || Box::new(LibraryPicRig::new()))
    };
    suite.run()
}

fn ioapic_rows() -> &'static [Row<dyn Rig>] {
    let rows = ioapic::ROWS.iter().filter(|row| !ELSEWHERE.contains(&row.name));
    let rows: Vec<_> = rows
        .map(|row| Row {
            name: row.name,
            kernel_needs: row.kernel_needs,
            limit: row.limit,
            body: row.body,
        })
        .collect();
    assert_eq!(rows.len() + ELSEWHERE.len(), ioapic::ROWS.len(), "a row was renamed");
    rows.leak()
}

/// The kernel's controllers and the guest's part from testkit; sources and notifiers from this crate.
struct LibraryRig {
    guest: Guest,
    interrupts: KvmInterrupts,
    lines: Vec<Weak<dyn Settle>>,
    plain: HashMap<u32, Arc<dyn LevelSource>>,
}

impl LibraryRig {
    fn new() -> Self {
        let mut guest = guest();
        let interrupts = KvmInterrupts::new(guest.machine().vm().clone()).unwrap();
        Self {
            guest,
            interrupts,
            lines: Vec::new(),
            plain: HashMap::new(),
        }
    }

    fn keep<L: Settle + 'static>(&mut self, line: L) -> Arc<L> {
        let line = Arc::new(line);
        let weak: Weak<L> = Arc::downgrade(&line);
        self.lines.push(weak);
        line
    }

    fn resample(&mut self, gsi: u32) -> Handle<Level> {
        let source = self.interrupts.resample_source(Gsi(gsi), "device").unwrap();
        let eoi = eventfd();
        let state = Mutex::new(Bound {
            guard: Some(subscribe(&self.interrupts, &*source, &eoi)),
            unsettled: false,
        });
        let interrupts = self.interrupts.clone();
        Handle(self.keep(Level {
            state,
            source,
            eoi,
            interrupts,
        }))
    }
}

fn subscribe(interrupts: &KvmInterrupts, source: &dyn LevelSource, eoi: &std::os::fd::OwnedFd) -> EoiGuard {
    let listener = Listener::fd(eoi.try_clone().unwrap());
    interrupts.subscribe(source.key().into(), listener).unwrap()
}

impl Rig for LibraryRig {
    fn bind_resample(&mut self, gsi: u32) -> Box<dyn ResampleLine> {
        Box::new(self.resample(gsi))
    }

    fn bind_edge(&mut self, gsi: u32) -> Box<dyn EdgeLine> {
        let irqfd = self.interrupts.edge_irqfd(Gsi(gsi)).unwrap();
        let interrupts = self.interrupts.clone();
        let state = Mutex::new(Some(irqfd));
        Box::new(Handle(self.keep(Edge { gsi, interrupts, state })))
    }

    fn set_line(&mut self, gsi: u32, high: bool) -> Delivery {
        let interrupts = &self.interrupts;
        let source = self
            .plain
            .entry(gsi)
            .or_insert_with(|| interrupts.irq_line_source(Gsi(gsi), "plain").unwrap());
        if !high {
            source.deassert().unwrap();
            return Delivery::Delivered(1);
        }
        match source.assert().unwrap() {
            Delivery::Delivered(_) => Delivery::Delivered(1),
            Delivery::Unknown => panic!("the kernel answers KVM_IRQ_LINE_STATUS"),
            other => other,
        }
    }

    fn send_msi(&mut self, vector: u8) {
        self.guest.send_msi(vector);
    }

    fn write_rte_low(&mut self, pin: u32, value: u32) {
        self.guest.write_rte_low(pin, value);
    }

    fn write_rte_high(&mut self, pin: u32, value: u32) {
        self.guest.write_rte_high(pin, value);
    }

    fn rte(&mut self, pin: u32) -> u64 {
        self.settle();
        self.guest.rte(pin)
    }

    fn irr(&mut self, pin: u32) -> bool {
        self.settle();
        self.guest.irr(pin)
    }

    fn accept(&mut self) -> Option<u8> {
        let machine = self.guest.machine();
        machine.accept_within(LOOK).or_else(|| {
            self.settle();
            self.guest.machine().accept()
        })
    }

    fn eoi(&mut self) {
        self.guest.eoi();
    }

    fn set_lapic_enabled(&mut self, enabled: bool) {
        self.guest.set_lapic_enabled(enabled);
    }

    fn settle(&mut self) {
        self.lines.retain(|line| line.strong_count() > 0);
        for line in self.lines.iter().filter_map(Weak::upgrade) {
            line.settle();
        }
    }
}

/// Waits for the injections that are on their way. The deassign is what flushes them, and an exchange of the listener,
/// or of the irqfd, contains one. No guest runs meanwhile, so that no EOI is missed.
trait Settle {
    fn settle(&self);
}

struct Bound {
    guard: Option<EoiGuard>,
    unsettled: bool,
}

struct Level {
    // The guard goes before the source.
    state: Mutex<Bound>,
    source: Arc<dyn LevelSource>,
    eoi: std::os::fd::OwnedFd,
    interrupts: KvmInterrupts,
}

impl Level {
    fn state(&self) -> MutexGuard<'_, Bound> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settle for Level {
    fn settle(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.unsettled) {
            state.guard = None;
            state.guard = Some(subscribe(&self.interrupts, &*self.source, &self.eoi));
        }
    }
}

struct Edge {
    gsi: u32,
    interrupts: KvmInterrupts,
    state: Mutex<Option<EdgeIrqfd>>,
}

impl Settle for Edge {
    fn settle(&self) {
        let mut irqfd = self.state.lock().unwrap();
        *irqfd = None;
        *irqfd = Some(self.interrupts.edge_irqfd(Gsi(self.gsi)).unwrap());
    }
}

/// The handle of a test; the rig itself only knows of it weakly.
struct Handle<L>(Arc<L>);

impl ResampleLine for Handle<Level> {
    fn trigger(&self) {
        let mut state = self.0.state();
        state.unsettled = true;
        self.0.source.assert().unwrap();
    }

    fn n(&self) -> u64 {
        taken(&self.0.eoi)
    }
}

impl EdgeLine for Handle<Edge> {
    fn pulse(&self) {
        self.0.state.lock().unwrap().as_ref().unwrap().signal().unwrap();
    }
}

/// The same for the 8259 pair.
#[cfg(target_arch = "x86_64")]
struct LibraryPicRig(LibraryRig);

#[cfg(target_arch = "x86_64")]
impl LibraryPicRig {
    fn new() -> Self {
        let mut rig = LibraryRig::new();
        rig.guest.machine().set_lvt0_extint(true);
        Self(rig)
    }
}

#[cfg(target_arch = "x86_64")]
impl PicRig for LibraryPicRig {
    fn bind_resample(&mut self, irq: u32) -> Box<dyn ResampleLine> {
        self.0.bind_resample(irq)
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.0.guest.machine().outb(port, value);
    }

    fn inb(&mut self, port: u16) -> u8 {
        self.0.guest.machine().inb(port)
    }

    fn inta(&mut self) -> Option<u8> {
        self.settle();
        self.0.guest.machine().take_interrupt()
    }

    fn settle(&mut self) {
        self.0.settle();
    }
}
