// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt controllers of a machine: level sources on their lines, and the notifier of their EOIs.

use std::sync::Arc;

use interrupt_core::forward::{Consumer, GuestLine};
use interrupt_core::{Delivery, EoiNotifier, Gsi, Irqchip, LevelSource, LoweredBy, Msi, MsiOutput, PinMask};
use kvm_irqfd::{HostForwarded, KvmInterrupts, KvmVfio};
use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, Pic, Router};
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
    /// All in this process.
    User(Arc<UserChips>),
}

/// The controllers of a PC in this process: each GSI leads to the 8259 pair and to the IOAPIC, and the guest uses one
/// of them.
#[derive(Debug)]
pub struct UserChips {
    /// The 8259 pair, whose INTR goes to the processor.
    pub pic: Arc<Pic>,
    /// The IOAPIC, whose messages go to the local APIC.
    pub ioapic: Arc<Ioapic>,
    /// A model of the processor's local APIC.
    pub apics: Arc<LocalApics>,
    /// The router, which drives both controllers from each GSI.
    pub router: Arc<Router>,
    /// The machine's only processor.
    pub processor: Processor,
}

impl Controllers {
    /// Makes the controllers of a split irqchip.
    ///
    /// # Errors
    /// None: 24 pins from GSI 0 are a legal IOAPIC.
    pub fn split(interrupts: KvmInterrupts) -> Result<Self> {
        let ioapic = ioapic(Arc::new(interrupts.clone()))?;
        Ok(Self::Split { interrupts, ioapic })
    }

    /// Makes a PC's controllers in this process.
    ///
    /// # Errors
    /// None: 24 pins from GSI 0 are a legal IOAPIC, and a PC's routes are legal routes.
    pub fn user() -> Result<Self> {
        let (apics, processor) = (LocalApics::new(1), Processor::default());
        let interrupted = processor.clone();
        let pic = Arc::new(Pic::new(move || interrupted.wake()));
        let output = Arc::new(Waking {
            apics: Arc::clone(&apics),
            processor: processor.clone(),
        });
        let ioapic = ioapic(output.clone())?;
        let router = Router::pc(Some(ioapic.clone()), Some(pic.clone()), output);
        Ok(Self::User(Arc::new(UserChips {
            pic,
            ioapic,
            apics,
            router: Arc::new(router.map_err(|error| Error::Guest(error.to_string()))?),
            processor,
        })))
    }

    /// Where the controllers are.
    pub fn irqchip(&self) -> Irqchip {
        match self {
            Self::Kernel(_) => Irqchip::Kernel,
            Self::Split { .. } => Irqchip::Split,
            Self::User(_) => Irqchip::User,
        }
    }

    /// KVM's part, with its irqfds and routes; `None` without an irqchip in the kernel.
    pub fn kvm(&self) -> Option<&KvmInterrupts> {
        match self {
            Self::Kernel(interrupts) | Self::Split { interrupts, .. } => Some(interrupts),
            Self::User(_) => None,
        }
    }

    /// Makes a level source on `gsi`.
    ///
    /// # Errors
    /// The controller's, or [`Error::Impossible`] for a source that these controllers do not have.
    pub fn source(&self, source: Source, gsi: Gsi, label: String) -> Result<Arc<dyn LevelSource>> {
        Ok(match (self, source) {
            (Self::Kernel(interrupts), Source::Resample) => interrupts.resample_source(gsi, label)?,
            (Self::Kernel(interrupts), Source::Line) => interrupts.irq_line_source(gsi, label)?,
            (Self::Split { interrupts, .. }, Source::Irqfd) => interrupts.split_source(gsi, label)?,
            (Self::Split { ioapic, .. }, Source::Pin) => ioapic.source(gsi, label, LoweredBy::Eoi)?,
            (Self::User(chips), Source::Pin) => chips.router.source(gsi, label, LoweredBy::Eoi)?,
            (Self::Kernel(_), Source::Pin) => return Err(Impossible::NoUserPins.into()),
            (Self::Split { .. } | Self::User(_), Source::Resample | Source::Line) => {
                return Err(Impossible::NoKernelPins.into());
            }
            (Self::Kernel(_) | Self::User(_), Source::Irqfd) => return Err(Impossible::IrqfdIsForSplit.into()),
        })
    }

    /// The KVM-VFIO device, through which a host that can forwards interrupts. A VM has one. `None` without an irqchip in
    /// the kernel, and with a kernel that has no such device.
    pub fn kvm_vfio(&self) -> Option<Arc<KvmVfio>> {
        match self {
            Self::Kernel(interrupts) => KvmVfio::new(interrupts.vm()).ok().map(Arc::new),
            Self::Split { .. } | Self::User(_) => None,
        }
    }

    /// The guest's end of a forwarder, for a source of this kind. The line also states its irqchip.
    pub fn line(&self, kind: Source, source: Arc<dyn LevelSource>, vfio: Option<Arc<KvmVfio>>) -> Arc<dyn Consumer> {
        let notifier = self.notifier();
        match (self, kind) {
            (Self::Kernel(_), _) => {
                let line = GuestLine::kernel(source, notifier);
                match vfio {
                    Some(vfio) => Arc::new(HostForwarded::new(line, vfio)),
                    None => Arc::new(line),
                }
            }
            (Self::Split { .. }, Source::Irqfd) => Arc::new(GuestLine::split(source, notifier)),
            _ => Arc::new(GuestLine::relay(
                source,
                notifier,
                "the line is a pin of a controller in this process, and has no irqfd",
            )),
        }
    }

    /// Gives the guest the registers of the controllers that are in this process.
    ///
    /// # Errors
    /// [`Error::Guest`] when a device already has one of their addresses.
    pub fn attach(&self, devices: &mut IoManager) -> Result<()> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::Split { ioapic, .. } => attach_ioapic(ioapic, devices),
            Self::User(chips) => {
                attach_ioapic(&chips.ioapic, devices)?;
                Pic::PORTS.iter().try_for_each(|&(first, ports)| {
                    let registers: Arc<Pic> = Arc::clone(&chips.pic);
                    let range = PioRange::new(PioAddress(first), ports).map_err(occupied)?;
                    devices.register_pio(range, registers).map_err(occupied)
                })
            }
        }
    }

    /// The notifier of the controllers' EOIs.
    pub fn notifier(&self) -> Arc<dyn EoiNotifier> {
        match self {
            Self::Kernel(interrupts) => Arc::new(interrupts.clone()),
            Self::Split { ioapic, .. } => ioapic.clone(),
            Self::User(chips) => chips.router.clone(),
        }
    }
}

/// The address ranges of two devices overlap, or a range is invalid.
pub fn occupied(error: vm_device::bus::Error) -> Error {
    Error::Guest(format!("a device's place: {error:?}"))
}

fn attach_ioapic(ioapic: &Arc<Ioapic>, devices: &mut IoManager) -> Result<()> {
    let registers: Arc<Ioapic> = Arc::clone(ioapic);
    let range = MmioRange::new(MmioAddress(Ioapic::BASE), Ioapic::SIZE).map_err(occupied)?;
    devices.register_mmio(range, registers).map_err(occupied)
}

fn ioapic(output: Arc<dyn MsiOutput>) -> Result<Arc<Ioapic>> {
    let built = Ioapic::builder().build(output);
    built.map(Arc::new).map_err(|error| Error::Guest(error.to_string()))
}

/// A model of local APICs that wakes its processor at each message.
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

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> interrupt_core::Result<()> {
        self.apics.set_pin(gsi, message, mask)
    }
}
