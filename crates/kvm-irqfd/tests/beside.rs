// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM's own routing table that uses the interrupts whose routes it sets, or panics: nothing waits for ever, and nothing is
//! taken for set.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use interrupt_core::{EoiNotifier, Gsi, LevelSource, Listener, Msi, MsiOutput, PinMask};
use kvm_bindings::{KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip};
use kvm_ioctls::VmFd;
use kvm_irqfd::{Chip, Committed, KvmInterrupts, Reason, Route, Routes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::harness::Suite;
use testkit::need::Need;

fn main() -> ExitCode {
    Suite::new("kvm-irqfd::beside")
        .test(
            "the_table_of_a_split_irqchip_may_use_the_interrupts",
            &[Need::SplitIrqchip],
            the_table_of_a_split_irqchip_may_use_the_interrupts,
        )
        .test(
            "the_table_of_a_kernel_irqchip_may_use_the_lines_that_it_moves",
            &[Need::FullIrqchip],
            the_table_of_a_kernel_irqchip_may_use_the_lines_that_it_moves,
        )
        .test(
            "the_table_of_a_kernel_irqchip_may_use_the_irqfds_that_it_moves",
            &[Need::FullIrqchip],
            the_table_of_a_kernel_irqchip_may_use_the_irqfds_that_it_moves,
        )
        .test(
            "a_table_that_panics_is_set_by_the_next_call",
            &[Need::SplitIrqchip],
            a_table_that_panics_is_set_by_the_next_call,
        )
        .run()
}

/// What the table does when it is set next.
type Act = Box<dyn FnOnce() + Send>;

/// A VM, with a table that sets the routes after it has acted.
fn beside(irqchip: impl FnOnce(&VmFd), routes: Routes) -> (KvmInterrupts, Arc<Mutex<Option<Act>>>) {
    let vm = Arc::new(kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap());
    irqchip(&vm);
    let act = Arc::new(Mutex::new(None::<Act>));
    let (next, table) = (Arc::clone(&act), Arc::clone(&vm));
    let set = move |entries: &[kvm_irq_routing_entry]| {
        let act = next.lock().unwrap().take();
        act.into_iter().for_each(|act| act());
        Ok(table.set_gsi_routing(&KvmIrqRouting::from_entries(entries).unwrap())?)
    };
    let interrupts = KvmInterrupts::beside(vm, Gsi(0)..Gsi(24), routes, set).unwrap();
    (interrupts, act)
}

/// Runs this on a thread of its own, so that a hang is a failure.
#[track_caller]
fn ends(run: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        run();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(20)).unwrap();
}

fn is_reentrant(error: &interrupt_core::Error) -> bool {
    let error = error.to_string();
    error.contains("called by the function that sets the routes")
}

fn the_table_of_a_split_irqchip_may_use_the_interrupts() {
    let split = |vm: &VmFd| kvm_irqfd::enable_split_irqchip(vm, 24).unwrap();
    let (interrupts, act) = beside(split, Routes::default());
    ends(move || {
        let pin = |vector: u32| {
            Some(Msi {
                address: 0xfee0_0000,
                data: 0x8000 | vector,
            })
        };
        let source = interrupts.split_source(Gsi(5), "device").unwrap();
        let goes = interrupts.split_source(Gsi(5), "goes").unwrap();
        let edge = interrupts.edge_irqfd(Gsi(6)).unwrap();
        let inner = interrupts.clone();
        *act.lock().unwrap() = Some(Box::new(move || {
            assert_eq!(inner.routes().len(), 1, "the new table");
            assert_eq!(inner.counts(Gsi(5)).unwrap().refused, 0);
            assert!(format!("{inner:?}").contains("gsi 5"));
            source.assert().unwrap();
            source.force_deassert().unwrap();
            source.assert().unwrap();
            drop(goes);
            edge.mask();
            edge.unmask().unwrap();
            let refused = inner.split_source(Gsi(5), "late").unwrap_err();
            assert!(matches!(refused.reason, Reason::Reentrant), "{refused}");
            assert_eq!(refused.errno(), Some(35));
            let mut routing = inner.routing();
            routing.set(Gsi(7), &[]).unwrap();
            assert!(matches!(routing.commit().unwrap_err().reason, Reason::Reentrant));
            let again = inner.set_pin(Gsi(5), pin(0x32), PinMask::Unmasked);
            assert!(is_reentrant(&again.unwrap_err()));
        }));
        interrupts.set_pin(Gsi(5), pin(0x31), PinMask::Unmasked).unwrap();
        assert!(act.lock().unwrap().is_none(), "it has run");
        // Not refused any more.
        interrupts.set_pin(Gsi(5), pin(0x32), PinMask::Unmasked).unwrap();
        interrupts.split_source(Gsi(5), "late").unwrap();
    });
}

/// A VM with an irqchip in the kernel, whose GSI 20 leads to pin 20.
fn kernel() -> (KvmInterrupts, Arc<Mutex<Option<Act>>>) {
    let mut entry = kvm_irq_routing_entry {
        gsi: 20,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = 20;
    let (interrupts, act) = beside(|vm| vm.create_irq_chip().unwrap(), Routes::from_kvm(&[entry]).unwrap());
    let table = KvmIrqRouting::from_entries(&[entry]).unwrap();
    interrupts.vm().set_gsi_routing(&table).unwrap();
    (interrupts, act)
}

/// Leads GSI 20 to pin 21.
fn move_pin(interrupts: &KvmInterrupts) {
    let mut routing = interrupts.routing();
    let chip = Chip::Ioapic;
    routing.set(Gsi(20), &[Route::Pin { chip, pin: 21 }]).unwrap();
    assert_eq!(routing.commit().unwrap(), Committed::Changed);
}

/// A line whose pin changes is low meanwhile, and its level is driven after the change.
fn the_table_of_a_kernel_irqchip_may_use_the_lines_that_it_moves() {
    let (interrupts, act) = kernel();
    ends(move || {
        let source = interrupts.irq_line_source(Gsi(20), "device").unwrap();
        let goes = interrupts.irq_line_source(Gsi(20), "goes").unwrap();
        goes.assert().unwrap();
        let (inner, device): (_, Arc<dyn LevelSource>) = (interrupts.clone(), Arc::clone(&source));
        *act.lock().unwrap() = Some(Box::new(move || {
            assert_eq!(levels(&inner), 0, "low while the pin moves");
            drop(goes);
            device.assert().unwrap();
            device.deassert().unwrap();
            device.assert().unwrap();
            assert_eq!(levels(&inner), 0, "low while the pin moves");
            let listener = Listener::callback(|_| {});
            assert!(is_reentrant(&inner.subscribe(Gsi(20).into(), listener).unwrap_err()));
        }));
        move_pin(&interrupts);
        assert!(act.lock().unwrap().is_none(), "it has run");
        assert_eq!(levels(&interrupts), 1 << 21, "at the new pin");
        source.deassert().unwrap();
        assert_eq!(levels(&interrupts), 0);
    });
}

/// What is signalled meanwhile is at the new pin after the change, and never at the old one.
fn the_table_of_a_kernel_irqchip_may_use_the_irqfds_that_it_moves() {
    let (interrupts, act) = kernel();
    ends(move || {
        let source = interrupts.resample_source(Gsi(20), "device").unwrap();
        let goes = interrupts.resample_source(Gsi(20), "goes").unwrap();
        let device = Arc::clone(&source);
        *act.lock().unwrap() = Some(Box::new(move || {
            device.assert().unwrap();
            device.force_deassert().unwrap();
            drop(goes);
            device.assert().unwrap();
            let mut trigger = [PollFd::from_borrowed_fd(device.trigger().unwrap(), PollFlags::IN)];
            assert_eq!(
                poll(&mut trigger, Some(&Timespec::default())),
                Ok(1),
                "KVM takes nothing"
            );
        }));
        move_pin(&interrupts);
        assert!(act.lock().unwrap().is_none(), "it has run");
        while levels(&interrupts) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(levels(&interrupts), 1 << 21, "at the new pin");
    });
}

/// A table that panics has refused: nothing is taken for set.
fn a_table_that_panics_is_set_by_the_next_call() {
    let vm = Arc::new(kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap());
    kvm_irqfd::enable_split_irqchip(&vm, 24).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let set = move |_: &[kvm_irq_routing_entry]| {
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

/// The pins of KVM's IOAPIC that are high: its IRR.
fn levels(interrupts: &KvmInterrupts) -> u32 {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    interrupts.vm().get_irqchip(&mut chip).unwrap();
    // SAFETY: KVM has written the member that the ID names.
    unsafe { chip.chip.ioapic.irr }
}
