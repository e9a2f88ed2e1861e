// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which compositions can work, and why the others cannot.

use interrupt_core::Irqchip;

use super::options::{
    Composition, Controller, DeviceKind, Eoi, Forward, GIC, MAX_DEVICES, MachineKind, Source, Without, name,
};

/// Why a composition cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The soft machine runs no instructions, so nothing stores to a doorbell.
    #[error("--doorbell with --machine soft: the soft machine has no guest that stores; use --machine kvm")]
    SoftHasNoDoorbell,
    /// The soft machine runs without KVM.
    #[error("--machine soft with an irqchip in the kernel: the soft machine runs without KVM; use --irqchip user")]
    SoftHasNoKernel,
    /// Only an arm64 host has a GIC for its guests.
    #[error("--controller gic: the machines of this host are PCs; use --controller ioapic or pic, or an arm64 host")]
    NoGic,
    /// The machines of an arm64 host have a GIC.
    #[error(
        "--controller ioapic or pic: the machines of this host have a GIC; use --controller gic, or --machine soft"
    )]
    NoPc,
    /// KVM has all of a GIC in the kernel.
    #[error("--irqchip split or user: KVM has all of a GIC in the kernel; use --irqchip kernel, or --machine soft")]
    GicIsWhole,
    /// The program for arm64 rings no doorbell.
    #[error("--doorbell: the guest for arm64 has no doorbell; use an x86_64 host")]
    GicHasNoDoorbell,
    /// The control is one of a GIC's.
    #[error("--no-guest-eoi={}: only a GIC has this; use --no-guest-eoi, or --controller gic on an arm64 host", name(.0))]
    ControlOfGic(Without),
    /// A guest in real mode reaches a LAPIC only in the kernel.
    #[error(
        "--irqchip user with --controller ioapic: its LAPIC would be in the kernel; use --irqchip split, or --machine soft"
    )]
    UserHasNoLapic,
    /// A split irqchip has no 8259 that a guest can use.
    #[error(
        "--irqchip split with --controller pic: a split irqchip has the IOAPIC in this process; use --irqchip user"
    )]
    SplitHasNoPic,
    /// A resample irqfd and KVM_IRQ_LINE drive pins in the kernel.
    #[error("--source resample or line drives a pin in the kernel; use --source pin with --irqchip split or user")]
    NoKernelPins,
    /// Only a controller in this process has pins for `--source pin`.
    #[error("--source pin drives a controller in this process; use --source resample with --irqchip kernel")]
    NoUserPins,
    /// Only a split irqchip takes an irqfd on a message.
    #[error("--source irqfd passes by the IOAPIC of a split irqchip; use --irqchip split, or --source resample or pin")]
    IrqfdIsForSplit,
    /// A resamplefd belongs to an irqfd.
    #[error("--source line with --eoi resamplefd: a KVM_IRQ_LINE source has no resamplefd; use --eoi gsi")]
    LineHasNoResamplefd,
    /// Only KVM's irqchip signals a resamplefd.
    #[error("--eoi resamplefd is signalled by the kernel's irqchip; use --eoi key or gsi with --irqchip split or user")]
    NoResamplefd,
    /// Only a pin of a controller in this process notifies by key.
    #[error(
        "--eoi key is for a pin of a controller in this process; use --eoi gsi, or resamplefd with --source resample"
    )]
    NoKey,
    /// The line has no device.
    #[error("--sharers 0: a line needs at least one device; use --sharers 1")]
    NoSharers,
    /// The status page has no room for so many devices.
    #[error(
        "--sharers {0}: the guest's status page has room for {MAX_DEVICES} devices; use at most --sharers {MAX_DEVICES}"
    )]
    TooManySharers(usize),
    /// The embedded device drives its line itself and needs no forwarder.
    #[error("--forward with --device embedded: it uses its line itself; use --device model or vfio:0000:00:02.0")]
    NothingToForward,
    /// The interrupt of a model, VFIO or vfio-user device needs a forwarder.
    #[error(
        "--forward none with --device model, vfio or vfio-user: its interrupt would go nowhere; use --forward auto, relay, kernel or split-kick"
    )]
    NotForwarded,
    /// The soft machine runs no driver for the device's registers.
    #[error(
        "--device vfio or vfio-user with --machine soft: the soft machine has no guest that drives it; use --machine kvm"
    )]
    SoftHasNoBar,
    /// The kernel loop ends in a resampling irqfd.
    #[error("--forward kernel needs a resample irqfd; use --irqchip kernel --source resample, or --forward relay")]
    KernelLoopNeedsResample,
    /// The split kick begins with an irqfd on a message.
    #[error(
        "--forward split-kick needs an irqfd on a message; use --irqchip split without --source, or --forward relay"
    )]
    SplitKickNeedsIrqfd,
    /// The relay never lowers the line. KVM samples a KVM_IRQ_LINE source before the relay hears of the EOI.
    #[error(
        "--forward relay or auto with --source line: the line would be sampled before it is lowered; use --source resample"
    )]
    RelayNeedsLoweringEoi,
    /// The source decides how the forwarder learns of an EOI.
    #[error("--eoi with --forward: the forwarder learns of an EOI in the way that its source has; use no --eoi")]
    ForwarderListens,
    /// The embedded guest drives one forwarded device.
    #[error("--sharers {0} with --device model, vfio or vfio-user: the guest drives one such device; use --sharers 1")]
    OneForwardedDevice(usize),
    /// The embedded guest drives one device.
    #[error("--device twice: the embedded guest drives one device; use one, or --kernel for a guest with many")]
    OneDevice,
    /// `--swap-every` changes the path, which `--forward` fixes unless it is `auto`.
    #[error("--swap-every with --forward {}: the path is to change; use --forward auto and --device model or vfio:ADDRESS", name(.0))]
    NoSwap(Forward),
}

impl Composition {
    /// Checks whether the composition can work. No other function decides this.
    ///
    /// # Errors
    /// The first reason why the composition cannot work.
    pub fn check(&self) -> Result<(), Impossible> {
        match (self.machine, self.controller) {
            (MachineKind::Kvm, Controller::Gic) if GIC => {}
            (MachineKind::Kvm, _) if GIC => return Err(Impossible::NoPc),
            (_, Controller::Gic) => return Err(Impossible::NoGic),
            _ => {}
        }
        match (self.machine, self.irqchip, self.controller) {
            (MachineKind::Kvm, Irqchip::Split | Irqchip::User, Controller::Gic) => return Err(Impossible::GicIsWhole),
            (MachineKind::Soft, Irqchip::Kernel | Irqchip::Split, _) => return Err(Impossible::SoftHasNoKernel),
            (MachineKind::Kvm, Irqchip::User, Controller::Ioapic) => return Err(Impossible::UserHasNoLapic),
            (MachineKind::Kvm, Irqchip::Split, Controller::Pic) => return Err(Impossible::SplitHasNoPic),
            _ => {}
        }
        match (self.machine, self.controller) {
            (MachineKind::Soft, _) if self.doorbell.is_some() => return Err(Impossible::SoftHasNoDoorbell),
            (_, Controller::Gic) if self.doorbell.is_some() => return Err(Impossible::GicHasNoDoorbell),
            _ => {}
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

    /// Checks that the controller has a negative control.
    ///
    /// # Errors
    /// [`Impossible::ControlOfGic`].
    pub fn check_control(&self, without: Option<Without>) -> Result<(), Impossible> {
        match without {
            Some(without) if !self.controller.controls().contains(&without) => Err(Impossible::ControlOfGic(without)),
            _ => Ok(()),
        }
    }

    /// Checks that the device, its forwarder and the rest of the composition fit together.
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
            // The model's thread plays the irqfd of a line in this process.
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
            // The guest acknowledges the model by a port write, which exits to this process.
            (DeviceKind::Model, _) | (_, Source::Line) => true,
            (_, Source::Resample | Source::Pin | Source::Irqfd) => false,
        }
    }
}
