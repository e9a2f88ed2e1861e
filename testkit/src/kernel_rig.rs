// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel irqchip as a [`Rig`], driven with bare ioctls in accept mode, and as a [`PicRig`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use interrupt_core::Delivery;
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counter::count;
use crate::ioctl;
use crate::machine::Machine;
use crate::need::Need;
use crate::rig::{EdgeLine, PicRig, ResampleLine, Rig};

/// How long [`Rig::accept`] polls for an interrupt before it flushes the injections. The work queue takes about 10 us.
/// A flush takes longer, but is certain.
const LOOK: Duration = Duration::from_micros(200);

/// The in-kernel irqchip of one machine.
#[derive(Debug)]
pub struct KernelRig {
    machine: Machine,
    lines: Vec<Weak<Irqfd>>,
    keeper: Keeper,
}

impl KernelRig {
    /// The needs of this rig.
    pub const NEEDS: &[Need] = &[Need::AcceptMode];

    /// A rig on a machine of its own.
    pub fn new() -> Self {
        KernelRig {
            machine: Machine::full(),
            lines: Vec::new(),
            keeper: Keeper::new(),
        }
    }

    /// The machine, for rows that only the kernel has.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn bind(&mut self, gsi: u32, resample: Option<EventFd>) -> Line {
        let irqfd = Arc::new(Irqfd {
            vm: self.machine.vm().clone(),
            trigger: eventfd(),
            resample,
            gsi,
            state: Mutex::default(),
        });
        irqfd.assign();
        self.lines.push(Arc::downgrade(&irqfd));
        Line(irqfd)
    }
}

impl Default for KernelRig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig for KernelRig {
    fn bind_resample(&mut self, gsi: u32) -> Box<dyn ResampleLine> {
        Box::new(self.bind(gsi, Some(eventfd())))
    }

    fn bind_edge(&mut self, gsi: u32) -> Box<dyn EdgeLine> {
        Box::new(self.bind(gsi, None))
    }

    fn set_line(&mut self, gsi: u32, high: bool) -> Delivery {
        match ioctl::irq_line_status(self.machine.vm(), gsi, high.into()).expect("KVM_IRQ_LINE_STATUS") {
            ..0 => Delivery::Pending,
            0 => Delivery::Coalesced,
            1.. => Delivery::Delivered(1),
        }
    }

    fn send_msi(&mut self, vector: u8) {
        let msi = kvm_msi {
            address_lo: 0xfee0_0000,
            data: vector.into(),
            ..Default::default()
        };
        self.machine.vm().signal_msi(msi).expect("KVM_SIGNAL_MSI");
    }

    fn write_rte_low(&mut self, pin: u32, value: u32) {
        self.machine.write_rte_low(pin, value);
    }

    fn write_rte_high(&mut self, pin: u32, value: u32) {
        self.machine.write_rte_high(pin, value);
    }

    fn rte(&mut self, pin: u32) -> u64 {
        self.settle();
        self.machine.rte(pin)
    }

    fn irr(&mut self, pin: u32) -> bool {
        self.settle();
        self.machine.ioapic_irr(pin)
    }

    fn accept(&mut self) -> Option<u8> {
        self.machine.accept_within(LOOK).or_else(|| {
            self.settle();
            self.machine.accept()
        })
    }

    fn eoi(&mut self) {
        self.machine.eoi();
    }

    fn set_lapic_enabled(&mut self, enabled: bool) {
        self.machine.set_lapic_enabled(enabled);
    }

    fn settle(&mut self) {
        self.lines.retain(|line| line.strong_count() > 0);
        for line in self.lines.iter().filter_map(Weak::upgrade) {
            line.flush(&self.keeper);
        }
    }
}

/// The in-kernel 8259 pair of one machine.
#[derive(Debug)]
pub struct KernelPicRig(KernelRig);

impl KernelPicRig {
    /// The needs of this rig.
    pub const NEEDS: &[Need] = &[Need::GenuinePicEoi];

    /// A rig on a machine of its own, with the 8259's output open to the CPU.
    pub fn new() -> Self {
        let mut rig = KernelRig::new();
        rig.machine.set_lvt0_extint(true);
        KernelPicRig(rig)
    }
}

impl Default for KernelPicRig {
    fn default() -> Self {
        Self::new()
    }
}

impl PicRig for KernelPicRig {
    fn bind_resample(&mut self, irq: u32) -> Box<dyn ResampleLine> {
        self.0.bind_resample(irq)
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.0.machine.outb(port, value);
    }

    fn inb(&mut self, port: u16) -> u8 {
        self.0.machine.inb(port)
    }

    fn inta(&mut self) -> Option<u8> {
        self.settle();
        self.0.machine.take_interrupt()
    }

    fn settle(&mut self) {
        self.0.settle();
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("eventfd")
}

/// A resample irqfd that is never triggered. It is assigned while another resample irqfd of the same GSI is briefly
/// deassigned, so that KVM does not see the last irqfd go, and the line keeps its level.
#[derive(Debug)]
struct Keeper {
    trigger: EventFd,
    resample: EventFd,
}

impl Keeper {
    fn new() -> Self {
        Keeper {
            trigger: eventfd(),
            resample: eventfd(),
        }
    }
}

/// Whether triggers may still be on their way through the work queue. Held while triggering and while flushing.
#[derive(Debug, Default)]
struct State {
    unsettled: bool,
}

#[derive(Debug)]
struct Irqfd {
    vm: Arc<VmFd>,
    trigger: EventFd,
    resample: Option<EventFd>,
    gsi: u32,
    state: Mutex<State>,
}

impl Irqfd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self) {
        match &self.resample {
            Some(resample) => ioctl::assign_resample(&self.vm, &self.trigger, resample, self.gsi),
            None => ioctl::assign_edge(&self.vm, &self.trigger, self.gsi),
        }
        .expect("KVM_IRQFD");
    }

    fn deassign(&self) {
        ioctl::deassign(&self.vm, &self.trigger, self.gsi).expect("KVM_IRQFD(DEASSIGN)");
    }

    fn signal(&self) {
        let mut state = self.state();
        state.unsettled = true;
        self.trigger.write(1).expect("write to the trigger");
    }

    /// Waits for pending injections. Only a deassign does that: it flushes the irqfd's work.
    fn flush(&self, keeper: &Keeper) {
        let mut state = self.state();
        if !std::mem::take(&mut state.unsettled) {
            return;
        }
        match self.resample {
            Some(_) => {
                ioctl::assign_resample(&self.vm, &keeper.trigger, &keeper.resample, self.gsi).expect("KVM_IRQFD");
                self.deassign();
                self.assign();
                ioctl::deassign(&self.vm, &keeper.trigger, self.gsi).expect("KVM_IRQFD(DEASSIGN)");
            }
            None => {
                self.deassign();
                self.assign();
            }
        }
    }
}

/// The handle of a test. The rig holds only a weak reference to it.
struct Line(Arc<Irqfd>);

impl ResampleLine for Line {
    fn trigger(&self) {
        self.0.signal();
    }

    fn n(&self) -> u64 {
        self.0.resample.as_ref().map_or(0, count)
    }
}

impl EdgeLine for Line {
    fn pulse(&self) {
        self.0.signal();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.deassign();
    }
}
