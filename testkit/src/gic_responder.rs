// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that ends each interrupt of its GIC: the guest's side of a round trip on arm64.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};
use kvm_ioctls::VmFd;

use crate::gic_machine::{FIRST_SPI, GicMachine};
use crate::rig::LEVEL;

/// A guest in a thread of its own, with some level-triggered SPIs enabled. The guest sleeps between interrupts. A drop
/// ends the guest.
pub struct Responder {
    vm: Arc<VmFd>,
    stop: Arc<AtomicBool>,
    guest: Option<JoinHandle<()>>,
}

/// The SPI that wakes the guest at its end.
const LAST: u32 = 63;

impl Responder {
    /// Starts a guest that has these SPIs enabled; `before` is run on its VM before it starts.
    pub fn start<T>(spis: &[u8], before: impl FnOnce(&Arc<VmFd>) -> T) -> (Self, T) {
        let mut machine = GicMachine::full();
        for spi in spis.iter().copied().map(u32::from).chain([LAST]) {
            machine.set_rte(spi, LEVEL);
        }
        let vm = machine.vm().clone();
        let made = before(&vm);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let guest = thread::Builder::new().name("guest".into()).spawn(move || {
            loop {
                machine.wait();
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                // An edge may be over before the guest looks.
                if machine.acknowledge().is_some() {
                    machine.eoi();
                }
            }
        });
        let guest = Some(guest.expect("a thread for the guest"));
        (Self { vm, stop, guest }, made)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let last = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + LAST);
        if let (Ok(()), Some(guest)) = (self.vm.set_irq_line(last, true), self.guest.take()) {
            // The panic hook has reported a guest that failed.
            drop(guest.join());
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a guest that ends each interrupt of its GIC")
    }
}
