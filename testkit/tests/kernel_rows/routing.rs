// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Section C: what the routing table does to lines, and what it refuses.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, kvm_msi};
use rustix::io::Errno;
use testkit::counter::count;
use testkit::harness::{Suite, differs};
use testkit::ioctl::{self, route_to_chip, route_to_msi};
use testkit::machine::{Exit, Irqchip, Machine};
use testkit::need::Need;
use testkit::rig::LEVEL;
use vmm_sys_util::eventfd::EventFd;

use crate::{GSI, SOON, VECTOR, eventfd, flush};

const OTHER_PIN: u32 = 19;
const ENTRY: u64 = LEVEL | VECTOR as u64;

pub fn add(suite: Suite) -> Suite {
    suite
        .test(
            "routing::row_67_flaw_rerouted_while_asserted_storms",
            &[Need::AcceptMode],
            row_67,
        )
        .test(
            "routing::row_68_rerouted_line_is_freed_through_its_old_route",
            &[Need::AcceptMode],
            row_68,
        )
        .test("routing::row_69_last_gsi_of_a_pin_is_told", &[Need::AcceptMode], row_69)
        .test("routing::row_70_resample_on_an_msi_route", &[Need::AcceptMode], row_70)
        .test(
            "routing::row_71_refused_tables",
            &[Need::FullIrqchip, Need::SplitIrqchip],
            row_71,
        )
        .test(
            "routing::row_135_and_row_162_rerouted_in_service_on_a_split_irqchip",
            // Accept mode would hide the difference: KVM_SET_LAPIC makes KVM look at the routes again.
            &[Need::SplitIrqchip, Need::GenuineLapicEoi],
            row_162,
        )
}

fn route(machine: &Machine, pin: u32) {
    assert_eq!(
        ioctl::set_gsi_routing(machine.vm(), &[route_to_chip(GSI, KVM_IRQCHIP_IOAPIC, pin)]),
        Ok(0)
    );
}

/// A machine whose GSI was moved to another pin while it was in service on the first: trigger and resamplefd.
fn rerouted_in_service() -> (Machine, EventFd, EventFd) {
    let mut machine = Machine::full();
    route(&machine, GSI);
    machine.set_rte(GSI, ENTRY);
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI).unwrap();
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    route(&machine, OTHER_PIN);
    (machine, trigger, resample)
}

/// The old pin keeps the level for ever: each EOI brings it again, the source is never told, and deassign, which acts
/// on the new route, does not lower it.
fn row_67() {
    let (mut machine, trigger, resample) = rerouted_in_service();
    for round in 0..100 {
        machine.eoi();
        assert_eq!(
            machine.accept(),
            Some(VECTOR),
            "round {round}: this kernel lowers the pin of a changed route"
        );
        assert_eq!(count(&resample), 0, "round {round}");
    }
    ioctl::deassign(machine.vm(), &trigger, GSI).unwrap();
    assert!(machine.ioapic_irr(GSI));
    machine.eoi();
    assert_eq!(machine.accept(), Some(VECTOR));
}

/// With the old route back, any resample irqfd of the GSI that goes as the last one lowers the line.
fn row_68() {
    let (mut machine, trigger, _resample) = rerouted_in_service();
    ioctl::deassign(machine.vm(), &trigger, GSI).unwrap();
    assert!(machine.ioapic_irr(GSI));
    route(&machine, GSI);
    assert!(machine.ioapic_irr(GSI), "the route alone does not help");
    let dummy = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &dummy.0, &dummy.1, GSI).unwrap();
    ioctl::deassign(machine.vm(), &dummy.0, GSI).unwrap();
    assert!(!machine.ioapic_irr(GSI));
    machine.eoi();
    assert_eq!(machine.accept(), None);
}

/// Of two GSIs routed to one pin, the last in the table is told of its EOIs. A source on the other is not, and its line
/// stays high.
fn row_69() {
    const FIRST: u32 = 30;
    const LAST: u32 = 31;
    let mut machine = Machine::full();
    let table = [FIRST, LAST].map(|gsi| route_to_chip(gsi, KVM_IRQCHIP_IOAPIC, GSI));
    assert_eq!(ioctl::set_gsi_routing(machine.vm(), &table), Ok(0));
    machine.set_rte(GSI, ENTRY);
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, LAST).unwrap();
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    machine.eoi();
    assert_eq!(count(&resample), 1);
    assert_eq!(machine.accept(), None);

    ioctl::deassign(machine.vm(), &trigger, LAST).unwrap();
    ioctl::assign_resample(machine.vm(), &trigger, &resample, FIRST).unwrap();
    trigger.write(1).unwrap();
    for round in 0..10 {
        assert_eq!(machine.accept_within(SOON), Some(VECTOR), "round {round}");
        machine.eoi();
        assert_eq!(count(&resample), 0, "round {round}");
    }
    ioctl::deassign(machine.vm(), &trigger, FIRST).unwrap();
    assert!(!machine.ioapic_irr(GSI), "deassign lowers it");
}

/// A resample irqfd on an MSI route sends its MSI at each trigger, edge, and is never told of an EOI.
fn row_70() {
    let mut machine = Machine::full();
    assert_eq!(
        ioctl::set_gsi_routing(machine.vm(), &[route_to_msi(GSI, 0xfee0_0000, VECTOR.into())]),
        Ok(0)
    );
    let (trigger, resample) = (eventfd(), eventfd());
    assert_eq!(ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI), Ok(0));
    for round in 0..3 {
        trigger.write(1).unwrap();
        flush(&machine, &trigger, Some(&resample), GSI);
        assert!(!machine.lapic().tmr(VECTOR), "round {round}");
        assert_eq!(machine.accept(), Some(VECTOR), "round {round}");
        machine.eoi();
        assert_eq!(machine.accept(), None, "round {round}");
        assert_eq!(count(&resample), 0, "round {round}");
    }
}

fn row_71() {
    let full = Machine::full();
    let set = |table: &[_]| ioctl::set_gsi_routing(full.vm(), table);
    let ioapic = |gsi, pin| route_to_chip(gsi, KVM_IRQCHIP_IOAPIC, pin);
    assert_eq!(set(&[ioapic(4095, 4)]), Ok(0));
    assert_eq!(set(&[ioapic(4096, 4)]), Err(Errno::INVAL));
    assert_eq!(set(&[ioapic(4, 4), route_to_chip(4, KVM_IRQCHIP_PIC_MASTER, 4)]), Ok(0));
    assert_eq!(set(&[ioapic(4, 4), ioapic(4, 5)]), Err(Errno::INVAL));
    assert_eq!(
        set(&[ioapic(4, 4), route_to_msi(4, 0xfee0_0000, 0x41)]),
        Err(Errno::INVAL)
    );
    assert_eq!(set(&[ioapic(4, 23)]), Ok(0));
    assert_eq!(set(&[ioapic(4, 24)]), Err(Errno::INVAL));
    assert_eq!(set(&[]), Ok(0));
    let split = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    assert_eq!(ioctl::set_gsi_routing(split.vm(), &[ioapic(4, 4)]), Err(Errno::INVAL));
    assert_eq!(
        ioctl::set_gsi_routing(split.vm(), &[route_to_msi(4, 0xfee0_0000, 0x41)]),
        Ok(0)
    );
}

/// The message of the split irqchip's pin: level, to this CPU.
fn split_route(machine: &Machine, cpu: u32, vector: u8) {
    let data = 1 << 15 | u32::from(vector);
    let table = [route_to_msi(GSI, 0xfee0_0000 | cpu << 12, data)];
    assert_eq!(ioctl::set_gsi_routing(machine.vm(), &table), Ok(0));
}

fn send(machine: &Machine, data: u32) {
    let msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data,
        ..Default::default()
    };
    assert_eq!(machine.vm().signal_msi(msi).unwrap(), 1);
}

/// Whether the EOI is an exit with the vector.
fn eoi_exits(machine: &mut Machine) -> bool {
    machine.eoi().contains(&Exit::IoapicEoi(VECTOR))
}

/// On a split irqchip the route of a level interrupt in service gets another destination: since 6.2 (fceb3a36c29a) its
/// EOI is an exit all the same; before, it is none. KVM keeps that vector's EOIs as exits until the next change of a
/// route; since 6.16 (87e4951e250b) it looks at the routes again after the EOI. Another vector in the route, and the EOI
/// of the old vector is no exit, on every kernel: who changes the vector has to end the old interrupt by itself.
fn row_162() {
    let level = 1 << 15 | u32::from(VECTOR);
    let machine = || Machine::builder().irqchip(Irqchip::Split).build().unwrap();

    let mut moved = machine();
    split_route(&moved, 0, VECTOR);
    send(&moved, level);
    assert_eq!(moved.take_interrupt_within(SOON), Some(VECTOR));
    split_route(&moved, 1, VECTOR);
    if !eoi_exits(&mut moved) {
        assert!(
            Need::KernelAtLeast(6, 2).probe().is_err(),
            "the route moved, and the CPU owes the EOI of the old one"
        );
        differs("the EOI of the moved interrupt is no exit");
    }
    send(&moved, VECTOR.into());
    assert_eq!(moved.take_interrupt_within(SOON), Some(VECTOR));
    let stale = eoi_exits(&mut moved);
    if stale {
        assert!(
            Need::KernelAtLeast(6, 16).probe().is_err(),
            "an edge's EOI exits: the routes are not scanned after the EOI of the old one"
        );
        differs("the CPU exits at each later EOI of the vector too, also of an edge, until a route changes");
    }

    let mut renamed = machine();
    split_route(&renamed, 0, VECTOR);
    send(&renamed, level);
    assert_eq!(renamed.take_interrupt_within(SOON), Some(VECTOR));
    split_route(&renamed, 0, VECTOR + 1);
    assert!(
        !eoi_exits(&mut renamed),
        "this kernel tells of the EOI of a vector that no route has"
    );
}
