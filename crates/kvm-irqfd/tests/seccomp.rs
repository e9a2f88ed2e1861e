// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of a vCPU's thread, of which a VMM's seccomp filter has a list.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;
use std::sync::Arc;

use interrupt_core::{EoiNotifier, Gsi, Listener, Msi, MsiOutput, PinMask};
use kvm_ioctls::Kvm;
use kvm_irqfd::{KvmInterrupts, Route, SPLIT_PINS, enable_split_irqchip};
use rustix::event::{EventfdFlags, eventfd};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::seccomp::with_only;

/// All of them. The ioctls are KVM_IRQFD, KVM_SET_GSI_ROUTING, KVM_IRQ_LINE and KVM_SIGNAL_MSI; ppoll is for an eventfd of
/// the VMM's that is blocking, and for a trigger that KVM does not take at the moment.
const CALLS: &[i64] = &[libc::SYS_ioctl, libc::SYS_ppoll, libc::SYS_preadv2, libc::SYS_write];

fn main() -> ExitCode {
    Suite::new("kvm-irqfd::seccomp")
        .test("devices_and_edges", &[Need::FullIrqchip], devices_and_edges)
        .test(
            "pins_of_a_userspace_ioapic",
            &[Need::SplitIrqchip],
            pins_of_a_userspace_ioapic,
        )
        .run()
}

fn message(data: u32) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data,
    }
}

/// What a guest's accesses make devices do, and what they do to MSI-X.
fn devices_and_edges() {
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let interrupts = KvmInterrupts::new(vm).unwrap();
    let by_irqfd = interrupts.resample_source(Gsi(5), "disk").unwrap();
    let blocking = kvm_irqfd::eventfd::from_owned(eventfd(0, EventfdFlags::empty()).unwrap());
    let shared = interrupts.resample_source_with(Gsi(5), "serial", blocking).unwrap();
    let by_ioctl = interrupts.irq_line_source(Gsi(10), "keyboard").unwrap();
    let listener = Listener::fd(eventfd(0, EventfdFlags::empty()).unwrap());
    let _told = interrupts.subscribe(Gsi(10).into(), listener).unwrap();
    let vector = |data| Route::Msi {
        address: 0xfee0_0000,
        data,
        device: None,
    };
    let set = |data| {
        let mut routing = interrupts.routing();
        routing.set(Gsi(24), &[vector(data)]).unwrap();
        routing.commit().unwrap();
    };
    set(0x40);
    let edge = interrupts.edge_irqfd(Gsi(24)).unwrap();
    with_only(CALLS, || {
        for source in [&by_irqfd, &shared, &by_ioctl] {
            source.assert().unwrap();
            source.deassert().unwrap();
            source.force_deassert().unwrap();
        }
        edge.mask();
        edge.signal().unwrap();
        edge.unmask().unwrap();
        edge.signal().unwrap();
        set(0x41);
    });
}

fn pins_of_a_userspace_ioapic() {
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    enable_split_irqchip(&vm, SPLIT_PINS).unwrap();
    let interrupts = KvmInterrupts::new(vm).unwrap();
    let source = interrupts.split_source(Gsi(5), "disk").unwrap();
    with_only(CALLS, || {
        for (data, mask) in [
            (0x8031, PinMask::Unmasked),
            (0x8031, PinMask::Masked),
            (0x8032, PinMask::Masked),
            (0x8032, PinMask::Asked),
        ] {
            interrupts.set_pin(Gsi(5), Some(message(data)), mask).unwrap();
            source.assert().unwrap();
            source.deassert().unwrap();
            source.force_deassert().unwrap();
            drop(interrupts.send_msi(Gsi(5), message(data)));
        }
    });
}
