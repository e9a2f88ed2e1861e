// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the bytes of an input do to the chips, and what must hold whatever they do. The fuzz target runs it on what the fuzzer
//! finds, and the test `corpus` on what was kept of that.

use std::sync::{Arc, Mutex};

use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, PinMask, Result,
};
use user_irqchip::ioapic::{Trigger, Version};
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

const PINS: u8 = 24;
/// Pins and IRQs with a source of each kind.
const SOURCES: [u32; 3] = [1, 5, 12];
/// The index of the source on GSI 5 that an EOI lowers: two for each GSI, and it is the second.
const PIN_5: usize = 3;

/// The bytes of an input, from the front. When they are used up, it is over.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn pick<T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let byte = usize::from(self.byte()?);
        from.get(byte % from.len())
    }
}

/// Sends to nobody, and knows what it was told.
#[derive(Debug, Default)]
struct Output {
    /// The message of each pin, and whether it is unmasked.
    pins: Mutex<[(Option<Msi>, bool); PINS as usize]>,
    /// Whether there is a processor that takes messages.
    refuses: Mutex<bool>,
}

impl MsiOutput for Output {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> Result<Delivery> {
        let pin = self.pins.lock().unwrap()[gsi.0 as usize];
        assert_eq!(
            pin,
            (Some(message), true),
            "{gsi} sends what its output was not told of"
        );
        let takers = if *self.refuses.lock().unwrap() { 0 } else { 1 };
        Ok(Delivery::Delivered(takers))
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()> {
        let pin = (message, !mask.is_masked());
        let before = std::mem::replace(&mut self.pins.lock().unwrap()[gsi.0 as usize], pin);
        assert_ne!(before, pin, "{gsi} is told of nothing new");
        Ok(())
    }
}

struct Chips {
    output: Arc<Output>,
    ioapic: Ioapic,
    pins: Vec<Arc<dyn LevelSource>>,
    pic: Pic,
    irqs: Vec<Arc<dyn LevelSource>>,
    /// Nobody has refused a message, and no state was restored: no level may wait.
    delivers: bool,
}

impl Chips {
    fn new(version: Version) -> Self {
        let output = Arc::new(Output::default());
        let ioapic = Ioapic::builder()
            .pins(PINS)
            .version(version)
            .on_delayed_eoi(|_| {})
            .build(output.clone())
            .unwrap();
        let pic = Pic::new(|| {});
        let kinds = [LoweredBy::Device, LoweredBy::Eoi];
        let sources = || SOURCES.into_iter().flat_map(|gsi| kinds.map(|kind| (Gsi(gsi), kind)));
        Self {
            pins: sources()
                .map(|(gsi, kind)| ioapic.source(gsi, "device", kind).unwrap())
                .collect(),
            irqs: sources()
                .map(|(gsi, kind)| pic.source(gsi, "device", kind).unwrap())
                .collect(),
            output,
            ioapic,
            pic,
            delivers: true,
        }
    }

    /// Listeners that assert their source whenever they are told, and some that do nothing.
    fn listen(&self) -> [EoiGuard; 4] {
        let (pin, irq) = (Arc::clone(&self.pins[PIN_5]), Arc::clone(&self.irqs[PIN_5]));
        let keys = (pin.key().into(), irq.key().into());
        let restate_pin = Listener::callback(move |_| drop(pin.assert()));
        let restate_irq = Listener::callback(move |_| drop(irq.assert()));
        [
            self.ioapic.subscribe(keys.0, restate_pin).unwrap(),
            self.pic.subscribe(keys.1, restate_irq).unwrap(),
            self.ioapic
                .subscribe(Gsi(12).into(), Listener::callback(|_| {}))
                .unwrap(),
            self.pic.subscribe(Gsi(12).into(), Listener::callback(|_| {})).unwrap(),
        ]
    }

    /// One step, or the end.
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        const OFFSETS: [u64; 12] = [
            0x00,
            0x00,
            0x10,
            0x10,
            0x10,
            0x40,
            0x04,
            0x14,
            0x20,
            0x44,
            0xfff,
            u64::MAX,
        ];
        const PORTS: [u16; 10] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x1f, 0x22, 0x4d2, 0xffff];
        match input.byte()? % 16 {
            0..4 => {
                let offset = *input.pick(&OFFSETS)?;
                let width = usize::from(input.byte()? % 17);
                let data = input.bytes(width)?;
                self.ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, data);
            }
            4 => {
                // The common case in few bytes: the low half of an entry of a pin with sources.
                let pin = input.pick(&SOURCES)?;
                let low = input.bytes(3)?;
                self.ioapic.mmio_write(MmioAddress(0), 0x00, &[0x10 + 2 * *pin as u8]);
                self.ioapic
                    .mmio_write(MmioAddress(0), 0x10, &[low[0], low[1], low[2] & 1, 0]);
            }
            5 => {
                let offset = *input.pick(&OFFSETS)?;
                let mut data = vec![0; usize::from(input.byte()? % 17)];
                self.ioapic.mmio_read(MmioAddress(Ioapic::BASE), offset, &mut data);
            }
            6 => self.ioapic.eoi(input.byte()?),
            7 => self.ioapic.edge_eoi(input.byte()?),
            8 => {
                let refuses = input.byte()? & 1 != 0;
                *self.output.refuses.lock().unwrap() = refuses;
                self.delivers &= !refuses;
            }
            9 => {
                drop(self.pins[usize::from(input.byte()?) % self.pins.len()].assert());
                drop(self.irqs[usize::from(input.byte()?) % self.irqs.len()].assert());
            }
            10 => {
                self.pins[usize::from(input.byte()?) % self.pins.len()]
                    .deassert()
                    .unwrap();
                self.irqs[usize::from(input.byte()?) % self.irqs.len()]
                    .deassert()
                    .unwrap();
            }
            11..14 => {
                let port = *input.pick(&PORTS)?;
                // Nearly always a byte; a width beyond that is no access of an 8259.
                let width = usize::from(input.byte()? % 32 / 30 * 3 + 1);
                let data = input.bytes(width)?;
                self.pic.pio_write(PioAddress(port), 0, data);
            }
            14 => {
                let port = *input.pick(&PORTS)?;
                let mut data = vec![0; usize::from(input.byte()? % 5)];
                self.pic.pio_read(PioAddress(port), 0, &mut data);
            }
            _ => match input.byte()? % 4 {
                0 => {
                    let spurious = self.pic.counts().spurious;
                    let asked = self.pic.intr();
                    self.pic.acknowledge();
                    // Also with INTR high the slave's request may have gone; the master's cannot.
                    let found = self.pic.counts().spurious == spurious;
                    let cascade = self.pic.save().master.isr & 4 != 0 || self.pic.save().master.auto_eoi;
                    assert!(found || !asked || cascade, "INTR was high, and there was no request");
                }
                1 => self.restore(),
                2 => {
                    self.ioapic.delayed_eoi();
                    self.ioapic.reset().unwrap();
                    self.pic.reset();
                }
                _ => {
                    // A state with a byte of it spoilt is restored or refused.
                    let mut state = self.pic.save();
                    let (field, value) = (input.byte()?, input.byte()?);
                    match field % 4 {
                        0 => state.master.elcr = value,
                        1 => state.slave.highest = value,
                        2 => state.slave.base = value,
                        _ => state.master.edges = value,
                    }
                    self.pic.restore(&state).ok();
                    let mut state = self.ioapic.save();
                    match field % 4 {
                        0 => state.id = value,
                        1 => state.pins[5].entry ^= 1 << (value % 64),
                        2 => state.pins[5].edge = value & 1 != 0,
                        _ => state.pins.truncate(value.into()),
                    }
                    self.delivers &= self.ioapic.restore(&state).is_err();
                }
            },
        }
        Some(())
    }

    /// What is saved can be restored, here and elsewhere, and is the same then.
    fn restore(&self) {
        let (ioapic, pic) = (self.ioapic.save(), self.pic.save());
        let elsewhere = Self::new(if ioapic.version == 0x20 {
            Version::V20
        } else {
            Version::V11
        });
        elsewhere.ioapic.restore(&ioapic).unwrap();
        elsewhere.pic.restore(&pic).unwrap();
        assert_eq!(elsewhere.ioapic.save(), ioapic);
        assert_eq!(elsewhere.pic.save(), pic);
    }

    fn check(&self) {
        for gsi in (0..PINS.into()).map(Gsi) {
            let entry = self.ioapic.entry(gsi).unwrap();
            let is_level = entry.trigger() == Trigger::Level;
            assert!(
                is_level || !entry.remote_irr(),
                "{gsi}: an edge pin is in service, {:#x}",
                entry.bits()
            );
            let asks = is_level && !entry.is_masked() && self.ioapic.levels() & 1 << gsi.0 != 0;
            let waits = asks && !entry.remote_irr() && entry.message().is_some();
            assert!(!waits || !self.delivers, "{gsi}: a level is lost, {:#x}", entry.bits());
            let (message, unmasked) = self.output.pins.lock().unwrap()[gsi.0 as usize];
            assert_eq!(unmasked, !entry.is_masked(), "{gsi}: {:#x}", entry.bits());
            assert!(
                entry.is_masked() || message == entry.message(),
                "{gsi}: {message:?}, {:#x}",
                entry.bits()
            );
        }
    }
}

/// Runs an input on fresh chips.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let Some(options) = input.byte() else {
        return;
    };
    let version = if options & 1 == 0 { Version::V20 } else { Version::V11 };
    let mut chips = Chips::new(version);
    let _guards = (options & 2 != 0).then(|| chips.listen());
    while chips.step(&mut input).is_some() {
        chips.check();
    }
    chips.restore();
}
