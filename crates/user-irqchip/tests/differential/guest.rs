// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that takes one command after another from its memory: one KVM_RUN each, and no register is set from outside.
//!
//! It is what makes two million steps possible in a minute: [`Machine`]'s own helpers set the registers and enter the guest
//! twice for each.
//!
//! A command is over when the guest says so in its memory; the number of exits does not tell. [`WINDOW`] takes two: one with
//! interrupts enabled, behind `sti; out`, and one when the guest waits again. But QEMU's emulation of SVM forgets the shadow of `sti`
//! when a host's interrupt ends the guest's turn there, so that the guest takes its own interrupt before the `out`, and one exit
//! ends the command. A second KVM_RUN would start the command once more, and the guest would miss the command after that: a lost
//! write, now and then, on a busy machine.

use std::cell::Cell;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, dx, eax, ebx, ecx, edx, ptr, sp, word_ptr};
use kvm_ioctls::VcpuExit;
use rustix::io::Errno;
use testkit::lab::in_lab;
use testkit::machine::{Machine, registers};
use testkit::program::{DATA, EXIT_PORT, PROGRAM, assemble};
use vm_memory::{Bytes, GuestAddress};

/// In the guest's memory: the address of the command's code, and its two arguments.
const COMMAND: u64 = DATA;
const FIRST: u64 = DATA + 4;
const SECOND: u64 = DATA + 8;
/// The number of the command. The guest stores it in the next word when the command is over.
const NUMBER: u64 = DATA + 12;
const DONE: u64 = DATA + 16;
/// The vector that the guest has taken, and whether it has taken one.
const VECTOR: u64 = DATA + 20;
const TAKEN: u64 = DATA + 21;

/// The code of the commands.
const WAIT: u64 = PROGRAM + 0x40;
const IOAPIC_WRITE: u64 = PROGRAM + 0x100;
const WRMSR: u64 = PROGRAM + 0x140;
const OUTB: u64 = PROGRAM + 0x180;
const WINDOW: u64 = PROGRAM + 0x1c0;
const TOOK: u64 = PROGRAM + 0x200;
const HANDLERS: u64 = PROGRAM + 0x800;
const HANDLER_SIZE: u64 = 5;

const MSR_EOI: u32 = 0x80b;

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const CODE: [(u64, Body); 7] = [
    (PROGRAM, |a| {
        a.mov(ebx, 0xfec0_0000_u32)?;
        a.jmp(WAIT)
    }),
    (WAIT, |a| {
        a.mov(eax, ptr(NUMBER))?;
        a.mov(ptr(DONE), eax)?;
        a.out(i32::from(EXIT_PORT), al)?;
        a.jmp(word_ptr(COMMAND))
    }),
    (IOAPIC_WRITE, |a| {
        a.mov(eax, ptr(FIRST))?;
        a.mov(ptr(ebx).es(), eax)?;
        a.mov(eax, ptr(SECOND))?;
        a.mov(ptr(ebx + 0x10).es(), eax)?;
        a.jmp(WAIT)
    }),
    (WRMSR, |a| {
        a.mov(ecx, ptr(FIRST))?;
        a.mov(eax, ptr(SECOND))?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.jmp(WAIT)
    }),
    (OUTB, |a| {
        a.mov(dx, ptr(FIRST))?;
        a.mov(al, ptr(SECOND))?;
        a.out(dx, al)?;
        a.jmp(WAIT)
    }),
    (WINDOW, |a| {
        a.sti()?;
        // An exit with interrupts enabled: a pending one is injected at the next entry, on every host.
        a.out(i32::from(EXIT_PORT), al)?;
        a.cli()?;
        a.jmp(WAIT)
    }),
    // A handler jumps here: the interrupt's frame (flags, CS, IP) is dropped, and interrupts stay disabled.
    (TOOK, |a| {
        a.mov(ptr(VECTOR), al)?;
        a.mov(byte_ptr(TAKEN), 1)?;
        a.add(sp, 6)?;
        a.jmp(WAIT)
    }),
];

/// The guest of a [`Machine`]. As long as it runs, the machine's own helpers that run the guest must not be used.
#[derive(Debug, Default)]
pub struct Guest {
    /// The number of the last command.
    number: Cell<u32>,
}

impl Guest {
    /// Lays the code, takes over every interrupt vector, and runs the guest to where it waits for its first command.
    pub fn start(machine: &mut Machine) -> Self {
        for (at, body) in CODE {
            let code = assemble(at, body);
            assert!(code.len() <= 0x40, "the code at {at:#x} is {} bytes long", code.len());
            machine.load(at, &code);
        }
        for vector in 0..=u8::MAX {
            let at = HANDLERS + u64::from(vector) * HANDLER_SIZE;
            let code = assemble(at, |a| {
                a.mov(al, i32::from(vector))?;
                a.jmp(TOOK)
            });
            assert!(code.len() as u64 <= HANDLER_SIZE);
            machine.load(at, &code);
            machine.set_handler(vector, at);
        }
        machine.vcpu().set_regs(&registers(PROGRAM)).unwrap();
        run(machine);
        Self::default()
    }

    /// Writes an IOAPIC register.
    pub fn write_ioapic(&self, machine: &mut Machine, register: u32, value: u32) {
        self.command(machine, IOAPIC_WRITE, register, value, 1);
    }

    /// Writes an MSR whose upper half is 0.
    pub fn wrmsr(&self, machine: &mut Machine, msr: u32, value: u32) {
        self.command(machine, WRMSR, msr, value, 1);
    }

    /// Writes the LAPIC's EOI register.
    pub fn eoi(&self, machine: &mut Machine) {
        self.wrmsr(machine, MSR_EOI, 0);
    }

    /// Writes a port.
    pub fn outb(&self, machine: &mut Machine, port: u16, value: u8) {
        self.command(machine, OUTB, port.into(), value.into(), 1);
    }

    /// Enables interrupts for a moment, and gives the vector that came, if one did.
    pub fn take_interrupt(&self, machine: &mut Machine) -> Option<u8> {
        let memory = machine.memory().clone();
        memory.write_obj(0u8, GuestAddress(TAKEN)).unwrap();
        if self.command(machine, WINDOW, 0, 0, 2) < 2 {
            println!("note: the shadow of `sti` was lost at a host's interrupt");
            assert!(in_lab(), "no processor does that, and no emulator but the lab's");
        }
        let taken: u8 = memory.read_obj(GuestAddress(TAKEN)).unwrap();
        (taken != 0).then(|| memory.read_obj(GuestAddress(VECTOR)).unwrap())
    }

    /// Has the guest execute one command, and gives the number of exits, which is at most `exits`.
    fn command(&self, machine: &mut Machine, code: u64, first: u32, second: u32, exits: u32) -> u32 {
        let number = self.number.get().wrapping_add(1);
        self.number.set(number);
        // All of them lie below 64 KiB.
        let words = [code as u32, first, second, number];
        machine.memory().write_obj(words, GuestAddress(COMMAND)).unwrap();
        for exit in 1..=exits {
            run(machine);
            let done: u32 = machine.memory().read_obj(GuestAddress(DONE)).unwrap();
            if done == number {
                return exit;
            }
        }
        panic!("KVM_RUN returned {exits} times, and the guest has not come to the end of the command at {code:#x}");
    }
}

fn run(machine: &mut Machine) {
    loop {
        match machine.vcpu().run() {
            Ok(VcpuExit::IoOut(EXIT_PORT, _)) => return,
            Ok(exit) => panic!("unexpected exit {exit:?}"),
            Err(error) if error.errno() == Errno::INTR.raw_os_error() => {}
            Err(error) => panic!("KVM_RUN: {error}"),
        }
    }
}
