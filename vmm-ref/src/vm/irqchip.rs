// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt controllers of a machine: which of them there are, who drives their lines, and who tells of their EOIs.

use std::sync::Arc;

use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, LoweredBy, Msi, MsiOutput};
use kvm_irqfd::KvmInterrupts;
use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};

use crate::composition::check::Impossible;
use crate::composition::options::Source;
use crate::error::{Error, Result};
use crate::vm::cpu_thread::Processor;

/// The interrupt controllers of a machine. Clones are handles to the same.
#[derive(Clone, Debug)]
pub enum Controllers {
    /// All in the kernel.
    Kernel(KvmInterrupts),
    /// LAPICs in the kernel, the IOAPIC in this process.
    Split {
        /// The kernel's part, which is also the IOAPIC's output.
        interrupts: KvmInterrupts,
        /// This process's part.
        ioapic: Arc<Ioapic>,
    },
    /// The 8259 pair in this process, and the processor that its INTR goes to.
    Pic(Arc<Pic>, Processor),
    /// The IOAPIC in this process, and a model of the processor's local APIC.
    Ioapic {
        /// The IOAPIC.
        ioapic: Arc<Ioapic>,
        /// The local APIC of the one processor.
        apics: Arc<LocalApics>,
        /// That processor.
        processor: Processor,
    },
}

impl Controllers {
    /// A split irqchip's.
    ///
    /// # Errors
    /// None: 24 pins from GSI 0 are a legal IOAPIC.
    pub fn split(interrupts: KvmInterrupts) -> Result<Self> {
        let ioapic = ioapic(Arc::new(interrupts.clone()))?;
        Ok(Self::Split { interrupts, ioapic })
    }

    /// An 8259 pair in this process.
    pub fn pic() -> Self {
        let processor = Processor::default();
        let interrupted = processor.clone();
        Self::Pic(Arc::new(Pic::new(move || interrupted.wake())), processor)
    }

    /// An IOAPIC and a local APIC in this process.
    ///
    /// # Errors
    /// As [`split`](Self::split).
    pub fn ioapic() -> Result<Self> {
        let (apics, processor) = (LocalApics::new(1), Processor::default());
        let output = Waking {
            apics: Arc::clone(&apics),
            processor: processor.clone(),
        };
        Ok(Self::Ioapic {
            ioapic: ioapic(Arc::new(output))?,
            apics,
            processor,
        })
    }

    /// A level source on `gsi`.
    ///
    /// # Errors
    /// The controller's, or [`Error::Impossible`] for a source that these controllers do not have.
    pub fn source(&self, source: Source, gsi: Gsi, label: String) -> Result<Arc<dyn LevelSource>> {
        Ok(match (self, source) {
            (Self::Kernel(interrupts), Source::Resample) => interrupts.resample_source(gsi, label)?,
            (Self::Kernel(interrupts), Source::Line) => interrupts.irq_line_source(gsi, label)?,
            (Self::Split { interrupts, .. }, Source::Irqfd) => interrupts.split_source(gsi, label)?,
            (Self::Split { ioapic, .. } | Self::Ioapic { ioapic, .. }, Source::Pin) => {
                ioapic.source(gsi, label, LoweredBy::Eoi)?
            }
            (Self::Pic(pic, _), Source::Pin) => pic.source(gsi, label, LoweredBy::Eoi)?,
            (Self::Kernel(_), Source::Pin) => return Err(Impossible::NoUserPins.into()),
            (Self::Split { .. } | Self::Pic(..) | Self::Ioapic { .. }, Source::Resample | Source::Line) => {
                return Err(Impossible::NoKernelPins.into());
            }
            (Self::Kernel(_) | Self::Pic(..) | Self::Ioapic { .. }, Source::Irqfd) => {
                return Err(Impossible::IrqfdIsForSplit.into());
            }
        })
    }

    /// Gives the guest the registers of the controllers that are in this process.
    ///
    /// # Errors
    /// [`Error::Guest`] when a device has one of their places.
    pub fn attach(&self, devices: &mut IoManager) -> Result<()> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::Split { ioapic, .. } | Self::Ioapic { ioapic, .. } => {
                let registers: Arc<Ioapic> = Arc::clone(ioapic);
                let range = MmioRange::new(MmioAddress(Ioapic::BASE), Ioapic::SIZE).map_err(occupied)?;
                devices.register_mmio(range, registers).map_err(occupied)
            }
            Self::Pic(pic, _) => Pic::PORTS.iter().try_for_each(|&(first, ports)| {
                let registers: Arc<Pic> = Arc::clone(pic);
                let range = PioRange::new(PioAddress(first), ports).map_err(occupied)?;
                devices.register_pio(range, registers).map_err(occupied)
            }),
        }
    }

    /// Who tells of EOIs.
    pub fn notifier(&self) -> Arc<dyn EoiNotifier> {
        match self {
            Self::Kernel(interrupts) => Arc::new(interrupts.clone()),
            Self::Split { ioapic, .. } | Self::Ioapic { ioapic, .. } => ioapic.clone(),
            Self::Pic(pic, _) => pic.clone(),
        }
    }
}

/// Two devices want one address, or an address range is none.
pub fn occupied(error: vm_device::bus::Error) -> Error {
    Error::Guest(format!("a device's place: {error:?}"))
}

fn ioapic(output: Arc<dyn MsiOutput>) -> Result<Arc<Ioapic>> {
    let built = Ioapic::builder().build(output);
    built.map(Arc::new).map_err(|error| Error::Guest(error.to_string()))
}

/// A model of local APICs whose processor is woken by what comes in.
#[derive(Debug)]
struct Waking {
    apics: Arc<LocalApics>,
    processor: Processor,
}

impl MsiOutput for Waking {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> interrupt_core::Result<Delivery> {
        let delivered = self.apics.send_msi(gsi, message);
        self.processor.wake();
        delivered
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, masked: bool) -> interrupt_core::Result<()> {
        self.apics.set_pin(gsi, message, masked)
    }
}
