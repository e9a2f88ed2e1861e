// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine does to real KVM what its methods say.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use iced_x86::code_asm::*;
use kvm_bindings::KVM_IRQCHIP_IOAPIC;
use rustix::io::Errno;
use testkit::counter::{count, wait_count};
use testkit::harness::Suite;
use testkit::ioctl;
use testkit::machine::{End, Exit, Irqchip, Machine, PicChip};
use testkit::need::Need;
use testkit::patience::Patience;
use testkit::program::{DATA, EXIT_PORT, PROGRAM, assemble};
use testkit::rig::{LEVEL, MASKED};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn main() -> ExitCode {
    Suite::new("machine")
        .test("run_gives_exits_and_answers", &[Need::Kvm], run_gives_exits_and_answers)
        .test(
            "registers_by_guest_instructions",
            &[Need::FullIrqchip],
            registers_by_guest_instructions,
        )
        .test(
            "accept_mode_orders_irr_remote_irr_and_resample",
            &[Need::AcceptMode],
            accept_mode,
        )
        .test("pic_interrupt_stays_until_ocw2", &[Need::GenuinePicEoi], pic_interrupt)
        .test(
            "handler_replaces_catcher",
            &[Need::FullIrqchip],
            handler_replaces_catcher,
        )
        .test(
            "split_exits_with_the_ended_vector",
            &[Need::SplitIrqchip],
            split_eoi_exit,
        )
        .test("bare_ioctls_give_the_kernels_errno", &[Need::FullIrqchip], bare_ioctls)
        .run()
}

fn run_gives_exits_and_answers() {
    for irqchip in [Irqchip::User, Irqchip::Split, Irqchip::Kernel] {
        let mut machine = Machine::builder().irqchip(irqchip).build().unwrap();
        let code = assemble(PROGRAM, |a| {
            a.mov(ebx, 0xd000_0000u32)?;
            a.mov(dword_ptr(ebx).es(), 0x1122_3344)?;
            a.mov(ax, word_ptr(ebx + 4).es())?;
            a.mov(dx, 0x300)?;
            a.out(dx, ax)?;
            a.in_(al, dx)?;
            a.mov(byte_ptr(DATA as u32), al)?;
            a.out(i32::from(EXIT_PORT), al)
        });
        machine.load(PROGRAM, &code);
        let run = machine.run_with(PROGRAM, |exit| match exit {
            Exit::MmioRead { .. } => 0xbeef,
            _ => 0x5a,
        });
        assert_eq!(
            run.exits,
            [
                Exit::MmioWrite {
                    addr: 0xd000_0000,
                    data: vec![0x44, 0x33, 0x22, 0x11]
                },
                Exit::MmioRead {
                    addr: 0xd000_0004,
                    len: 2
                },
                Exit::PioWrite {
                    port: 0x300,
                    data: vec![0xef, 0xbe]
                },
                Exit::PioRead { port: 0x300, len: 1 },
            ]
        );
        assert_eq!(run.end, End::Exit(0x5a));
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

const SOON: Duration = Duration::from_secs(5);

fn registers_by_guest_instructions() {
    let mut machine = Machine::full();
    let entry = 0x0100_0000_0000_0000 | LEVEL | MASKED | 0x31;
    machine.set_rte(10, entry);
    assert_eq!(machine.rte(10), entry);
    // The index register still selects the low half, which was written last.
    assert_eq!(machine.fetch(0xfec0_0010), entry as u32);
    machine.set_pic_mask(PicChip::Slave, 0xa5);
    assert_eq!(machine.inb(0xa1), 0xa5);
    assert_eq!(machine.pic(PicChip::Slave).imr, 0xa5);
    machine.set_elcr(PicChip::Master, 1 << 5);
    assert_eq!(machine.inb(0x4d0), 1 << 5);
    machine.set_lapic_enabled(false);
    assert_eq!(machine.rdmsr(0x80f), 0xff);
    machine.store(DATA as u32, 0xcafe_f00d);
    assert_eq!(machine.fetch(DATA as u32), 0xcafe_f00d);
}

fn accept_mode() {
    let mut machine = Machine::full();
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, 10).unwrap();
    machine.set_rte(10, LEVEL | 0x31);
    assert_eq!(machine.accept(), None);
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(0x31));
    assert!(machine.ioapic_irr(10) && machine.remote_irr(10));
    let lapic = machine.lapic();
    assert!(lapic.isr(0x31) && lapic.tmr(0x31) && !lapic.irr(0x31));
    assert_eq!(count(&resample), 0);
    assert_eq!(machine.eoi(), []);
    assert_eq!(count(&resample), 1);
    assert!(!machine.ioapic_irr(10) && !machine.remote_irr(10));
    assert_eq!(machine.accept(), None);
}

fn pic_interrupt() {
    let mut machine = Machine::full();
    let (trigger, resample) = (eventfd(), eventfd());
    ioctl::assign_resample(machine.vm(), &trigger, &resample, 5).unwrap();
    machine.init_pics(0x20, false);
    machine.set_elcr(PicChip::Master, 1 << 5);
    machine.set_pic_mask(PicChip::Master, !(1 << 5));
    assert_eq!(machine.take_interrupt(), None);
    trigger.write(1).unwrap();
    let patience = Patience::new(SOON);
    while machine.pic(PicChip::Master).irr & (1 << 5) == 0 {
        assert!(!patience.is_over(), "the trigger did not reach the 8259");
    }
    assert_eq!(machine.take_interrupt(), Some(0x25));
    assert_eq!(machine.pic(PicChip::Master).isr, 1 << 5);
    assert_eq!(count(&resample), 0);
    machine.pic_eoi(PicChip::Master);
    assert_eq!(wait_count(&resample, SOON), 1);
    assert_eq!(machine.pic(PicChip::Master).isr, 0);
}

fn handler_replaces_catcher() {
    let mut machine = Machine::full();
    machine.set_rte(10, LEVEL | 0x31);
    let handler = PROGRAM + 0x100;
    let code = assemble(PROGRAM, |a| {
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.cmp(byte_ptr(DATA as u32), 0)?;
        a.je(again)?;
        a.mov(al, 0x77)?;
        a.out(i32::from(EXIT_PORT), al)
    });
    machine.load(PROGRAM, &code);
    let code = assemble(handler, |a| {
        a.mov(byte_ptr(DATA as u32), 1)?;
        a.iret()
    });
    machine.load(handler, &code);
    machine.set_handler(0x31, handler);
    ioctl::irq_line(machine.vm(), 10, 1).unwrap();
    assert_eq!(machine.run(PROGRAM).end, End::Exit(0x77));
}

fn split_eoi_exit() {
    let mut machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let level_msi = ioctl::route_to_msi(10, 0xfee0_0000, 0x8000 | 0x31);
    ioctl::set_gsi_routing(machine.vm(), &[level_msi]).unwrap();
    let trigger = eventfd();
    ioctl::assign_edge(machine.vm(), &trigger, 10).unwrap();
    trigger.write(1).unwrap();
    assert_eq!(machine.accept_within(SOON), Some(0x31));
    assert_eq!(machine.eoi(), [Exit::IoapicEoi(0x31)]);
    assert_eq!(machine.eoi(), []);
}

fn bare_ioctls() {
    let machine = Machine::full();
    let vm = machine.vm();
    assert_eq!(ioctl::irqfd(vm, -1, 10, 0, 0), Err(Errno::BADF));
    assert_eq!(ioctl::irqfd(vm, -1, 10, 1 << 2, 0), Err(Errno::INVAL));
    assert_eq!(ioctl::irq_line_status(vm, 5000, 1), Ok(-1));
    assert_eq!(ioctl::irq_line(vm, 10, 1), Ok(0));
    assert_eq!(
        ioctl::ioeventfd(vm, eventfd().as_raw_fd(), 0x1000, 3, 0, 0),
        Err(Errno::INVAL)
    );
    assert_eq!(ioctl::set_gsi_routing(vm, &ioctl::default_routes()), Ok(0));
    assert_eq!(
        ioctl::set_gsi_routing(vm, &[ioctl::route_to_chip(4, KVM_IRQCHIP_IOAPIC, 24)]),
        Err(Errno::INVAL)
    );
}
