// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pin that KVM_IRQ_LINE drives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use interrupt_core::{Delivery, Error, Gsi, Level, Line, LineSource, Pin, WiredOr};
use kvm_bindings::{KVM_CAP_IRQ_INJECT_STATUS, KVMIO, kvm_irq_level};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::interrupts::Shared;

// kvm-ioctls has KVM_IRQ_LINE alone, which says nothing of what became of the level.
ioctl_iowr_nr!(KVM_IRQ_LINE_STATUS, KVMIO, 0x67, kvm_irq_level);

/// A level source that drives its GSI by KVM_IRQ_LINE: synchronous, without the work-queue hop of an irqfd, and lowered by the
/// device alone. All such sources of a GSI share one [`Line`], so that the ioctl states their OR.
pub type IrqLineSource = LineSource<IrqLinePin>;

/// The GSI as KVM_IRQ_LINE sees it; [`IrqLineSource`]s drive it.
#[derive(Debug)]
pub struct IrqLinePin {
    gsi: Gsi,
    vm: Arc<VmFd>,
    /// The kernel answers KVM_IRQ_LINE_STATUS.
    status: bool,
    shared: Weak<Shared>,
    state: Mutex<WiredOr>,
}

impl IrqLinePin {
    pub(crate) fn line(gsi: Gsi, shared: &Arc<Shared>) -> Arc<Line<Self>> {
        let vm = Arc::clone(shared.vm());
        let status = vm.check_extension_raw(u64::from(KVM_CAP_IRQ_INJECT_STATUS)) > 0;
        let shared = Arc::downgrade(shared);
        Line::new(
            gsi,
            Self {
                gsi,
                vm,
                status,
                shared,
                state: Mutex::default(),
            },
        )
    }

    /// The line as KVM_IRQ_LINE numbers it: on x86 by its GSI.
    #[cfg(target_arch = "x86_64")]
    fn number(&self) -> u32 {
        self.gsi.0
    }

    /// The line as KVM_IRQ_LINE numbers it: on aarch64 by a type, which is "SPI", and the GIC's interrupt ID. A GSI that is bound is
    /// below 988.
    #[cfg(target_arch = "aarch64")]
    fn number(&self) -> u32 {
        const SPI: u32 = 1;
        SPI << 24 | (32 + self.gsi.0)
    }

    fn drive_with_status(&self, level: Level) -> std::io::Result<Delivery> {
        let mut irq_level = kvm_irq_level {
            level: u32::from(level == Level::High),
            ..Default::default()
        };
        irq_level.__bindgen_anon_1.irq = self.number();
        // SAFETY: the fd is a VM's, and the argument is the structure that this ioctl reads and writes, alive throughout.
        let result = unsafe { ioctl_with_mut_ref(&*self.vm, KVM_IRQ_LINE_STATUS(), &mut irq_level) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
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

impl Pin for IrqLinePin {
    type State = WiredOr;
    type Outcome = Delivery;

    fn lock(&self) -> MutexGuard<'_, WiredOr> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wired_or<'a>(&self, state: &'a mut WiredOr) -> &'a mut WiredOr {
        state
    }

    fn drive(&self, _: &mut WiredOr, level: Level) -> interrupt_core::Result<Delivery> {
        let (operation, outcome) = if self.status {
            ("KVM_IRQ_LINE_STATUS", self.drive_with_status(level))
        } else {
            let outcome = self.vm.set_irq_line(self.number(), level == Level::High);
            ("KVM_IRQ_LINE", outcome.map(|()| Delivery::Unknown).map_err(Into::into))
        };
        outcome.map_err(|source| Error::Os {
            operation,
            gsi: self.gsi,
            source,
        })
    }

    fn deliver(&self, outcome: Delivery) -> interrupt_core::Result<Delivery> {
        Ok(outcome)
    }
}

impl Drop for IrqLinePin {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.irq_line_gone(self.gsi);
        }
    }
}
