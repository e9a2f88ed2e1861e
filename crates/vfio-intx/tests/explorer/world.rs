// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: the device, its INTx, two lines of a guest, and what the kernel does in between. One thread moves it on.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use interrupt_core::forward::Path;
use vfio_intx::ModelIntx;
use vfio_intx::irq_set::{IrqSet, MSI};

use crate::epoll;
use crate::faults::{Fault, Faults, FaultyDevice, FaultyLine};
use crate::guest::{Service, TestLine, new_eventfd};
use crate::wires::{Answer, Wires};

/// Which line registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// GSI 10 of an irqchip in the kernel.
    Kernel,
    /// GSI 10 of a split irqchip.
    Split,
    /// GSI 10, with a source that has no trigger eventfd: relay only.
    Plain,
    /// GSI 11 of an irqchip in the kernel.
    Other,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    // What the VMM does.
    Enable,
    Disable,
    Mask(bool),
    DisIntx(bool),
    /// The same, with INTx told before the write is passed on.
    DisIntxFirst(bool),
    EnterMsi,
    LeaveMsi,
    /// Before MSI has been disabled at the device, which is then done.
    LeaveMsiEarly,
    Reset,
    Restrict(Option<Path>),
    LineLeaves,
    LineComes(LineKind),
    DeviceLeaves,
    DeviceComes,
    DropRelay,
    SaveAndRestore,
    // What goes on without it.
    Raise,
    RunRelay,
    /// The system refuses the relay's epoll the EOI eventfd, once.
    RunRelayRefused,
    Inject,
    PollUnmask,
    Accept,
    Look,
    Eoi,
    /// The guest ends the interrupt of another device on GSI 10.
    OthersEoi,
}

/// An operation, and which of its requests fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub op: Op,
    pub fault: Option<Fault>,
}

impl From<Op> for Event {
    fn from(op: Op) -> Self {
        Self { op, fault: None }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.op)?;
        match self.fault {
            None => Ok(()),
            Some(Fault { skip, times: 1 }) => write!(f, " (request {} fails)", skip + 1),
            Some(Fault { skip, times: 1_000 }) => write!(f, " (requests {} and up fail)", skip + 1),
            Some(Fault { skip, times }) => write!(f, " (requests {} to {} fail)", skip + 1, skip + times),
        }
    }
}

/// What has been asked for, as far as it was granted.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub enabled: bool,
    pub masked: bool,
    pub disintx: bool,
    pub msi: bool,
    pub only: Option<Path>,
    pub line: Option<LineKind>,
    pub device: bool,
}

pub struct World {
    pub wires: Wires,
    pub model: Arc<ModelIntx>,
    pub lines: [TestLine; 2],
    pub faults: Arc<Faults>,
    pub pulses: bool,
    /// The VMM has a connection of its own, and no registry.
    pub own_connection: bool,
    pub asked: Asked,
    /// An operation answered with an error.
    pub refused: bool,
    /// The guest has set Interrupt Disable at the device, and INTx would not follow.
    pub disintx_refused: bool,
    /// How often the guest's handler found its device asserting.
    pub served: usize,
    /// How often it found it quiet.
    pub spurious: usize,
    /// How often it may: an operation that takes an interrupt off the line cannot take it back from the processor.
    pub excused: usize,
    /// How often the guest has ended the interrupt of another device.
    others: usize,
    message: OwnedFd,
}

/// What is left when INTx, relay and registry have gone.
pub struct Gone {
    pub model: Arc<ModelIntx>,
    pub lines: [TestLine; 2],
    pub faults: Arc<Faults>,
}

impl World {
    /// With a device that pulses, or one that holds its level.
    pub fn new(pulses: bool, own_connection: bool) -> Self {
        let model = if pulses {
            ModelIntx::pulse("pulsing model")
        } else {
            ModelIntx::new("model")
        };
        let (model, faults) = (Arc::new(model), Arc::new(Faults::default()));
        let wires = Wires::new(Self::device(&model, &faults), own_connection);
        let lines = [10, 11].map(|gsi| TestLine::new(gsi, &faults));
        Self {
            wires,
            model,
            lines,
            faults,
            pulses,
            own_connection,
            asked: Asked {
                enabled: false,
                masked: false,
                disintx: false,
                msi: false,
                only: None,
                line: None,
                device: false,
            },
            refused: false,
            disintx_refused: false,
            served: 0,
            spurious: 0,
            excused: 0,
            others: 0,
            message: new_eventfd(),
        }
    }

    fn device(model: &Arc<ModelIntx>, faults: &Arc<Faults>) -> Arc<FaultyDevice> {
        Arc::new(FaultyDevice {
            model: Arc::clone(model),
            faults: Arc::clone(faults),
        })
    }

    /// Whether the event can be had, and is not the same as nothing.
    pub fn can(&self, op: Op) -> bool {
        let asked = &self.asked;
        match op {
            // A pulse that comes to a disabled INTx is nobody's: there is no level that would say it again.
            Op::Disable | Op::DisIntx(_) | Op::DisIntxFirst(_) | Op::EnterMsi | Op::Reset if self.pulses => false,
            // Of two such interrupts the second one's handlers look at this device after the first one's EOI.
            Op::OthersEoi if self.pulses && self.others > 0 => false,
            // Once more is another try of the direct path.
            Op::Enable => !asked.enabled || self.refused || self.faults.any(),
            Op::Disable => asked.enabled,
            Op::Mask(mask) => asked.masked != mask,
            Op::DisIntx(disable) | Op::DisIntxFirst(disable) => asked.disintx != disable,
            Op::EnterMsi => !asked.msi,
            Op::LeaveMsi | Op::LeaveMsiEarly => asked.msi,
            Op::Restrict(only) => asked.only != only && (asked.device || !self.own_connection && asked.line.is_some()),
            Op::LineLeaves => asked.line.is_some(),
            // A connection of the VMM's own takes a line in another one's place.
            Op::LineComes(kind) if self.own_connection => asked.device && asked.line != Some(kind),
            Op::LineComes(_) => asked.line.is_none(),
            Op::DeviceLeaves => asked.device,
            Op::DeviceComes => !asked.device,
            Op::DropRelay | Op::RunRelay | Op::RunRelayRefused => self.wires.has_relay(),
            Op::Reset | Op::SaveAndRestore => true,
            // With INTx disabled a pulse has nowhere to go.
            Op::Raise if self.pulses => self.model.status() == 0 && self.model.is_enabled(),
            Op::Raise => self.model.status() == 0 && !asked.msi,
            Op::Inject => true,
            Op::OthersEoi => self.lines[0].service() == Service::None,
            Op::PollUnmask => self.model.has_unmask_eventfd(),
            Op::Accept => self.lines.iter().any(TestLine::can_accept),
            Op::Look => self.in_service(|service| service == Service::Entered).is_some(),
            Op::Eoi => self
                .in_service(|service| matches!(service, Service::Looked { .. }))
                .is_some(),
        }
    }

    fn in_service(&self, stage: impl Fn(Service) -> bool) -> Option<&TestLine> {
        self.lines.iter().find(|line| stage(line.service()))
    }

    /// Whether an interrupt is somewhere between the device and the guest's EOI.
    fn is_under_way(&self) -> bool {
        let on_line = |line: &TestLine| line.is_high() || line.service() != Service::None;
        self.model.status() != 0 || self.lines.iter().any(on_line)
    }

    /// Says whether anything can have changed.
    pub fn apply(&mut self, event: Event) -> bool {
        let failed = self.faults.failed().len();
        let takes_off = !matches!(
            event.op,
            Op::Enable
                | Op::Restrict(_)
                | Op::Raise
                | Op::RunRelay
                | Op::RunRelayRefused
                | Op::Inject
                | Op::PollUnmask
                | Op::Accept
                | Op::Look
                | Op::Eoi
                | Op::OthersEoi
        );
        let under_way = self.is_under_way();
        self.faults.arm(event.fault);
        let changed = self.act(event.op);
        self.faults.disarm();
        let failed = self.faults.failed().len() > failed;
        if event.op == Op::OthersEoi || under_way && (takes_off || failed) {
            self.excused += 1;
        }
        changed
    }

    /// Does what cannot fail.
    pub fn act_now(&mut self, op: Op) {
        self.act(op);
    }

    /// Everything but the device and the guest goes.
    pub fn without_wires(self, relay_first: bool) -> Gone {
        // Intx and Relay go in any order.
        let mut wires = self.wires;
        if relay_first {
            wires.drop_relay();
        }
        drop(wires);
        Gone {
            model: self.model,
            lines: self.lines,
            faults: self.faults,
        }
    }

    /// Says whether anything can have changed.
    fn act(&mut self, op: Op) -> bool {
        let wires = &mut self.wires;
        let asked = &mut self.asked;
        match op {
            Op::Enable => {
                let answer = wires.enable();
                asked.enabled |= answer != Answer::Refused;
                self.refused = answer != Answer::Done;
            }
            Op::Disable => asked.enabled &= wires.disable() == Answer::Refused,
            Op::Mask(mask) => {
                let answer = wires.mask(mask);
                if answer != Answer::Refused {
                    asked.masked = mask;
                }
                self.refused |= answer != Answer::Done;
            }
            Op::DisIntx(disable) | Op::DisIntxFirst(disable) => {
                // The guest's write reaches the device whatever becomes of the rest.
                if op == Op::DisIntx(disable) {
                    self.model.set_disintx(disable);
                }
                let answer = wires.set_disintx(disable);
                self.model.set_disintx(disable);
                asked.disintx = disable;
                self.refused |= answer != Answer::Done;
                self.disintx_refused = disable && answer == Answer::Refused;
            }
            Op::EnterMsi => {
                if wires.enter_msi() != Answer::Refused {
                    asked.msi = true;
                    self.set_msi(true);
                }
            }
            Op::LeaveMsi => {
                self.set_msi(false);
                let answer = self.wires.leave_msi();
                self.asked.msi &= answer == Answer::Refused;
                self.refused |= answer != Answer::Done;
            }
            Op::LeaveMsiEarly => {
                // VFIO sets up one kind at a time: INTx stays disabled until it is enabled again.
                self.refused |= wires.leave_msi() != Answer::Done;
                asked.msi = false;
                self.set_msi(false);
            }
            Op::Reset => {
                // VFIO_DEVICE_RESET saves the command register before the reset and restores it after (pci_dev_save_and_disable,
                // pci_dev_restore).
                let (model, disintx, msi) = (&self.model, asked.disintx, asked.msi);
                let answer = wires.reset(|| {
                    model.reset();
                    model.set_disintx(disintx);
                });
                self.refused |= answer != Answer::Done;
                // MSI is set up at the device no more; the VMM's own books are another matter.
                if msi {
                    self.set_msi(true);
                }
            }
            Op::Restrict(only) => {
                match wires.restrict(only) {
                    true => asked.only = only,
                    // The request stands for the next line.
                    false => self.refused = true,
                }
            }
            Op::LineLeaves => {
                wires.remove_line();
                asked.line = None;
            }
            Op::LineComes(kind) => {
                let [first, other] = &self.lines;
                let line = match kind {
                    LineKind::Kernel => first.kernel(),
                    LineKind::Split => first.split(),
                    LineKind::Plain => first.plain(),
                    LineKind::Other => other.kernel(),
                };
                let line = FaultyLine {
                    line,
                    faults: Arc::clone(&self.faults),
                };
                match wires.add_line(Arc::new(line)) {
                    true => asked.line = Some(kind),
                    false if self.own_connection => {}
                    false => asked.line = None,
                }
            }
            Op::DeviceLeaves => {
                wires.remove_device();
                asked.device = false;
                if self.own_connection {
                    (asked.line, asked.only) = (None, None);
                }
            }
            Op::DeviceComes => asked.device = wires.add_device(),
            Op::DropRelay => wires.drop_relay(),
            Op::SaveAndRestore => self.save_and_restore(),
            Op::Raise => self.model.raise(1),
            Op::RunRelay => wires.run_relay(),
            Op::RunRelayRefused => match epoll::RefusedEoi::of_the_only_epoll() {
                None => return false,
                Some(_refused) => {
                    self.faults.note("epoll_ctl");
                    wires.run_relay();
                }
            },
            Op::Inject => return self.lines.iter().fold(false, |any, line| line.inject() | any),
            Op::PollUnmask => return self.model.poll_unmask(),
            Op::OthersEoi => {
                self.others += 1;
                self.lines[0].eoi();
            }
            Op::Accept => {
                if let Some(line) = self.lines.iter().find(|line| line.can_accept()) {
                    line.accept();
                }
            }
            Op::Look => self.look(),
            Op::Eoi => {
                if let Some(line) = self.in_service(|service| matches!(service, Service::Looked { .. })) {
                    line.eoi();
                }
            }
        }
        true
    }

    /// Enables MSI at the device, or disables it.
    fn set_msi(&self, enable: bool) {
        let request = if enable {
            IrqSet::trigger(Some(self.message.as_fd()))
        } else {
            IrqSet::disable()
        };
        drop(self.model.set_irqs(&IrqSet { index: MSI, ..request }));
    }

    fn look(&mut self) {
        let found = self.model.status() != 0;
        if let Some(line) = self.in_service(|service| service == Service::Entered) {
            line.looked(found);
            self.model.acknowledge(u32::MAX);
            match found {
                true => self.served += 1,
                false => self.spurious += 1,
            }
        }
    }

    /// Into another process: everything but the device and the guest is made anew.
    fn save_and_restore(&mut self) {
        let saved = self.wires.save();
        let asked = self.asked;
        // Both orders of the two that own it.
        if asked.masked {
            self.wires.drop_relay();
        }
        self.wires = Wires::new(Self::device(&self.model, &self.faults), self.own_connection);
        self.asked = Asked {
            enabled: false,
            masked: false,
            msi: false,
            only: None,
            line: None,
            device: false,
            ..asked
        };
        if asked.device {
            self.act(Op::DeviceComes);
        }
        if let Some(kind) = asked.line {
            self.act(Op::LineComes(kind));
        }
        if asked.only.is_some() {
            self.act(Op::Restrict(asked.only));
        }
        let answer = self.wires.restore(&saved);
        if answer != Answer::Refused {
            (self.asked.enabled, self.asked.masked, self.asked.msi) = (asked.enabled, asked.masked, asked.msi);
        }
        self.refused |= answer != Answer::Done;
    }

    /// Lets the world run until nothing moves. Nobody asks anything of INTx meanwhile.
    pub fn settle(&mut self) -> bool {
        let mut idle = 0;
        for _ in 0..32 {
            let before = (self.model.signals(), self.served, self.spurious);
            self.wires.run_relay();
            let mut moved = self.model.poll_unmask();
            for line in &self.lines {
                moved |= line.inject();
            }
            while let Some(op) = [Op::Look, Op::Eoi, Op::Accept].into_iter().find(|op| self.can(*op)) {
                self.act(op);
                moved = true;
            }
            moved |= before != (self.model.signals(), self.served, self.spurious);
            idle = if moved { 0 } else { idle + 1 };
            if idle == 2 {
                return true;
            }
        }
        false
    }
}
