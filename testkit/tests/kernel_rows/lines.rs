// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sections B and C: levels on in-kernel lines, and the kernel's own flaws where a GSI has both a resample irqfd and
//! KVM_IRQ_LINE. The rows of flaws assert the flaw, so that a kernel that is cured of it is noticed.

use kvm_bindings::kvm_msi;
use rustix::io::Errno;
use testkit::counter::count;
use testkit::harness::{Suite, differs};
use testkit::ioctl;
use testkit::machine::{Irqchip, Machine, PicChip};
use testkit::need::Need;
use testkit::rig::{LEVEL, MASKED};
use vmm_sys_util::eventfd::EventFd;

use crate::{GSI, VECTOR, eventfd, flush, wait_until};

const ENTRY: u64 = LEVEL | VECTOR as u64;

pub fn add(suite: Suite) -> Suite {
    let unmask_resample = &[Need::AcceptMode, Need::KernelAtLeast(6, 3)];
    suite
        .test(
            "lines::row_32_and_row_37_unmask_and_high_half",
            &[Need::AcceptMode],
            row_32_and_37,
        )
        .test(
            "lines::row_49_restored_irr_is_not_the_line",
            &[Need::FullIrqchip],
            row_49,
        )
        .test(
            "lines::row_161_restored_then_armed_then_unmasked",
            &[Need::AcceptMode],
            row_161,
        )
        .test(
            "lines::row_51_plain_line_without_irqchip_or_route",
            &[Need::FullIrqchip],
            row_51,
        )
        .test(
            "lines::row_56_gsi_live_on_both_controllers",
            &[Need::GenuinePicEoi, Need::AcceptMode],
            row_56,
        )
        .test(
            "lines::row_62_flaw_foreign_eoi_drops_the_assertion",
            &[Need::AcceptMode],
            row_62,
        )
        .test("lines::row_63_flaw_plain_level_lost_at_unmask", unmask_resample, row_63)
        .test(
            "lines::row_64_flaw_phantom_after_unmask_resample",
            unmask_resample,
            row_64,
        )
        .test(
            "lines::row_65_flaw_pulse_drops_the_plain_level",
            &[Need::FullIrqchip],
            row_65,
        )
}

fn masked_machine_with_resampler() -> (Machine, EventFd, EventFd) {
    let mut machine = Machine::full();
    machine.set_rte(GSI, ENTRY | MASKED);
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, GSI).unwrap();
    (machine, trigger, resample)
}

/// Since 6.3 (fef8f2b90edb) a write of the entry asks the source of an unmasked pin for its level. Before, it injects
/// what is pending.
fn row_32_and_37() {
    let (mut machine, trigger, resample) = masked_machine_with_resampler();
    for write in ["low", "high"] {
        // The high half alone unmasks nothing: its pin gets its level unmasked, and no LAPIC takes the interrupt.
        machine.set_lapic_enabled(write == "low");
        machine.write_rte_low(GSI, if write == "low" { ENTRY | MASKED } else { ENTRY } as u32);
        trigger.write(1).unwrap();
        wait_until("irr", || machine.ioapic_irr(GSI));
        machine.set_lapic_enabled(true);
        assert_eq!((machine.accept(), count(&resample)), (None, 0), "{write}");
        match write {
            "low" => machine.write_rte_low(GSI, ENTRY as u32),
            _ => machine.write_rte_high(GSI, 0),
        }
        let asks = match (machine.accept(), count(&resample)) {
            (None, 1) => true,
            (Some(VECTOR), 0) => false,
            other => panic!("{write}: {other:?}"),
        };
        if !asks {
            assert!(
                Need::KernelAtLeast(6, 3).probe().is_err(),
                "{write}: injected without asking"
            );
            differs("what is pending is injected, and the source is not asked for its level");
            machine.eoi();
            assert_eq!(count(&resample), 1, "{write}: the EOI tells the source");
        }
        assert_eq!(machine.accept(), None, "{write}");
        assert!(!machine.ioapic_irr(GSI), "{write}");
    }
}

/// KVM_SET_IRQCHIP replaces irr and leaves the sources' levels as they are: the restored irr says low, a new trigger,
/// which raises nothing that is not high already, makes it high.
fn row_49() {
    let (mut machine, trigger, resample) = masked_machine_with_resampler();
    trigger.write(1).unwrap();
    wait_until("irr", || machine.ioapic_irr(GSI));
    let mut state = machine.ioapic();
    state.irr = 0;
    machine.restore_ioapic(state);
    assert!(!machine.ioapic_irr(GSI));
    trigger.write(1).unwrap();
    flush(&machine, &trigger, Some(&resample), GSI);
    assert!(machine.ioapic_irr(GSI));
}

/// A device that masks itself when it signals, as a VFIO INTx does: it signals again only when it is unmasked and its
/// line is still high.
struct Device {
    trigger: EventFd,
    resample: EventFd,
    masked: bool,
}

impl Device {
    fn new() -> Self {
        Self {
            trigger: eventfd(),
            resample: eventfd(),
            masked: true,
        }
    }

    /// Arms the device in the restored VM.
    fn arm(&self, machine: &Machine) {
        ioctl::assign_resample(machine.vm(), &self.trigger, &self.resample, GSI).unwrap();
    }

    /// The unmask of a device whose line is high.
    fn unmask(&mut self) {
        self.masked = true;
        self.trigger.write(1).unwrap();
    }

    /// Whether anything is left that will unmask the device: a notification, or an interrupt whose EOI brings one.
    fn is_stuck(&self, machine: &mut Machine) -> bool {
        flush(machine, &self.trigger, Some(&self.resample), GSI);
        let delivered = machine.accept();
        if delivered.is_some() {
            machine.eoi();
        }
        self.masked && count(&self.resample) == 0
    }
}

/// A VM was saved with the device masked and its line high. The restored VM hears of the level when the chips come
/// first, then the irqfd, then the unmask. A chip that is restored after the signal forgets the interrupt, and nothing
/// unmasks the device. A signal before the irqfd waits in the trigger's count: KVM injects it at the assign, but a VMM
/// that drains the trigger first has lost it.
fn row_161() {
    let mut saved = Machine::full();
    saved.set_rte(GSI, ENTRY);
    let (ioapic, lapic) = (saved.ioapic(), saved.vcpu().get_lapic().unwrap());
    let restore = |machine: &mut Machine| {
        machine.restore_ioapic(ioapic);
        machine.vcpu().set_lapic(&lapic).unwrap();
    };
    let lost = |order: &dyn Fn(&mut Machine, &mut Device)| {
        let (mut machine, mut device) = (Machine::full(), Device::new());
        order(&mut machine, &mut device);
        device.is_stuck(&mut machine)
    };
    let right = lost(&|machine, device| {
        restore(machine);
        device.arm(machine);
        device.unmask();
    });
    assert!(!right, "chips, irqfd, unmask");
    let late_chips = lost(&|machine, device| {
        device.arm(machine);
        device.unmask();
        flush(machine, &device.trigger, Some(&device.resample), GSI);
        restore(machine);
    });
    assert!(late_chips, "irqfd, unmask, chips: this kernel keeps the level");
    let unarmed = lost(&|machine, device| {
        restore(machine);
        device.unmask();
        device.arm(machine);
    });
    assert!(!unarmed, "chips, unmask, irqfd: the count is injected at the assign");
    let drained = lost(&|machine, device| {
        restore(machine);
        device.unmask();
        assert_eq!(count(&device.trigger), 1);
        device.arm(machine);
    });
    assert!(drained, "chips, unmask, drain, irqfd");
}

fn row_51() {
    let none = Machine::builder().irqchip(Irqchip::User).build().unwrap();
    assert_eq!(ioctl::irq_line(none.vm(), GSI, 1), Err(Errno::NXIO));
    assert_eq!(ioctl::irq_line_status(none.vm(), GSI, 1), Err(Errno::NXIO));
    let full = Machine::full();
    for unmapped in [24, 5000] {
        assert_eq!(ioctl::irq_line(full.vm(), unmapped, 1), Ok(0));
        assert_eq!(ioctl::irq_line_status(full.vm(), unmapped, 1), Ok(-1));
    }
}

/// The first EOI on either controller lowers the GSI on both and tells the source; the IOAPIC's remote IRR stays until
/// the LAPIC's EOI.
fn row_56() {
    const IRQ: u32 = 5;
    let mut machine = Machine::full();
    machine.init_pics(0x20, false);
    machine.set_elcr(PicChip::Master, 1 << IRQ);
    machine.set_pic_mask(PicChip::Master, !(1 << IRQ));
    machine.set_rte(IRQ, ENTRY);
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, IRQ).unwrap();
    trigger.write(1).unwrap();
    flush(&machine, &trigger, Some(&resample), IRQ);

    // The CPU takes the 8259's before the LAPIC's. Accept mode comes second: a host that ends interrupts as it injects
    // them would end with the one what the other has put into service.
    assert_eq!(machine.take_interrupt(), Some(0x20 + IRQ as u8));
    assert_eq!(machine.accept(), Some(VECTOR));
    assert_eq!(machine.pic(PicChip::Master).isr, 1 << IRQ);
    assert!(machine.ioapic_irr(IRQ) && machine.remote_irr(IRQ));
    assert_eq!(count(&resample), 0);

    machine.pic_eoi(PicChip::Master);
    assert_eq!(count(&resample), 1);
    assert_eq!(machine.pic(PicChip::Master).irr & (1 << IRQ), 0);
    assert!(!machine.ioapic_irr(IRQ));
    assert!(machine.remote_irr(IRQ));
    machine.eoi();
    assert!(!machine.remote_irr(IRQ));
}

/// An MSI's EOI counts as one of every pin with its vector: the source is told, and its assertion is gone though nobody
/// has seen it.
fn row_62() {
    let (mut machine, trigger, resample) = masked_machine_with_resampler();
    trigger.write(1).unwrap();
    wait_until("irr", || machine.ioapic_irr(GSI));
    let msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: VECTOR.into(),
        ..Default::default()
    };
    assert_eq!(machine.vm().signal_msi(msi).unwrap(), 1);
    assert_eq!(machine.accept(), Some(VECTOR));
    assert_eq!(count(&resample), 0);
    machine.eoi();
    assert_eq!(count(&resample), 1);
    assert!(
        !machine.ioapic_irr(GSI),
        "this kernel keeps the assertion of a pin whose vector an MSI shares"
    );
}

/// KVM_IRQ_LINE holds the line high behind the mask. At unmask only the resampler hears of it; the level is high and
/// nobody delivers it until it is set once more.
fn row_63() {
    let (mut machine, _trigger, resample) = masked_machine_with_resampler();
    assert_eq!(ioctl::irq_line_status(machine.vm(), GSI, 1), Ok(-1));
    assert!(machine.ioapic_irr(GSI));
    machine.write_rte_low(GSI, ENTRY as u32);
    assert_eq!(count(&resample), 1);
    assert_eq!(
        machine.accept(),
        None,
        "this kernel delivers a KVM_IRQ_LINE level at unmask beside a resampler"
    );
    assert!(!machine.ioapic_irr(GSI));
    // Later writes of the entry do not find it either.
    machine.write_rte_low(GSI, ENTRY as u32);
    assert_eq!(machine.accept(), None);
    assert_eq!(count(&resample), 0);
    assert_eq!(ioctl::irq_line_status(machine.vm(), GSI, 1), Ok(1));
    assert_eq!(machine.accept(), Some(VECTOR));
}

/// At unmask irr is cleared and the resampler's source is not. When its device stays quiet, another device's
/// KVM_IRQ_LINE(0) finds that stale source and raises an interrupt.
fn row_64() {
    let (mut machine, trigger, resample) = masked_machine_with_resampler();
    trigger.write(1).unwrap();
    wait_until("irr", || machine.ioapic_irr(GSI));
    machine.write_rte_low(GSI, ENTRY as u32);
    assert_eq!(count(&resample), 1);
    assert_eq!(machine.accept(), None);
    ioctl::irq_line(machine.vm(), GSI, 0).unwrap();
    assert_eq!(
        machine.accept(),
        Some(VECTOR),
        "this kernel raises no phantom after an unmask-resample"
    );
}

/// Edge irqfds and KVM_IRQ_LINE are one source to KVM: the pulse's falling edge takes the level with it.
fn row_65() {
    let mut machine = Machine::full();
    machine.set_rte(GSI, ENTRY | MASKED);
    ioctl::irq_line(machine.vm(), GSI, 1).unwrap();
    assert!(machine.ioapic_irr(GSI));
    let edge = eventfd();
    ioctl::assign_edge(machine.vm(), &edge, GSI).unwrap();
    assert!(machine.ioapic_irr(GSI));
    edge.write(1).unwrap();
    flush(&machine, &edge, None, GSI);
    assert!(
        !machine.ioapic_irr(GSI),
        "this kernel keeps a KVM_IRQ_LINE level through an edge irqfd's pulse"
    );
}
