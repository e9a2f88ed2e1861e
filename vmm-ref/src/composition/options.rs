// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options of a run.
//!
//! The names are those of the command line and of the JSON output.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use interrupt_core::{Gsi, Irqchip};
use serde::{Serialize, Serializer};

use super::pci_address::PciAddress;
use super::socket_path::SocketPath;

/// Whether this host's machines have a GIC instead of the controllers of a PC.
pub const GIC: bool = cfg!(target_arch = "aarch64");

/// The machine that runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// KVM, and a guest of some fifty instructions of the host's architecture
    Kvm,
    /// No KVM: a bus master written in Rust does what the guest would do, to the same controllers
    Soft,
}

/// The interrupt controller that the guest sets up. The devices' line is a pin of this controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// The IOAPIC, with both 8259s masked; the EOI is a write to the LAPIC
    // Reached as an x2APIC MSR.
    Ioapic,
    /// The 8259 pair; the EOI is OCW2
    Pic,
    /// On arm64: the GICv3; the EOI is ICC_EOIR1_EL1
    Gic,
}

impl Controller {
    /// Those of a PC.
    pub const PC: [Self; 2] = [Self::Ioapic, Self::Pic];

    /// The line of the devices: a pin of this controller that no PC device has, and on a GIC interrupt ID 42.
    pub const fn gsi(self) -> Gsi {
        match self {
            Self::Pic => Gsi(5),
            Self::Ioapic | Self::Gic => Gsi(10),
        }
    }

    /// The negative controls that this controller has.
    pub fn controls(self) -> &'static [Without] {
        match self {
            Self::Ioapic | Self::Pic => &[Without::Eoi],
            Self::Gic => &[Without::Eoi, Without::Deactivation, Without::Level],
        }
    }
}

/// What a negative control leaves out of the guest's program. No EOI may be reported then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Without {
    /// The handler does not end its interrupt
    Eoi,
    /// On a GIC: the handler writes ICC_EOIR1_EL1 in EOImode 1, which drops the priority, and no ICC_DIR_EL1
    Deactivation,
    /// On a GIC: the guest makes the SPI edge-triggered, and ends each interrupt
    Level,
}

/// How a device holds its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A resample irqfd: asserted by an eventfd write, lowered by KVM at the EOI
    Resample,
    /// KVM_IRQ_LINE: asserted and lowered by the device; the handler acknowledges it before its EOI
    Line,
    /// A pin of a controller in this process: asserted by a call, lowered by the EOI
    Pin,
    /// Split irqchip: an irqfd on the message of the pin, past the IOAPIC; asserted by an eventfd write
    Irqfd,
}

/// How a device is notified of an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Eoi {
    /// By the key of its own source: KVM signals the source's resamplefd
    Resamplefd,
    /// By GSI, whoever drives the line
    Gsi,
    /// By the key of its own source, from a controller in this process
    Key,
}

/// How the device side waits for an EOI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Sleeps until it is told
    Block,
    /// Polls until it is told: shortest, and a whole CPU
    Spin,
    /// Polls for a short time that adjusts itself, at most 100 us, then sleeps
    Adaptive,
}

/// The forwarder, which carries a device's interrupt to its line and the EOI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forward {
    /// Nothing: the device is a part of the VMM and uses its source and its notifier itself
    None,
    /// The best of the others that device and line can do, found by the connection
    Auto,
    /// A thread of this process carries the interrupt to the line and the EOI to the device
    Relay,
    /// The kernel carries both: the device signals the irqfd, whose resamplefd unmasks the device
    Kernel,
    /// The kernel carries the interrupt, and the IOAPIC in this process unmasks the device
    SplitKick,
}

/// The interrupting device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A part of this VMM.
    Embedded,
    /// A model of a device with an INTx.
    Model,
    /// QEMU's `edu`, a PCI device that this process gets from VFIO.
    Vfio(PciAddress),
    /// An `edu` that a vfio-user server in another process provides.
    VfioUser(SocketPath),
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Model => f.write_str("model"),
            Self::Vfio(address) => write!(f, "vfio:{address}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{path}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("vfio", address)) => address.parse().map(Self::Vfio),
            Some(("vfio-user", path)) => path.parse().map(Self::VfioUser),
            None if text == "embedded" => Ok(Self::Embedded),
            None if text == "model" => Ok(Self::Model),
            _ => Err(
                "use embedded, model, or vfio: and a PCI address, as vfio:0000:00:02.0, or vfio-user: and a socket, as \
                      vfio-user:/run/edu.sock"
                    .to_owned(),
            ),
        }
    }
}

impl Serialize for DeviceKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The path of the guest's stores to the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DoorbellPath {
    /// KVM, which signals an eventfd without an exit
    Ioeventfd,
    /// The VMM, which signals it from the exit that the store causes
    Trap,
}

/// The most devices that fit on the status page.
pub const MAX_DEVICES: usize = 16;

/// The choices that make up a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composition {
    /// The machine that runs the guest.
    pub machine: MachineKind,
    /// Where the interrupt controllers are.
    pub irqchip: Irqchip,
    /// The controller of the devices' line.
    pub controller: Controller,
    /// How a device holds its line.
    pub source: Source,
    /// How a device is notified of an EOI.
    pub eoi: Eoi,
    /// The forwarder between device and line.
    pub forward: Forward,
    /// The device.
    pub device: DeviceKind,
    /// How many devices share the GSI.
    pub sharers: usize,
    /// How the devices' thread waits for EOIs.
    pub wait: Wait,
    /// The path of the stores to the doorbell; `None` if the guest makes no stores.
    pub doorbell: Option<DoorbellPath>,
}

impl MachineKind {
    /// The irqchips that this machine can have, the default first.
    pub fn irqchips(self) -> &'static [Irqchip] {
        match self {
            Self::Kvm if GIC => &[Irqchip::Kernel],
            Self::Kvm => &[Irqchip::Kernel, Irqchip::Split, Irqchip::User],
            Self::Soft => &[Irqchip::User],
        }
    }

    /// The controllers that a guest of this machine can use with that irqchip, best first.
    pub fn controllers(self, irqchip: Irqchip) -> &'static [Controller] {
        match (self, irqchip) {
            (Self::Kvm, _) if GIC => &[Controller::Gic],
            (Self::Soft, _) | (_, Irqchip::Kernel) => &Controller::PC,
            (Self::Kvm, Irqchip::Split) => &[Controller::Ioapic],
            (Self::Kvm, Irqchip::User) => &[Controller::Pic],
        }
    }
}

impl Source {
    /// The default source of a device.
    pub fn default_of(irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Kernel => Self::Resample,
            Irqchip::Split | Irqchip::User => Self::Pin,
        }
    }

    /// The default source of a device whose interrupt is forwarded by `forward`.
    pub fn default_with(irqchip: Irqchip, forward: Forward) -> Self {
        match (irqchip, forward) {
            (Irqchip::Split, Forward::SplitKick | Forward::Auto) => Self::Irqfd,
            _ => Self::default_of(irqchip),
        }
    }
}

impl Forward {
    /// The default forwarder of a device: the best path that is possible.
    pub fn default_of(device: DeviceKind) -> Self {
        match device {
            DeviceKind::Embedded => Self::None,
            DeviceKind::Model | DeviceKind::Vfio(_) | DeviceKind::VfioUser(_) => Self::Auto,
        }
    }
}

impl Eoi {
    /// How a device with this source is notified of EOIs by default.
    pub fn default_of(source: Source) -> Self {
        match source {
            Source::Resample => Self::Resamplefd,
            Source::Pin => Self::Key,
            Source::Line | Source::Irqfd => Self::Gsi,
        }
    }
}

impl Composition {
    /// The default composition for this machine, irqchip and controller.
    pub fn new(machine: MachineKind, irqchip: Irqchip, controller: Controller) -> Self {
        let source = Source::default_of(irqchip);
        Self {
            machine,
            irqchip,
            controller,
            source,
            eoi: Eoi::default_of(source),
            forward: Forward::None,
            device: DeviceKind::Embedded,
            sharers: 1,
            wait: Wait::Block,
            doorbell: None,
        }
    }

    /// The default composition on KVM with all controllers in the kernel.
    pub fn in_kernel(controller: Controller) -> Self {
        Self::new(MachineKind::Kvm, Irqchip::Kernel, controller)
    }
}

impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "machine {}, irqchip {}, controller {} ({}), source {}, eoi {}, sharers {}, wait {}",
            name(&self.machine),
            self.irqchip,
            name(&self.controller),
            self.controller.gsi(),
            name(&self.source),
            name(&self.eoi),
            self.sharers,
            name(&self.wait),
        )?;
        if let Some(doorbell) = &self.doorbell {
            write!(f, ", doorbell {}", name(doorbell))?;
        }
        match self.device {
            DeviceKind::Embedded => Ok(()),
            DeviceKind::Model | DeviceKind::Vfio(_) | DeviceKind::VfioUser(_) => {
                write!(f, ", device {}, forward {}", self.device, name(&self.forward))
            }
        }
    }
}

/// Serialises an irqchip by its name on the command line.
///
/// # Errors
/// The serializer's.
pub fn serialize_irqchip<S: Serializer>(irqchip: &Irqchip, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(irqchip)
}

/// The name that a value has on the command line.
pub fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}
