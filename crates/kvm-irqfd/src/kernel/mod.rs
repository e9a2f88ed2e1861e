// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the books of a VM ask of the kernel. The one boundary at which a step can fail.

pub mod eventfd;
pub(crate) mod irqchip;
pub(crate) mod wait;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use interrupt_core::{Delivery, Gsi, Level};
use kvm_bindings::{KVM_CAP_IRQ_INJECT_STATUS, KVMIO, KvmIrqRouting, kvm_irq_level, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

// kvm-ioctls has KVM_IRQ_LINE alone, which says nothing of what became of the level.
ioctl_iowr_nr!(KVM_IRQ_LINE_STATUS, KVMIO, 0x67, kvm_irq_level);

/// The kernel's side of one VM's interrupts.
pub(crate) trait Kernel: Send + Sync {
    /// A new eventfd, close-on-exec and non-blocking.
    fn eventfd(&self) -> io::Result<OwnedFd>;

    /// Has `epoll` report each signal of `eventfd` once, as `token`. Closing the eventfd ends that.
    fn watch(&self, epoll: BorrowedFd<'_>, eventfd: BorrowedFd<'_>, token: u64) -> io::Result<()>;

    /// Assigns an irqfd; a resample irqfd if there is a resamplefd.
    fn assign(&self, trigger: &EventFd, resamplefd: Option<&EventFd>, gsi: Gsi) -> io::Result<()>;

    /// Deassigns an irqfd. When this returns, a signal of the trigger is not injected any more and stays in the
    /// counter. The kernel fails for an fd that is no open eventfd and for nothing else, so that there is no error to
    /// return.
    fn deassign(&self, trigger: &EventFd, gsi: Gsi);

    /// Exchanges the GSI routing table.
    fn set_routing(&self, table: &KvmIrqRouting) -> io::Result<()>;

    /// Drives a line by KVM_IRQ_LINE.
    fn set_irq_line(&self, gsi: Gsi, level: Level) -> io::Result<Delivery>;
}

/// The real kernel.
pub(crate) struct KvmVm {
    vm: Arc<VmFd>,
    /// The kernel answers KVM_IRQ_LINE_STATUS.
    status: bool,
    /// What sets the routing table, if it is not this crate.
    set_routes: Option<SetRoutes>,
}

/// The VMM's own way to set the routes of some GSIs, among those of others.
pub(crate) type SetRoutes = Box<dyn Fn(&[kvm_irq_routing_entry]) -> io::Result<()> + Send + Sync>;

impl KvmVm {
    pub(crate) fn new(vm: Arc<VmFd>, set_routes: Option<SetRoutes>) -> Self {
        let status = vm.check_extension_raw(u64::from(KVM_CAP_IRQ_INJECT_STATUS)) > 0;
        Self { vm, status, set_routes }
    }
}

impl Kernel for KvmVm {
    fn eventfd(&self) -> io::Result<OwnedFd> {
        Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    fn watch(&self, epoll: BorrowedFd<'_>, eventfd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(
            epoll,
            eventfd,
            EventData::new_u64(token),
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    fn assign(&self, trigger: &EventFd, resamplefd: Option<&EventFd>, gsi: Gsi) -> io::Result<()> {
        Ok(match resamplefd {
            None => self.vm.register_irqfd(trigger, gsi.0),
            Some(resamplefd) => self.vm.register_irqfd_with_resample(trigger, resamplefd, gsi.0),
        }?)
    }

    fn deassign(&self, trigger: &EventFd, gsi: Gsi) {
        let _ = self.vm.unregister_irqfd(trigger, gsi.0);
    }

    fn set_routing(&self, table: &KvmIrqRouting) -> io::Result<()> {
        match &self.set_routes {
            Some(set_routes) => set_routes(table.as_slice()),
            None => Ok(self.vm.set_gsi_routing(table)?),
        }
    }

    fn set_irq_line(&self, gsi: Gsi, level: Level) -> io::Result<Delivery> {
        let high = level == Level::High;
        if !self.status {
            self.vm.set_irq_line(irq_line_number(gsi), high)?;
            return Ok(Delivery::Unknown);
        }
        let mut irq_level = kvm_irq_level {
            level: high.into(),
            ..Default::default()
        };
        irq_level.__bindgen_anon_1.irq = irq_line_number(gsi);
        // SAFETY: the fd is a VM's, and the argument is the structure that this ioctl reads and writes, alive
        // throughout.
        let result = unsafe { ioctl_with_mut_ref(&*self.vm, KVM_IRQ_LINE_STATUS(), &mut irq_level) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both members of the union are 32-bit integers, so that either may be read whichever was written.
        let status = unsafe { irq_level.__bindgen_anon_1.status };
        Ok(match status {
            ..0 => Delivery::Pending,
            0 => Delivery::Coalesced,
            // Lossless: the value is positive.
            _ => Delivery::Delivered(status.unsigned_abs()),
        })
    }
}

/// The line as KVM_IRQ_LINE numbers it: on x86 by its GSI.
#[cfg(target_arch = "x86_64")]
fn irq_line_number(gsi: Gsi) -> u32 {
    gsi.0
}

/// The line as KVM_IRQ_LINE numbers it: on aarch64 by a type, which is "SPI", and the GIC's interrupt ID. A GSI that is
/// bound is below 988.
#[cfg(target_arch = "aarch64")]
fn irq_line_number(gsi: Gsi) -> u32 {
    kvm_bindings::KVM_ARM_IRQ_TYPE_SPI << kvm_bindings::KVM_ARM_IRQ_TYPE_SHIFT | (crate::gic::PRIVATE + gsi.0)
}
