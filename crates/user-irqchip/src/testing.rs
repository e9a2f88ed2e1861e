// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model of local APICs for tests, with the parts that an IOAPIC can observe: pending interrupts, interrupts in
//! service, and EOIs.
//!
//! The model has no registers and no timers, and takes fixed and lowest-priority messages only.

use std::sync::{Arc, Mutex};

use interrupt_core::{Delivery, Gsi, Msi, MsiOutput, PinMask, Result};

use crate::Ioapic;
use crate::sync::lock;

/// A set of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// Whether it contains this vector.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 64)] & 1 << (vector % 64) != 0
    }

    fn set(&mut self, vector: u8, on: bool) {
        let (word, bit) = (usize::from(vector / 64), 1 << (vector % 64));
        if on {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        // At most 3 * 64 + 63.
        Some((word as u32 * 64 + self.0[word].ilog2()) as u8)
    }
}

/// The vectors of one local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The vectors that wait for the processor.
    pub irr: Vectors,
    /// The vectors in service.
    pub isr: Vectors,
    /// The vectors whose last message was level-triggered.
    pub tmr: Vectors,
}

/// The priority of a vector or a task: the upper four bits.
fn class(priority: u8) -> u8 {
    priority >> 4
}

#[derive(Debug)]
struct LocalApic {
    registers: Registers,
    task_priority: u8,
    logical_id: u8,
    enabled: bool,
    suppresses_broadcasts: bool,
}

impl LocalApic {
    fn priority(&self) -> u8 {
        let in_service = self.registers.isr.highest().unwrap_or(0);
        class(self.task_priority).max(class(in_service))
    }

    fn take(&mut self, vector: u8, level: bool) {
        self.registers.irr.set(vector, true);
        self.registers.tmr.set(vector, level);
    }
}

/// The local APICs of a machine, one for each processor, with the physical ID that is the processor's number.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::{Gsi, LevelSource, LoweredBy};
/// use user_irqchip::{Ioapic, testing::LocalApics};
/// # use vm_device::{DeviceMmio, bus::MmioAddress};
///
/// let apics = LocalApics::new(1);
/// let ioapic = Ioapic::builder().build(apics.clone()).unwrap();
/// # let base = MmioAddress(Ioapic::BASE);
/// # ioapic.mmio_write(base, 0, &[0x10 + 2 * 5]);
/// # ioapic.mmio_write(base, 0x10, &0x8031u32.to_le_bytes());
/// // The guest has programmed pin 5: level, vector 0x31.
/// let device = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
/// device.assert().unwrap();
/// assert_eq!(apics.accept(0), Some(0x31));
/// device.deassert().unwrap();
/// assert_eq!(apics.eoi(0, &ioapic), Some(0x31));
/// assert_eq!(apics.accept(0), None);
/// ```
#[derive(Debug)]
pub struct LocalApics(Box<[Mutex<LocalApic>]>);

impl LocalApics {
    /// Local APICs for this many processors: enabled, at task priority 0, with the logical ID (in the flat model) that
    /// has the processor's bit set, for processors 0 to 7.
    pub fn new(processors: u8) -> Arc<Self> {
        let apic = |processor: u8| LocalApic {
            registers: Registers::default(),
            task_priority: 0,
            logical_id: 1u8.checked_shl(processor.into()).unwrap_or(0),
            enabled: true,
            suppresses_broadcasts: false,
        };
        Arc::new(Self(
            (0..processors).map(|processor| Mutex::new(apic(processor))).collect(),
        ))
    }

    /// The guest sets or clears the software enable bit. A disabled local APIC takes no interrupt and gives none.
    pub fn set_enabled(&self, processor: u8, enabled: bool) {
        self.with(processor, |apic| apic.enabled = enabled);
    }

    /// The guest writes the task priority: interrupts of its class (bits 7:4) and below wait.
    pub fn set_task_priority(&self, processor: u8, priority: u8) {
        self.with(processor, |apic| apic.task_priority = priority);
    }

    /// The guest sets or clears the EOI-broadcast suppression bit. A guest that sets the bit ends a level-triggered
    /// interrupt at the IOAPIC's EOI register.
    pub fn set_suppresses_broadcasts(&self, processor: u8, suppresses: bool) {
        self.with(processor, |apic| apic.suppresses_broadcasts = suppresses);
    }

    /// The vectors that wait and those in service.
    pub fn registers(&self, processor: u8) -> Registers {
        self.with(processor, |apic| apic.registers).unwrap_or_default()
    }

    /// The processor takes the highest pending interrupt, if its class is above the task's class and above the class of
    /// the interrupt in service. The interrupt is then in service.
    pub fn accept(&self, processor: u8) -> Option<u8> {
        self.with(processor, |apic| {
            let vector = apic.registers.irr.highest()?;
            if !apic.enabled || class(vector) <= apic.priority() {
                return None;
            }
            apic.registers.irr.set(vector, false);
            apic.registers.isr.set(vector, true);
            Some(vector)
        })?
    }

    /// The processor ends the highest interrupt in service and tells the IOAPIC, unless it suppresses EOI broadcasts.
    /// Returns the vector, or None if no interrupt is in service; the IOAPIC is not told then.
    pub fn eoi(&self, processor: u8, ioapic: &Ioapic) -> Option<u8> {
        let (vector, is_level, suppressed) = self.with(processor, |apic| {
            let vector = apic.registers.isr.highest()?;
            apic.registers.isr.set(vector, false);
            Some((vector, apic.registers.tmr.contains(vector), apic.suppresses_broadcasts))
        })??;
        match (is_level, suppressed) {
            (true, true) => {}
            (true, false) => ioapic.eoi(vector),
            (false, _) => ioapic.edge_eoi(vector),
        }
        Some(vector)
    }

    /// A processor that does not exist has no vectors.
    fn with<R>(&self, processor: u8, act: impl FnOnce(&mut LocalApic) -> R) -> Option<R> {
        self.0.get(usize::from(processor)).map(|apic| act(&mut lock(apic)))
    }
}

impl MsiOutput for LocalApics {
    fn send_msi(&self, _gsi: Gsi, message: Msi) -> Result<Delivery> {
        const BROADCAST: u8 = 0xff;
        let [destination, ..] = (message.address >> 12).to_le_bytes();
        // Bits 14:8 of the destination are set, so none of these processors is meant.
        let is_extended = message.address >> 5 & 0x7f != 0;
        let is_logical = message.address & 1 << 2 != 0;
        let [vector, mode, ..] = message.data.to_le_bytes();
        let is_level = message.data & 1 << 15 != 0;

        let is_meant = |processor: usize, apic: &LocalApic| {
            if is_logical {
                !is_extended && apic.logical_id & destination != 0
            } else {
                !is_extended && (destination == BROADCAST || usize::from(destination) == processor)
            }
        };
        let meant = self
            .0
            .iter()
            .enumerate()
            .map(|(n, apic)| (n, lock(apic)))
            .filter(|(n, apic)| apic.enabled && is_meant(*n, apic))
            .map(|(_, apic)| apic);
        let taken = match mode & 0b111 {
            0 => meant.map(|mut apic| apic.take(vector, is_level)).count(),
            // Two guards are held at a time, in the order of the processors. No other code holds two.
            1 => {
                let lowest = meant.min_by_key(|apic| apic.priority());
                lowest.map(|mut apic| apic.take(vector, is_level)).into_iter().count()
            }
            _ => 0,
        };
        Ok(Delivery::Delivered(taken as u32))
    }

    fn set_pin(&self, _gsi: Gsi, _message: Option<Msi>, _mask: PinMask) -> Result<()> {
        // A message carries all data that a local APIC needs, and only the IOAPIC sends messages of its pins.
        Ok(())
    }
}
