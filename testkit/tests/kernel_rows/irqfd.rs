// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Section A: arguments and life cycle of KVM_IRQFD.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use kvm_bindings::KVM_CAP_IRQFD_RESAMPLE;
use kvm_ioctls::Kvm;
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use testkit::counter::{HoldsEventFd, count};
use testkit::harness::{Suite, differs};
use testkit::ioctl::{self, KVM_IRQFD_FLAG_DEASSIGN as DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE as RESAMPLE};
use testkit::machine::{Irqchip, Machine};
use testkit::need::Need;
use testkit::rig::{LEVEL, MASKED};
use vmm_sys_util::eventfd::EventFd;

use crate::{GSI, SOON, VECTOR, eventfd, flush, wait_until};

pub fn add(suite: Suite) -> Suite {
    let any = &[Need::Kvm];
    let full = &[Need::FullIrqchip];
    let accept = &[Need::AcceptMode];
    suite
        .test(
            "irqfd::row_01_unknown_flags",
            &[Need::FullIrqchip, Need::SplitIrqchip],
            row_01,
        )
        .test("irqfd::row_02_no_irqchip", any, row_02)
        .test("irqfd::row_03_split_refuses_resample", &[Need::SplitIrqchip], row_03)
        .test("irqfd::row_04_split_claims_resample", &[Need::SplitIrqchip], row_04)
        .test("irqfd::row_05_bad_trigger", full, row_05)
        .test("irqfd::row_06_bad_resamplefd_leaves_nothing", full, row_06)
        .test("irqfd::row_07_bound_is_busy", full, row_07)
        .test("irqfd::row_08_bound_in_another_vm_is_busy", accept, row_08)
        .test("irqfd::row_160_handed_over_from_vm_to_vm", accept, row_160)
        .test(
            "irqfd::row_09_deassign_of_another_binding_succeeds_and_does_nothing",
            accept,
            row_09,
        )
        .test("irqfd::row_10_deassign_of_nothing_succeeds", full, row_10)
        .test("irqfd::row_11_deassign_of_bad_fd", full, row_11)
        .test("irqfd::row_12_deassign_ignores_resamplefd", full, row_12)
        .test("irqfd::row_13_any_gsi_is_taken_and_swallows", accept, row_13)
        .test("irqfd::row_16_vm_gone_frees_the_trigger", full, row_16)
        .test("irqfd::row_19_resamplefd_closed_by_its_owner", accept, row_19)
        .test("irqfd::row_20_count_before_assign_is_injected_and_kept", accept, row_20)
        .test("irqfd::row_21_nobody_else_sees_the_trigger", accept, row_21)
        .test("irqfd::row_22_resample_wakes_epoll", accept, row_22)
        .test("irqfd::row_24_any_count_is_one_event", accept, row_24)
        .test("irqfd::row_25_own_resamplefd_as_trigger_never_ends", accept, row_25)
        .test("irqfd::row_26_irqchip_after_a_failed_assign", full, row_26)
}

fn machine(irqchip: Irqchip) -> Machine {
    Machine::builder().irqchip(irqchip).build().unwrap()
}

fn pipe() -> OwnedFd {
    rustix::pipe::pipe().unwrap().0
}

/// The number of an fd that was open and is not any more. High, so that no other thread gets the number meanwhile.
fn closed() -> RawFd {
    fcntl_dupfd_cloexec(pipe(), 900).unwrap().as_raw_fd()
}

/// A machine with the level entry on the pin and a resample irqfd on the GSI: trigger, resamplefd.
fn level_machine() -> (Machine, EventFd, EventFd) {
    let mut machine = Machine::full();
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI).unwrap();
    (machine, trigger, resample)
}

fn row_01() {
    let trigger = eventfd();
    for irqchip in [Irqchip::User, Irqchip::Split, Irqchip::Kernel] {
        let machine = machine(irqchip);
        for unknown in [1 << 2, 1 << 31] {
            for flags in [unknown, unknown | DEASSIGN, unknown | RESAMPLE] {
                let answer = ioctl::irqfd(machine.vm(), trigger.as_raw_fd(), GSI, flags, trigger.as_raw_fd());
                assert_eq!(answer, Err(Errno::INVAL), "{irqchip:?}, flags {flags:#x}");
            }
        }
    }
}

fn row_02() {
    let machine = machine(Irqchip::User);
    let (trigger, resample) = (eventfd(), eventfd());
    assert_eq!(ioctl::assign_edge(machine.vm(), &trigger, GSI), Err(Errno::INVAL));
    assert_eq!(
        ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI),
        Err(Errno::INVAL)
    );
    // Refused before the fd is looked at.
    assert_eq!(ioctl::irqfd(machine.vm(), -1, GSI, 0, 0), Err(Errno::INVAL));
}

fn row_03() {
    let machine = machine(Irqchip::Split);
    let (trigger, resample) = (eventfd(), eventfd());
    assert_eq!(
        ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI),
        Err(Errno::INVAL)
    );
    assert_eq!(ioctl::assign_edge(machine.vm(), &trigger, GSI), Ok(0));
}

fn row_04() {
    let machine = machine(Irqchip::Split);
    assert_eq!(machine.vm().check_extension_raw(KVM_CAP_IRQFD_RESAMPLE.into()), 1);
}

fn row_05() {
    let machine = Machine::full();
    let assign = |fd| ioctl::irqfd(machine.vm(), fd, GSI, 0, 0);
    assert_eq!(assign(-1), Err(Errno::BADF));
    assert_eq!(assign(closed()), Err(Errno::BADF));
    assert_eq!(assign(pipe().as_raw_fd()), Err(Errno::INVAL));
}

fn row_06() {
    let machine = Machine::full();
    let trigger = eventfd();
    let assign = |resamplefd| ioctl::irqfd(machine.vm(), trigger.as_raw_fd(), GSI, RESAMPLE, resamplefd);
    assert_eq!(assign(-1), Err(Errno::BADF));
    assert_eq!(assign(pipe().as_raw_fd()), Err(Errno::INVAL));
    assert_eq!(ioctl::assign_edge(machine.vm(), &trigger, GSI), Ok(0));
}

fn row_07() {
    let machine = Machine::full();
    let vm = machine.vm();
    let (trigger, resample) = (eventfd(), eventfd());
    assert_eq!(ioctl::assign_edge(vm, &trigger, GSI), Ok(0));
    assert_eq!(ioctl::assign_edge(vm, &trigger, GSI), Err(Errno::BUSY));
    assert_eq!(ioctl::assign_edge(vm, &trigger, GSI + 1), Err(Errno::BUSY));
    assert_eq!(
        ioctl::assign_edge(vm, &trigger.try_clone().unwrap(), GSI),
        Err(Errno::BUSY)
    );
    assert_eq!(ioctl::assign_resample(vm, &trigger, &resample, GSI), Err(Errno::BUSY));
    ioctl::deassign(vm, &trigger, GSI).unwrap();
    assert_eq!(ioctl::assign_resample(vm, &trigger, &resample, GSI), Ok(0));
}

/// Since 6.17 (2cdd64cbf990) KVM waits for an eventfd as its only reader. Before, the second VM is told that all is
/// well and hears nothing.
fn row_08() {
    let (mut first, mut second) = (Machine::full(), Machine::full());
    for machine in [&mut first, &mut second] {
        machine.set_rte(GSI, VECTOR.into());
    }
    let trigger = eventfd();
    assert_eq!(ioctl::assign_edge(first.vm(), &trigger, GSI), Ok(0));
    match ioctl::assign_edge(second.vm(), &trigger, GSI) {
        Err(Errno::BUSY) => {}
        Ok(0) if Need::KernelAtLeast(6, 17).probe().is_err() => {
            for _ in 0..3 {
                trigger.write(1).unwrap();
                assert_eq!(first.accept_within(SOON), Some(VECTOR));
                first.eoi();
                flush(&second, &trigger, None, GSI);
                assert_eq!(second.accept(), None);
            }
            ioctl::deassign(second.vm(), &trigger, GSI).unwrap();
            differs("accepted, and the second VM hears nothing");
        }
        other => panic!("{other:?}"),
    }
    ioctl::deassign(first.vm(), &trigger, GSI).unwrap();
    assert_eq!(ioctl::assign_edge(second.vm(), &trigger, GSI), Ok(0));
}

/// T goes from one VM to another: deassign, then assign. What is signalled between the two waits in T's count, and the
/// assign injects it. The old VM hears nothing any more.
fn row_160() {
    let (mut old, mut new) = (Machine::full(), Machine::full());
    for machine in [&mut old, &mut new] {
        machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    }
    let (trigger, resample) = (eventfd(), eventfd());
    for round in 0..10 {
        ioctl::assign_resample(old.vm(), &trigger, &resample, GSI).unwrap();
        trigger.write(1).unwrap();
        assert_eq!(old.accept_within(SOON), Some(VECTOR), "round {round}");
        ioctl::deassign(old.vm(), &trigger, GSI).unwrap();
        assert!(!old.ioapic_irr(GSI), "round {round}: the line stays in the old VM");
        old.eoi();
        assert_eq!((old.accept(), count(&resample)), (None, 0), "round {round}");

        trigger.write(1).unwrap();
        assert_eq!(new.accept(), None, "round {round}");
        ioctl::assign_resample(new.vm(), &trigger, &resample, GSI).unwrap();
        assert_eq!(
            new.accept_within(SOON),
            Some(VECTOR),
            "round {round}: signalled in the gap"
        );
        assert_eq!(count(&trigger), 1, "round {round}: injected and still counted");
        new.eoi();
        assert_eq!(count(&resample), 1, "round {round}");
        trigger.write(1).unwrap();
        assert_eq!(new.accept_within(SOON), Some(VECTOR), "round {round}");
        new.eoi();
        assert_eq!((new.accept(), count(&resample)), (None, 1), "round {round}");
        assert_eq!(old.accept(), None, "round {round}: the old VM");
        (old, new) = (new, old);
        ioctl::deassign(old.vm(), &trigger, GSI).unwrap();
    }
}

fn row_09() {
    let (mut machine, trigger, _resample) = level_machine();
    let other = Machine::full();
    assert_eq!(ioctl::deassign(machine.vm(), &trigger, GSI + 1), Ok(0));
    assert_eq!(ioctl::deassign(other.vm(), &trigger, GSI), Ok(0));
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
}

fn row_10() {
    let machine = Machine::full();
    let trigger = eventfd();
    assert_eq!(ioctl::deassign(machine.vm(), &trigger, GSI), Ok(0));
    assert_eq!(ioctl::deassign(machine.vm(), &trigger, GSI), Ok(0));
}

fn row_11() {
    let machine = Machine::full();
    let deassign = |fd| ioctl::irqfd(machine.vm(), fd, GSI, DEASSIGN, 0);
    assert_eq!(deassign(-1), Err(Errno::BADF));
    assert_eq!(deassign(pipe().as_raw_fd()), Err(Errno::INVAL));
}

fn row_12() {
    let (machine, trigger, resample) = level_machine();
    assert_eq!(
        ioctl::irqfd(machine.vm(), trigger.as_raw_fd(), GSI, DEASSIGN | RESAMPLE, -1),
        Ok(0)
    );
    // Really unbound: it can be bound again.
    assert_eq!(ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI), Ok(0));
}

fn row_13() {
    let mut machine = Machine::full();
    for pin in 0..24 {
        machine.set_rte(pin, u64::from(VECTOR));
    }
    for gsi in [24, 5000, u32::MAX] {
        for resample in [None, Some(eventfd())] {
            let trigger = eventfd();
            let answer = match &resample {
                None => ioctl::assign_edge(machine.vm(), &trigger, gsi),
                Some(resample) => ioctl::assign_resample(machine.vm(), &trigger, resample, gsi),
            };
            assert_eq!(answer, Ok(0), "GSI {gsi}");
            trigger.write(1).unwrap();
            assert_eq!(count(&trigger), 0, "GSI {gsi}: KVM has taken the event");
            // Deassign waits until whatever the event causes has happened.
            assert_eq!(ioctl::deassign(machine.vm(), &trigger, gsi), Ok(0));
            assert_eq!(machine.accept(), None, "GSI {gsi}");
            assert_eq!(resample.as_ref().map_or(0, count), 0, "GSI {gsi}");
        }
    }
}

fn row_16() {
    let (first, second) = (Machine::full(), Machine::full());
    let trigger = eventfd();
    assert_eq!(ioctl::assign_edge(first.vm(), &trigger, GSI), Ok(0));
    drop(first);
    assert_eq!(ioctl::assign_edge(second.vm(), &trigger, GSI), Ok(0));
}

fn row_19() {
    let (mut machine, trigger, resample) = level_machine();
    drop(resample);
    for _ in 0..2 {
        trigger.write(1).unwrap();
        assert_eq!(machine.accept_within(SOON), Some(VECTOR));
        assert!(machine.ioapic_irr(GSI));
        machine.eoi();
        assert!(!machine.ioapic_irr(GSI), "the line is lowered all the same");
        assert_eq!(machine.accept(), None);
    }
}

fn row_20() {
    let mut machine = Machine::full();
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    let (trigger, resample) = (eventfd(), eventfd());
    trigger.write(1).unwrap();
    ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    assert_eq!(count(&trigger), 1, "injected and still counted");
    machine.eoi();
    assert_eq!(count(&resample), 1);

    // Drained first, nothing is injected.
    let (trigger, resample) = (eventfd(), eventfd());
    trigger.write(1).unwrap();
    assert_eq!(count(&trigger), 1);
    ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI).unwrap();
    flush(&machine, &trigger, Some(&resample), GSI);
    assert_eq!(machine.accept(), None);
}

fn row_21() {
    let (mut machine, trigger, _resample) = level_machine();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(
        &epoll,
        trigger.eventfd(),
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    )
    .unwrap();
    trigger.write(1).unwrap();
    assert_eq!(
        trigger.read().unwrap_err().raw_os_error(),
        Some(Errno::AGAIN.raw_os_error())
    );
    assert_eq!(ready(&epoll), 0);
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    assert_eq!(ready(&epoll), 0);
}

fn row_22() {
    let (mut machine, trigger, resample) = level_machine();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(
        &epoll,
        resample.eventfd(),
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    )
    .unwrap();
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    assert_eq!(ready(&epoll), 0);
    machine.eoi();
    assert_eq!(ready(&epoll), 1);
    assert_eq!(count(&resample), 1);
}

/// Events an epoll instance has ready now.
fn ready(epoll: &OwnedFd) -> usize {
    let mut events = [epoll::Event {
        flags: epoll::EventFlags::empty(),
        data: epoll::EventData::new_u64(0),
    }; 4];
    epoll::wait(epoll, &mut events, Some(&Timespec::default())).unwrap()
}

fn row_24() {
    let (mut machine, trigger, resample) = level_machine();
    trigger.write(5).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    flush(&machine, &trigger, Some(&resample), GSI);
    machine.eoi();
    assert_eq!(count(&resample), 1);
    assert_eq!(machine.accept(), None);
    assert!(!machine.ioapic_irr(GSI));
}

fn row_25() {
    let mut machine = Machine::full();
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    let trigger = eventfd();
    assert_eq!(ioctl::assign_resample(machine.vm(), &trigger, &trigger, GSI), Ok(0));
    trigger.write(1).unwrap();
    for round in 0..100 {
        assert_eq!(machine.accept_within(SOON), Some(VECTOR), "round {round}");
        machine.eoi();
    }
    // One more is on its way or there; after the deassign there are no others.
    wait_until("the last re-assertion", || machine.ioapic_irr(GSI));
    ioctl::deassign(machine.vm(), &trigger, GSI).unwrap();
    assert_eq!(machine.accept(), Some(VECTOR));
    machine.eoi();
    assert_eq!(machine.accept(), None);
    machine.set_rte(GSI, MASKED);
}

fn row_26() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let (trigger, resample) = (eventfd(), eventfd());
    assert_eq!(ioctl::assign_resample(&vm, &trigger, &resample, GSI), Err(Errno::INVAL));
    vm.create_irq_chip().unwrap();
    assert_eq!(ioctl::assign_resample(&vm, &trigger, &resample, GSI), Ok(0));
}
