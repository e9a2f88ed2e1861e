// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split irqchip on real KVM: this crate as the output of a userspace IOAPIC, whose part the tests play.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use interrupt_core::{Delivery, Gsi, Msi, MsiOutput, PinMask};
use kvm_bindings::{KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{Kvm, VmFd};
use kvm_irqfd::{
    EoiBroadcast, Error, KvmInterrupts, Reason, Routes, SPLIT_PINS, enable_split_irqchip, set_eoi_broadcast,
};
use testkit::harness::{Suite, differs};
use testkit::machine::{Exit, Irqchip, Machine};
use testkit::need::Need;
use testkit::process::fds;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

mod common;

const NEEDS: &[Need] = &[Need::SplitIrqchip];
const GSI: Gsi = Gsi(18);
const VECTOR: u8 = 0x51;

fn main() -> ExitCode {
    Suite::new("kvm-irqfd::split")
        .serial()
        .test("row_81_one_exit_for_each_eoi_of_a_level", NEEDS, row_81_one_exit)
        .test("row_82_no_exit_for_an_edge_or_an_unreserved_gsi", NEEDS, row_82_no_exit)
        .test("row_83_the_three_ways_of_eoi_broadcast", NEEDS, row_83_eoi_broadcast)
        .test("an_irqfd_on_the_pins_gsi_asserts", NEEDS, an_irqfd_asserts)
        .test("a_masked_pin_waits_with_what_was_signalled", NEEDS, a_masked_pin_waits)
        .test("a_pin_without_a_route_waits", NEEDS, a_pin_without_a_route_waits)
        .test("a_message_for_nobody_is_taken_by_nobody", NEEDS, a_message_for_nobody)
        .test(
            "an_unmask_that_asks_drops_what_a_device_signalled",
            NEEDS,
            an_unmask_that_asks,
        )
        .test(
            "row_149_a_peer_that_fills_a_waiting_trigger_holds_nobody",
            NEEDS,
            row_149_a_peer_that_fills_a_waiting_trigger,
        )
        .test(
            "a_refused_unmask_keeps_what_was_asserted",
            NEEDS,
            a_refused_unmask_keeps_what_was_asserted,
        )
        .test("beside_an_allocator_of_msis", NEEDS, beside_an_allocator_of_msis)
        .test("refusals_leave_nothing", NEEDS, refusals_leave_nothing)
        .run()
}

fn split() -> (Machine, KvmInterrupts) {
    let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    (machine, interrupts)
}

fn level(vector: u8) -> Msi {
    Msi {
        address: 0xFEE0_0000,
        data: 1 << 15 | u32::from(vector),
    }
}

/// The vector that comes within a second: what waited in a trigger goes through the kernel's work queue when it is let
/// through.
fn accept(machine: &mut Machine) -> Option<u8> {
    machine.accept_within(Duration::from_secs(1))
}

/// The vectors whose EOI was an exit.
fn ended(exits: &[Exit]) -> Vec<u8> {
    let vector = |exit: &Exit| match exit {
        Exit::IoapicEoi(vector) => Some(*vector),
        _ => None,
    };
    exits.iter().filter_map(vector).collect()
}

fn row_81_one_exit() {
    let (mut machine, interrupts) = split();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    for _ in 0..100 {
        assert_eq!(interrupts.send_msi(GSI, level(VECTOR)).unwrap(), Delivery::Delivered(1));
        assert_eq!(machine.accept(), Some(VECTOR));
        assert_eq!(ended(&machine.eoi()), [VECTOR]);
        assert_eq!(machine.accept(), None);
    }
}

fn row_82_no_exit() {
    let (mut machine, interrupts) = split();
    let edge = Msi { data: 0x61, ..level(0) };
    interrupts.set_pin(GSI, Some(edge), PinMask::Unmasked).unwrap();
    interrupts
        .set_pin(Gsi(24), Some(level(0x62)), PinMask::Unmasked)
        .unwrap();
    for (gsi, message) in [(GSI, edge), (Gsi(24), level(0x62))] {
        interrupts.send_msi(gsi, message).unwrap();
        assert_eq!(machine.accept(), Some(message.data as u8));
        assert!(ended(&machine.eoi()).is_empty());
    }
    let refused = interrupts.split_source(Gsi(24), "device").unwrap_err();
    assert!(matches!(refused.reason, Reason::NotSplit), "{refused}");
    assert_eq!(refused.errno(), Some(22));
}

/// The guest suppresses the broadcast of its EOIs: bit 12 of the spurious vector register.
fn row_83_eoi_broadcast() {
    const SVR: u32 = 0x80f;
    const LVR: u32 = 0x803;
    const ENABLED: u64 = 1 << 8;
    const SUPPRESSED: u64 = 1 << 12;
    const OFFERED: u64 = 1 << 24;
    fn choose(vm: &VmFd, broadcast: EoiBroadcast) {
        if !set_eoi_broadcast(vm, broadcast).unwrap() {
            differs("no choice of EOI broadcast: suppression is offered to the guest, and each EOI exits all the same");
        }
    }
    let full = Kvm::new().unwrap().create_vm().unwrap();
    full.create_irq_chip().unwrap();
    assert!(
        !set_eoi_broadcast(&full, EoiBroadcast::Suppressible).unwrap(),
        "not split"
    );
    // What KVM answers to each flag by itself, as bits 2 and 3 of the capability.
    let split = Kvm::new().unwrap().create_vm().unwrap();
    enable_split_irqchip(&split, SPLIT_PINS).unwrap();
    let choices = split.check_extension_raw(KVM_CAP_X2APIC_API.into()) & 0b1100;
    assert_eq!(set_eoi_broadcast(&split, EoiBroadcast::Always).unwrap(), choices != 0);

    let suppressible: fn(&VmFd) = |vm| choose(vm, EoiBroadcast::Suppressible);
    let always: fn(&VmFd) = |vm| choose(vm, EoiBroadcast::Always);
    // Without a choice suppression is offered and ignored.
    for (prepare, offers, exits) in [
        ((|_| {}) as fn(&VmFd), true, 1),
        (suppressible, true, usize::from(choices == 0)),
        (always, choices == 0, 1),
    ] {
        let builder = Machine::builder().irqchip(Irqchip::Split).prepare(prepare);
        let mut machine = builder.build().unwrap();
        let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
        interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
        assert_eq!(machine.rdmsr(LVR) & OFFERED != 0, offers);
        if offers {
            machine.wrmsr(SVR, ENABLED | SUPPRESSED | 0xff);
        }
        interrupts.send_msi(GSI, level(VECTOR)).unwrap();
        assert_eq!(machine.accept(), Some(VECTOR));
        assert_eq!(ended(&machine.eoi()).len(), exits);
    }
}

fn an_irqfd_asserts() {
    let (mut machine, interrupts) = split();
    let source = interrupts.split_source(GSI, "device").unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    for _ in 0..100 {
        source.assert().unwrap();
        assert_eq!(machine.accept(), Some(VECTOR), "an MSI is injected within the write");
        assert_eq!(ended(&machine.eoi()), [VECTOR]);
        assert_eq!(machine.accept(), None);
    }
    // The guest moves the pin to another vector.
    interrupts.set_pin(GSI, Some(level(0x52)), PinMask::Unmasked).unwrap();
    source.assert().unwrap();
    assert_eq!(machine.accept(), Some(0x52));
    assert_eq!(ended(&machine.eoi()), [0x52]);
}

fn a_masked_pin_waits() {
    let (mut machine, interrupts) = split();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Masked).unwrap();
    let source = interrupts.split_source(GSI, "device").unwrap();
    for round in 0..3 {
        source.assert().unwrap();
        source.assert().unwrap();
        assert_eq!(machine.accept(), None, "masked, round {round}");
        interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
        assert_eq!(
            machine.accept(),
            Some(VECTOR),
            "injected before the unmask returns, round {round}"
        );
        assert_eq!(ended(&machine.eoi()), [VECTOR]);
        assert_eq!(machine.accept(), None, "once, round {round}");
        interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Masked).unwrap();
    }
    // What waits can be withdrawn.
    source.assert().unwrap();
    source.force_deassert().unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    assert_eq!(machine.accept(), None);
}

fn a_pin_without_a_route_waits() {
    let (mut machine, interrupts) = split();
    interrupts.set_pin(GSI, None, PinMask::Unmasked).unwrap();
    let source = interrupts.split_source(GSI, "device").unwrap();
    source.assert().unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    interrupts.set_pin(GSI, None, PinMask::Unmasked).unwrap();
    source.assert().unwrap();
    assert_eq!(machine.accept(), None);
    interrupts.set_pin(GSI, Some(level(0x52)), PinMask::Unmasked).unwrap();
    assert_eq!(accept(&mut machine), Some(0x52));
}

fn a_message_for_nobody() {
    let (mut machine, interrupts) = split();
    let message = Msi {
        address: 0xFEE0_9000,
        ..level(VECTOR)
    };
    assert_eq!(interrupts.send_msi(GSI, message).unwrap(), Delivery::Delivered(0));
    assert_eq!(machine.accept(), None);
}

/// The listener of a device that signals the trigger is asked after such an unmask. Nobody is asked for what this process
/// has asserted, nor for the edges of an edge irqfd.
fn an_unmask_that_asks() {
    let (mut machine, interrupts) = split();
    let source = interrupts.split_source(GSI, "device").unwrap();
    let edge = interrupts.edge_irqfd(Gsi(19)).unwrap();
    let device = source.trigger().unwrap().try_clone_to_owned().unwrap();
    let kick = || assert_eq!(rustix::io::write(&device, &1u64.to_ne_bytes()), Ok(8));
    let set = |mask| interrupts.set_pin(GSI, Some(level(VECTOR)), mask).unwrap();
    let served = |machine: &mut Machine| {
        let vector = machine.accept();
        machine.eoi();
        vector
    };
    for round in 0..3 {
        set(PinMask::Masked);
        kick();
        set(PinMask::Asked);
        assert_eq!(served(&mut machine), None, "round {round}");
        kick();
        assert_eq!(served(&mut machine), Some(VECTOR), "round {round}");

        set(PinMask::Masked);
        kick();
        source.assert().unwrap();
        set(PinMask::Asked);
        assert_eq!(served(&mut machine), Some(VECTOR), "asserted, round {round}");

        set(PinMask::Masked);
        kick();
        set(PinMask::Unmasked);
        assert_eq!(served(&mut machine), Some(VECTOR), "nobody is asked, round {round}");

        interrupts.set_pin(Gsi(19), Some(level(0x52)), PinMask::Masked).unwrap();
        edge.signal().unwrap();
        interrupts.set_pin(Gsi(19), Some(level(0x52)), PinMask::Asked).unwrap();
        assert_eq!(served(&mut machine), Some(0x52), "an edge, round {round}");
    }
}

/// The flag is of the open file, which the process of a device shares. KVM takes nothing while the pin is masked.
fn row_149_a_peer_that_fills_a_waiting_trigger() {
    let (mut machine, interrupts) = split();
    let source = interrupts.split_source(GSI, "device").unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Masked).unwrap();
    let trigger = source.trigger().unwrap();
    let flags = rustix::fs::fcntl_getfl(trigger).unwrap();
    rustix::fs::fcntl_setfl(trigger, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    rustix::io::write(trigger, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        source.assert().unwrap();
        done.send(source).unwrap();
    });
    let source = is_done.recv_timeout(Duration::from_secs(20)).unwrap();
    for _ in 0..2 {
        interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        machine.eoi();
        source.assert().unwrap();
    }
}

/// A pulse is not asserted again when its device is asked.
fn a_refused_unmask_keeps_what_was_asserted() {
    let mut machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let vm = machine.vm().clone();
    let (refuse, table_vm) = (Arc::new(AtomicBool::new(true)), vm.clone());
    let refused = Arc::clone(&refuse);
    let set = move |pins: &[kvm_irq_routing_entry]| {
        if refused.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(table_vm.set_gsi_routing(&KvmIrqRouting::from_entries(pins).unwrap())?)
    };
    let interrupts = KvmInterrupts::beside(vm, Gsi(0)..Gsi(SPLIT_PINS), Routes::default(), set).unwrap();
    let source = interrupts.split_source(GSI, "device").unwrap();
    source.assert().unwrap();
    interrupts
        .set_pin(GSI, Some(level(VECTOR)), PinMask::Asked)
        .unwrap_err();
    refuse.store(false, Ordering::Relaxed);
    interrupts.set_pin(GSI, None, PinMask::Masked).unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Asked).unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
}

/// The VMM keeps the table, with the routes of its MSIs, and sets those of the pins among them.
fn beside_an_allocator_of_msis() {
    const MSI: u32 = 30;
    let mut machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let vm = machine.vm().clone();
    let message = |gsi, vector: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = 0xFEE0_0000;
        entry.u.msi.data = vector;
        entry
    };
    let (calls, table_vm) = (Arc::new(AtomicU32::new(0)), vm.clone());
    let called = Arc::clone(&calls);
    let set = move |pins: &[kvm_irq_routing_entry]| {
        called.fetch_add(1, Ordering::Relaxed);
        let mut entries = vec![message(MSI, 0x61)];
        entries.extend_from_slice(pins);
        Ok(table_vm.set_gsi_routing(&KvmIrqRouting::from_entries(&entries).unwrap())?)
    };
    let pins = Gsi(0)..Gsi(SPLIT_PINS);
    // A pin that was routed before.
    set(&[message(GSI.0, 1 << 15 | u32::from(VECTOR))]).unwrap();
    let routes = Routes::from_kvm(&[message(GSI.0, 1 << 15 | u32::from(VECTOR))]).unwrap();
    let interrupts = KvmInterrupts::beside(vm.clone(), pins.clone(), routes, set).unwrap();
    let allocated = EventFd::new(EFD_NONBLOCK).unwrap();
    vm.register_irqfd(&allocated, MSI).unwrap();
    let source = interrupts.split_source(GSI, "device").unwrap();
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1, "the route is the one that was there");
    for vector in [VECTOR, 0x52, 0x53] {
        interrupts.set_pin(GSI, Some(level(vector)), PinMask::Unmasked).unwrap();
        source.assert().unwrap();
        assert_eq!(machine.accept(), Some(vector));
        assert_eq!(ended(&machine.eoi()), [vector]);
        allocated.write(1).unwrap();
        assert_eq!(machine.accept(), Some(0x61), "the MSI has kept its route");
        machine.eoi();
    }
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    let not_owned = |error: &Error| matches!(error.reason, Reason::NotOwned);
    assert!(not_owned(&interrupts.edge_irqfd(Gsi(MSI)).unwrap_err()));
    let mut routing = interrupts.routing();
    routing.set(Gsi(MSI), &[]).unwrap();
    assert!(not_owned(&routing.commit().unwrap_err()));
    let foreign = Routes::from_kvm(&[message(MSI, 0x61)]).unwrap();
    assert!(not_owned(
        &KvmInterrupts::beside(vm, pins, foreign, |_| Ok(())).unwrap_err()
    ));
}

fn refusals_leave_nothing() {
    let (_machine, interrupts) = split();
    let before = fds();
    let source = interrupts.split_source(GSI, "device").unwrap();
    assert_eq!(fds(), before + 1, "the trigger");
    interrupts.set_pin(GSI, Some(level(VECTOR)), PinMask::Unmasked).unwrap();
    assert!(matches!(
        interrupts.edge_irqfd(GSI),
        Err(Error {
            reason: Reason::MixedUse { .. },
            ..
        })
    ));
    let second = interrupts.split_source(GSI, "sharer").unwrap();
    drop((source, second));
    assert_eq!(fds(), before);
    let full = Machine::full();
    let elsewhere = KvmInterrupts::new(full.vm().clone()).unwrap();
    assert!(matches!(
        elsewhere.split_source(GSI, "device"),
        Err(Error {
            reason: Reason::NotSplit,
            ..
        })
    ));
}
