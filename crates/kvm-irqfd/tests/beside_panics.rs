// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM's own routing table that panics has refused: nothing is taken for set.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use interrupt_core::{Gsi, Msi, MsiOutput, PinMask};
use kvm_irqfd::{KvmInterrupts, Routes};

#[test]
fn a_table_that_panics_is_set_by_the_next_call() {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else { return };
    let vm = Arc::new(kvm.create_vm().unwrap());
    kvm_irqfd::enable_split_irqchip(&vm, 24).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let set = move |_: &[kvm_bindings::kvm_irq_routing_entry]| {
        assert_ne!(called.fetch_add(1, Ordering::Relaxed), 1, "the table's fault");
        Ok(())
    };
    let routes = Routes::from_kvm(&[]).unwrap();
    let interrupts = KvmInterrupts::beside(vm, Gsi(0)..Gsi(24), routes, set).unwrap();
    let program = |vector: u32| {
        let message = Msi {
            address: 0xfee0_0000,
            data: 0x8000 | vector,
        };
        interrupts.set_pin(Gsi(5), Some(message), PinMask::Unmasked)
    };
    program(0x31).unwrap();
    catch_unwind(AssertUnwindSafe(|| program(0x32))).unwrap_err();
    program(0x32).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}
