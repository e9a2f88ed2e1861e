// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The userspace chips as rigs of the shared conformance body.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use interrupt_core::{Delivery, EoiGuard, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, Result};
use testkit::rig::{EdgeLine, PicRig, ResampleLine, Rig};
use user_irqchip::{Ioapic, Pic, testing::LocalApics};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const REDIRECTION_TABLE: u32 = 0x10;

/// The one processor.
const CPU: u8 = 0;

/// The userspace IOAPIC with one local APIC.
#[derive(Debug)]
pub struct UserRig {
    ioapic: Arc<Ioapic>,
    apics: Arc<LocalApics>,
    plain: BTreeMap<u32, Arc<dyn LevelSource>>,
    /// When the chip's pause is over.
    pause: Arc<Mutex<Option<Instant>>>,
}

impl UserRig {
    pub fn new() -> Self {
        let apics = LocalApics::new(1);
        let pause: Arc<Mutex<Option<Instant>>> = Arc::default();
        let end = Arc::clone(&pause);
        let ioapic = Ioapic::builder()
            .edge_eois()
            .on_delayed_eoi(move |time| *end.lock().unwrap() = Some(Instant::now() + time))
            .build(apics.clone())
            .unwrap();
        Self {
            ioapic: Arc::new(ioapic),
            apics,
            plain: BTreeMap::new(),
            pause,
        }
    }

    /// The local APIC.
    pub fn apics(&self) -> &LocalApics {
        &self.apics
    }

    /// States the level of a GSI's line once more, if it is high.
    pub fn restate(&self, gsi: u32) {
        self.ioapic.reassert(Gsi(gsi)).unwrap();
    }

    fn write(&self, register: u32, value: u32) {
        let base = MmioAddress(Ioapic::BASE);
        self.ioapic.mmio_write(base, SELECT, &register.to_le_bytes());
        self.ioapic.mmio_write(base, WINDOW, &value.to_le_bytes());
    }
}

/// A chip whose pins can be driven once more.
trait Chip: EoiNotifier {
    fn reassert(&self, gsi: Gsi) -> Result<Delivery>;
}

impl Chip for Ioapic {
    fn reassert(&self, gsi: Gsi) -> Result<Delivery> {
        Self::reassert(self, gsi)
    }
}

impl Chip for Pic {
    fn reassert(&self, gsi: Gsi) -> Result<Delivery> {
        Self::reassert(self, gsi)
    }
}

/// States a level that may be stated already, as KVM_IRQ_LINE and a trigger do that drive the line each time.
fn state_high(source: &dyn LevelSource, chip: &impl Chip) -> Delivery {
    match source.assert().unwrap() {
        Delivery::Coalesced => chip.reassert(source.gsi()).unwrap(),
        delivered => delivered,
    }
}

/// A source that an EOI lowers, and its listener.
struct Resample<C> {
    chip: Arc<C>,
    source: Arc<dyn LevelSource>,
    told: Arc<AtomicU64>,
    _guard: EoiGuard,
}

impl<C: Chip + 'static> Resample<C> {
    fn bind(source: Arc<dyn LevelSource>, chip: &Arc<C>) -> Box<dyn ResampleLine> {
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let guard = chip.subscribe(source.key().into(), listener).unwrap();
        Box::new(Self {
            chip: Arc::clone(chip),
            source,
            told,
            _guard: guard,
        })
    }
}

impl<C: Chip> ResampleLine for Resample<C> {
    fn trigger(&self) {
        state_high(&*self.source, &*self.chip);
    }

    fn n(&self) -> u64 {
        self.told.swap(0, Ordering::Relaxed)
    }
}

struct Edge(Arc<dyn LevelSource>);

impl EdgeLine for Edge {
    fn pulse(&self) {
        self.0.assert().unwrap();
        self.0.deassert().unwrap();
    }
}

impl Rig for UserRig {
    fn bind_resample(&mut self, gsi: u32) -> Box<dyn ResampleLine> {
        let source = self.ioapic.source(Gsi(gsi), "resample", LoweredBy::Eoi).unwrap();
        Resample::bind(source, &self.ioapic)
    }

    fn bind_edge(&mut self, gsi: u32) -> Box<dyn EdgeLine> {
        Box::new(Edge(self.ioapic.source(Gsi(gsi), "edge", LoweredBy::Device).unwrap()))
    }

    fn set_line(&mut self, gsi: u32, high: bool) -> Delivery {
        let ioapic = &self.ioapic;
        let source = self
            .plain
            .entry(gsi)
            .or_insert_with(|| ioapic.source(Gsi(gsi), "plain line", LoweredBy::Device).unwrap());
        if !high {
            source.deassert().unwrap();
            return Delivery::Delivered(1);
        }
        match state_high(&**source, &**ioapic) {
            Delivery::Delivered(1..) => Delivery::Delivered(1),
            Delivery::Delivered(0) => Delivery::Pending,
            Delivery::Unknown => panic!("the model knows"),
            other => other,
        }
    }

    fn send_msi(&mut self, vector: u8) {
        let message = Msi {
            address: 0xfee0_0000,
            data: vector.into(),
        };
        self.apics.send_msi(Gsi(0), message).unwrap();
    }

    fn write_rte_low(&mut self, pin: u32, value: u32) {
        self.write(REDIRECTION_TABLE + 2 * pin, value);
    }

    fn write_rte_high(&mut self, pin: u32, value: u32) {
        self.write(REDIRECTION_TABLE + 2 * pin + 1, value);
    }

    fn rte(&mut self, pin: u32) -> u64 {
        self.ioapic.entry(Gsi(pin)).unwrap().bits()
    }

    fn irr(&mut self, pin: u32) -> bool {
        self.ioapic.levels() & 1 << pin != 0
    }

    fn accept(&mut self) -> Option<u8> {
        if self
            .pause
            .lock()
            .unwrap()
            .take_if(|end| Instant::now() >= *end)
            .is_some()
        {
            self.ioapic.delayed_eoi();
        }
        self.apics.accept(CPU)
    }

    fn eoi(&mut self) {
        self.apics.eoi(CPU, &self.ioapic);
    }

    fn set_lapic_enabled(&mut self, enabled: bool) {
        self.apics.set_enabled(CPU, enabled);
    }

    fn settle(&mut self) {
        // Everything is synchronous.
    }
}

/// The userspace 8259 pair, and a processor that looks at INTR.
#[derive(Debug)]
pub struct UserPicRig(Arc<Pic>);

impl UserPicRig {
    pub fn new() -> Self {
        Self(Arc::new(Pic::new(|| {})))
    }

    /// The pair.
    pub fn pic(&self) -> &Pic {
        &self.0
    }
}

impl PicRig for UserPicRig {
    fn bind_resample(&mut self, irq: u32) -> Box<dyn ResampleLine> {
        let source = self.0.source(Gsi(irq), "resample", LoweredBy::Eoi).unwrap();
        Resample::bind(source, &self.0)
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.0.pio_write(PioAddress(port), 0, &[value]);
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.0.pio_read(PioAddress(port), 0, &mut data);
        data[0]
    }

    fn inta(&mut self) -> Option<u8> {
        self.0.intr().then(|| self.0.acknowledge())
    }

    fn settle(&mut self) {
        // Everything is synchronous.
    }
}
