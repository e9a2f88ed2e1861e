// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run is put together from, and which combinations cannot work, and why.
//!
//! The names are those of the command line and of the JSON output.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::guest::{Controller, MAX_DEVICES};
use crate::passthrough::{PciAddress, SocketPath};

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// KVM, and a guest of real-mode instructions
    Kvm,
    /// No KVM: a bus master written in Rust does what the guest would do, to the same controllers
    Soft,
}

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Irqchip {
    /// All in the kernel: 8259 pair, IOAPIC and LAPIC
    Kernel,
    /// The LAPIC in the kernel, the IOAPIC in this process
    Split,
    /// All in this process: the 8259 pair, and on the soft machine the IOAPIC too
    User,
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

/// How a device learns of an EOI.
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

/// What carries a device's interrupt to its line and the EOI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forward {
    /// Nothing: the device is a part of the VMM and uses its source and its notifier itself
    None,
    /// The best of the others that device and line can do, found by the registry
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
    /// [`crate::device::Device`], a part of this VMM.
    Embedded,
    /// A model of a device with an INTx: [`crate::passthrough::Model`].
    Model,
    /// QEMU's `edu`, a PCI device that is given to this process by VFIO: [`crate::passthrough`].
    Vfio(PciAddress),
    /// The same, served by another process.
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

/// Who takes the guest's stores to its device's doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// KVM, which signals an eventfd without an exit
    Ioeventfd,
    /// The VMM, which signals it from the exit that the store causes
    Trap,
}

/// What a run is put together from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composition {
    /// What runs the guest.
    pub machine: MachineKind,
    /// Where the interrupt controllers are.
    pub irqchip: Irqchip,
    /// The controller that the line goes to.
    pub controller: Controller,
    /// How a device holds its line.
    pub source: Source,
    /// How a device learns of an EOI.
    pub eoi: Eoi,
    /// What lies between device and line.
    pub forward: Forward,
    /// The device.
    pub device: DeviceKind,
    /// How many devices share the GSI.
    pub sharers: usize,
    /// How they wait.
    pub wait: Wait,
    /// Who takes the stores to the doorbell; `None` when the guest rings none.
    pub doorbell: Option<Doorbell>,
}

/// Why a composition cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// No instructions, no stores.
    #[error("--doorbell with --machine soft: the soft machine has no guest that stores; use --machine kvm")]
    SoftHasNoDoorbell,
    /// There is no kernel in it.
    #[error("--machine soft with an irqchip in the kernel: the soft machine runs without KVM; use --irqchip user")]
    SoftHasNoKernel,
    /// A guest in real mode reaches a LAPIC only in the kernel.
    #[error(
        "--irqchip user with --controller ioapic: its LAPIC would be in the kernel; use --irqchip split, or --machine soft"
    )]
    UserHasNoLapic,
    /// The 8259 of a split irqchip is of no use to anyone.
    #[error(
        "--irqchip split with --controller pic: a split irqchip has the IOAPIC in this process; use --irqchip user"
    )]
    SplitHasNoPic,
    /// A resample irqfd and KVM_IRQ_LINE drive pins in the kernel.
    #[error("--source resample or line drives a pin in the kernel; use --source pin with --irqchip split or user")]
    NoKernelPins,
    /// A pin of a controller in this process.
    #[error("--source pin drives a controller in this process; use --source resample with --irqchip kernel")]
    NoUserPins,
    /// It is for messages of a split irqchip.
    #[error("--source irqfd passes by the IOAPIC of a split irqchip; use --irqchip split, or --source resample or pin")]
    IrqfdIsForSplit,
    /// A resamplefd belongs to an irqfd.
    #[error("--source line with --eoi resamplefd: a KVM_IRQ_LINE source has no resamplefd; use --eoi gsi")]
    LineHasNoResamplefd,
    /// A resamplefd is KVM's.
    #[error("--eoi resamplefd is signalled by the kernel's irqchip; use --eoi key or gsi with --irqchip split or user")]
    NoResamplefd,
    /// A key belongs to a pin of a controller in this process.
    #[error(
        "--eoi key is for a pin of a controller in this process; use --eoi gsi, or resamplefd with --source resample"
    )]
    NoKey,
    /// Nobody to interrupt for.
    #[error("--sharers 0: a line needs at least one device; use --sharers 1")]
    NoSharers,
    /// No room.
    #[error(
        "--sharers {0}: the guest's status page has room for {MAX_DEVICES} devices; use at most --sharers {MAX_DEVICES}"
    )]
    TooManySharers(usize),
    /// The embedded device has a source and a notifier of its own.
    #[error("--forward with --device embedded: it uses its line itself; use --device model or vfio:0000:00:02.0")]
    NothingToForward,
    /// A device outside of this process has to be carried to the line.
    #[error(
        "--forward none with --device model, vfio or vfio-user: its interrupt would go nowhere; use --forward auto, relay, kernel or split-kick"
    )]
    NotForwarded,
    /// The device's registers are for a guest of instructions.
    #[error(
        "--device vfio or vfio-user with --machine soft: the soft machine has no guest that drives it; use --machine kvm"
    )]
    SoftHasNoBar,
    /// The kernel loop ends in a resampling irqfd.
    #[error("--forward kernel needs a resample irqfd; use --irqchip kernel --source resample, or --forward relay")]
    KernelLoopNeedsResample,
    /// The split kick begins with an irqfd on a message.
    #[error("--forward split-kick needs an irqfd on a message; use --irqchip split --source irqfd, or --forward relay")]
    SplitKickNeedsIrqfd,
    /// The relay lowers nothing: it is told of the EOI when the line has been sampled.
    #[error(
        "--forward relay or auto with --source line: the line would be sampled before it is lowered; use --source resample"
    )]
    RelayNeedsLoweringEoi,
    /// The forwarder listens for itself.
    #[error("--eoi with --forward: the forwarder learns of an EOI in the way that its source has; use no --eoi")]
    ForwarderListens,
    /// The embedded guest knows how to drive one.
    #[error("--sharers {0} with --device model, vfio or vfio-user: the guest drives one such device; use --sharers 1")]
    OneForwardedDevice(usize),
    /// A path that was asked for is to be kept.
    #[error("--swap-every with --forward {}: the path is to change; use --forward auto and --device model or vfio:ADDRESS", name(.0))]
    NoSwap(Forward),
}

impl Irqchip {
    /// What is there without being asked for.
    pub fn default_of(machine: MachineKind) -> Self {
        match machine {
            MachineKind::Kvm => Self::Kernel,
            MachineKind::Soft => Self::User,
        }
    }

    /// The controllers that a guest of this machine can use, best first.
    pub fn controllers(self, machine: MachineKind) -> &'static [Controller] {
        match (machine, self) {
            (MachineKind::Soft, _) | (_, Self::Kernel) => &Controller::ALL,
            (MachineKind::Kvm, Self::Split) => &[Controller::Ioapic],
            (MachineKind::Kvm, Self::User) => &[Controller::Pic],
        }
    }
}

impl Source {
    /// What a device uses without being asked for something else.
    pub fn default_of(irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Kernel => Self::Resample,
            Irqchip::Split | Irqchip::User => Self::Pin,
        }
    }

    /// The same for a device whose interrupt is carried so.
    pub fn default_with(irqchip: Irqchip, forward: Forward) -> Self {
        match (irqchip, forward) {
            (Irqchip::Split, Forward::SplitKick | Forward::Auto) => Self::Irqfd,
            _ => Self::default_of(irqchip),
        }
    }
}

impl Forward {
    /// What carries a device's interrupt without being asked for something else: the best there is.
    pub fn default_of(device: DeviceKind) -> Self {
        match device {
            DeviceKind::Embedded => Self::None,
            DeviceKind::Model | DeviceKind::Vfio(_) | DeviceKind::VfioUser(_) => Self::Auto,
        }
    }
}

impl Eoi {
    /// How a device with such a source learns of EOIs without being asked for something else.
    pub fn default_of(source: Source) -> Self {
        match source {
            Source::Resample => Self::Resamplefd,
            Source::Pin => Self::Key,
            Source::Line | Source::Irqfd => Self::Gsi,
        }
    }
}

impl Composition {
    /// What runs by default with this machine, irqchip and controller.
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

    /// What runs by default on KVM with everything in the kernel.
    pub fn in_kernel(controller: Controller) -> Self {
        Self::new(MachineKind::Kvm, Irqchip::Kernel, controller)
    }

    /// Whether it can work. This is the only place that decides it; whoever composes may rely on it.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self) -> Result<(), Impossible> {
        match (self.machine, self.irqchip, self.controller) {
            (MachineKind::Soft, Irqchip::Kernel | Irqchip::Split, _) => return Err(Impossible::SoftHasNoKernel),
            (MachineKind::Kvm, Irqchip::User, Controller::Ioapic) => return Err(Impossible::UserHasNoLapic),
            (MachineKind::Kvm, Irqchip::Split, Controller::Pic) => return Err(Impossible::SplitHasNoPic),
            _ => {}
        }
        if self.machine == MachineKind::Soft && self.doorbell.is_some() {
            return Err(Impossible::SoftHasNoDoorbell);
        }
        match (self.irqchip, self.source) {
            (Irqchip::Kernel, Source::Pin) => return Err(Impossible::NoUserPins),
            (Irqchip::Split | Irqchip::User, Source::Resample | Source::Line) => return Err(Impossible::NoKernelPins),
            (Irqchip::Kernel | Irqchip::User, Source::Irqfd) => return Err(Impossible::IrqfdIsForSplit),
            _ => {}
        }
        match (self.source, self.eoi) {
            (Source::Line, Eoi::Resamplefd) => return Err(Impossible::LineHasNoResamplefd),
            (Source::Pin | Source::Irqfd, Eoi::Resamplefd) => return Err(Impossible::NoResamplefd),
            (Source::Resample | Source::Line | Source::Irqfd, Eoi::Key) => return Err(Impossible::NoKey),
            _ => {}
        }
        self.check_forward()?;
        match self.sharers {
            0 => Err(Impossible::NoSharers),
            1..=MAX_DEVICES => Ok(()),
            more => Err(Impossible::TooManySharers(more)),
        }
    }

    /// Whether the device and what carries its interrupt go with each other, and with the rest.
    fn check_forward(&self) -> Result<(), Impossible> {
        match (self.device, self.forward) {
            (DeviceKind::Embedded, Forward::None) => return Ok(()),
            (DeviceKind::Embedded, _) => return Err(Impossible::NothingToForward),
            (_, Forward::None) => return Err(Impossible::NotForwarded),
            (DeviceKind::Vfio(_) | DeviceKind::VfioUser(_), _) if self.machine == MachineKind::Soft => {
                return Err(Impossible::SoftHasNoBar);
            }
            _ => {}
        }
        match (self.forward, self.source) {
            (Forward::Kernel, Source::Line | Source::Pin | Source::Irqfd) => {
                return Err(Impossible::KernelLoopNeedsResample);
            }
            // The host of the model has an irqfd for it.
            (Forward::SplitKick, Source::Pin) if self.device == DeviceKind::Model && self.irqchip == Irqchip::User => {}
            (Forward::SplitKick, Source::Resample | Source::Line | Source::Pin) => {
                return Err(Impossible::SplitKickNeedsIrqfd);
            }
            (Forward::Relay | Forward::Auto, Source::Line) => return Err(Impossible::RelayNeedsLoweringEoi),
            _ => {}
        }
        if self.eoi != Eoi::default_of(self.source) {
            return Err(Impossible::ForwarderListens);
        }
        match self.sharers {
            0 | 1 => Ok(()),
            more => Err(Impossible::OneForwardedDevice(more)),
        }
    }

    /// Whether the handler has to acknowledge its devices before the EOI, so that they lower their line themselves.
    pub fn acknowledge(&self) -> bool {
        match (self.device, self.source) {
            // Its register is in this process, where the guest reaches it by an exit.
            (DeviceKind::Model, _) | (_, Source::Line) => true,
            (_, Source::Resample | Source::Pin | Source::Irqfd) => false,
        }
    }
}

impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "machine {}, irqchip {}, controller {} ({}), source {}, eoi {}, sharers {}, wait {}",
            name(&self.machine),
            name(&self.irqchip),
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

/// The name that a value has on the command line.
pub fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Composition {
        Composition::in_kernel(Controller::Pic)
    }

    /// Every combination that can work; all others are refused with a reason.
    #[test]
    fn every_combination_is_decided() {
        use Controller::{Ioapic, Pic};
        use Eoi::{Gsi, Key, Resamplefd};
        use Irqchip::{Kernel, Split, User};
        use MachineKind::{Kvm, Soft};
        use Source::{Irqfd, Line, Pin, Resample};
        let mut works = Vec::new();
        for machine in MachineKind::value_variants() {
            for irqchip in Irqchip::value_variants() {
                for controller in Controller::value_variants() {
                    for source in Source::value_variants() {
                        for eoi in Eoi::value_variants() {
                            let composition = Composition {
                                source: *source,
                                eoi: *eoi,
                                ..Composition::new(*machine, *irqchip, *controller)
                            };
                            if composition.check().is_ok() {
                                works.push((*machine, *irqchip, *controller, *source, *eoi));
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(
            works,
            [
                (Kvm, Kernel, Ioapic, Resample, Resamplefd),
                (Kvm, Kernel, Ioapic, Resample, Gsi),
                (Kvm, Kernel, Ioapic, Line, Gsi),
                (Kvm, Kernel, Pic, Resample, Resamplefd),
                (Kvm, Kernel, Pic, Resample, Gsi),
                (Kvm, Kernel, Pic, Line, Gsi),
                (Kvm, Split, Ioapic, Pin, Gsi),
                (Kvm, Split, Ioapic, Pin, Key),
                (Kvm, Split, Ioapic, Irqfd, Gsi),
                (Kvm, User, Pic, Pin, Gsi),
                (Kvm, User, Pic, Pin, Key),
                (Soft, User, Ioapic, Pin, Gsi),
                (Soft, User, Ioapic, Pin, Key),
                (Soft, User, Pic, Pin, Gsi),
                (Soft, User, Pic, Pin, Key),
            ]
        );
    }

    #[test]
    fn what_is_not_asked_for_can_work() {
        for machine in MachineKind::value_variants() {
            let irqchips: &[Irqchip] = match machine {
                MachineKind::Kvm => Irqchip::value_variants(),
                MachineKind::Soft => &[Irqchip::User],
            };
            assert!(irqchips.contains(&Irqchip::default_of(*machine)));
            for irqchip in irqchips {
                for controller in irqchip.controllers(*machine) {
                    Composition::new(*machine, *irqchip, *controller).check().unwrap();
                }
            }
        }
    }

    /// As above, for a device of VFIO.
    #[test]
    fn every_way_to_forward_is_decided() {
        use Forward::{Auto, Kernel as Loop, Relay, SplitKick};
        use Irqchip::{Kernel, Split, User};
        use Source::{Irqfd, Pin, Resample};
        let device: DeviceKind = "vfio:0000:00:02.0".parse().unwrap();
        let mut works = Vec::new();
        for irqchip in Irqchip::value_variants() {
            let controller = irqchip.controllers(MachineKind::Kvm)[0];
            for forward in Forward::value_variants() {
                for source in Source::value_variants() {
                    for eoi in Eoi::value_variants() {
                        let composition = Composition {
                            device,
                            forward: *forward,
                            source: *source,
                            eoi: *eoi,
                            ..Composition::new(MachineKind::Kvm, *irqchip, controller)
                        };
                        if composition.check().is_ok() {
                            works.push((*irqchip, *forward, *source, *eoi));
                        }
                    }
                }
            }
            let forward = Forward::default_of(device);
            let source = Source::default_with(*irqchip, forward);
            assert!(works.contains(&(*irqchip, forward, source, Eoi::default_of(source))));
        }
        assert_eq!(
            works,
            [
                (Kernel, Auto, Resample, Eoi::Resamplefd),
                (Kernel, Relay, Resample, Eoi::Resamplefd),
                (Kernel, Loop, Resample, Eoi::Resamplefd),
                (Split, Auto, Pin, Eoi::Key),
                (Split, Auto, Irqfd, Eoi::Gsi),
                (Split, Relay, Pin, Eoi::Key),
                (Split, Relay, Irqfd, Eoi::Gsi),
                (Split, SplitKick, Irqfd, Eoi::Gsi),
                (User, Auto, Pin, Eoi::Key),
                (User, Relay, Pin, Eoi::Key),
            ]
        );
    }

    #[test]
    fn what_a_device_cannot_be_combined_with() {
        let vfio = Composition {
            device: "vfio:0000:00:02.0".parse().unwrap(),
            forward: Forward::Kernel,
            ..base()
        };
        assert_eq!(vfio.check(), Ok(()));
        let check = |composition: Composition| composition.check();
        assert_eq!(
            check(Composition { sharers: 2, ..vfio }),
            Err(Impossible::OneForwardedDevice(2))
        );
        assert_eq!(check(Composition { sharers: 0, ..vfio }), Err(Impossible::NoSharers));
        assert_eq!(
            check(Composition {
                forward: Forward::Relay,
                ..base()
            }),
            Err(Impossible::NothingToForward)
        );
        let soft = Composition::new(MachineKind::Soft, Irqchip::User, Controller::Pic);
        assert_eq!(
            check(Composition {
                device: vfio.device,
                forward: Forward::Relay,
                ..soft
            }),
            Err(Impossible::SoftHasNoBar)
        );
    }

    #[test]
    fn a_device_reads_as_it_is_written() {
        for text in [
            "embedded",
            "model",
            "vfio:0000:00:02.0",
            "vfio:10000:fe:1f.7",
            "vfio-user:/run/edu.sock",
        ] {
            let device: DeviceKind = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
            assert_eq!(serde_json::to_value(device).unwrap(), text);
        }
        for text in ["", "vfio", "vfio:", "00:02.0", "edu"] {
            let error = text.parse::<DeviceKind>().unwrap_err();
            assert!(
                error.contains("vfio:0000:00:02.0") || error.contains("0000:00:02.0"),
                "{error}"
            );
        }
    }

    #[test]
    fn sharers_have_both_bounds() {
        let check = |sharers| Composition { sharers, ..base() }.check();
        assert_eq!(check(0), Err(Impossible::NoSharers));
        assert_eq!(check(1), Ok(()));
        assert_eq!(check(MAX_DEVICES), Ok(()));
        assert_eq!(check(MAX_DEVICES + 1), Err(Impossible::TooManySharers(MAX_DEVICES + 1)));
    }

    #[test]
    fn a_reason_is_one_line_and_says_the_way_out() {
        for reason in [
            Impossible::SoftHasNoDoorbell,
            Impossible::SoftHasNoKernel,
            Impossible::UserHasNoLapic,
            Impossible::SplitHasNoPic,
            Impossible::NoKernelPins,
            Impossible::NoUserPins,
            Impossible::IrqfdIsForSplit,
            Impossible::LineHasNoResamplefd,
            Impossible::NoResamplefd,
            Impossible::NoKey,
            Impossible::NoSharers,
            Impossible::TooManySharers(99),
            Impossible::NothingToForward,
            Impossible::NotForwarded,
            Impossible::SoftHasNoBar,
            Impossible::KernelLoopNeedsResample,
            Impossible::SplitKickNeedsIrqfd,
            Impossible::RelayNeedsLoweringEoi,
            Impossible::ForwarderListens,
            Impossible::OneForwardedDevice(2),
            Impossible::NoSwap(Forward::Relay),
        ] {
            let reason = reason.to_string();
            assert_eq!(reason.lines().count(), 1, "{reason}");
            assert!(reason.contains("; use "), "{reason}");
        }
    }

    #[test]
    fn json_and_command_line_use_the_same_names() {
        fn check<T: ValueEnum + Serialize>() {
            for value in T::value_variants() {
                assert_eq!(serde_json::to_value(value).unwrap(), name(value));
            }
        }
        check::<MachineKind>();
        check::<Irqchip>();
        check::<Controller>();
        check::<Source>();
        check::<Eoi>();
        check::<Wait>();
        check::<Doorbell>();
        check::<Forward>();
    }
}
