// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that answers each interrupt of its 8259 with an EOI: the guest's side of a round trip.

use std::fmt;
use std::thread::{self, JoinHandle};

use iced_x86::code_asm::*;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::{Machine, PicChip};
use crate::program::{DATA, EXIT_PORT, PROGRAM, assemble};

/// A guest in a thread of its own, with some level-triggered inputs of the first 8259 open. The guest spins between
/// interrupts. A drop ends the guest.
pub struct Responder {
    memory: GuestMemoryMmap,
    guest: Option<JoinHandle<()>>,
}

const STOP: GuestAddress = GuestAddress(DATA);
const HANDLER: u64 = PROGRAM + 0x100;
const VECTOR_BASE: u8 = 0x20;

impl Responder {
    /// Prepares a guest whose 8259 has these IRQs (0 to 7) open; `before` is run on its VM before it starts.
    pub fn start<T>(irqs: &[u8], before: impl FnOnce(&Arc<VmFd>) -> T) -> (Self, T) {
        let mut machine = Machine::full();
        let lines = irqs.iter().fold(0, |lines, irq| lines | 1 << irq);
        machine.set_lvt0_extint(true);
        machine.init_pics(VECTOR_BASE, false);
        machine.set_elcr(PicChip::Master, lines);
        machine.set_pic_mask(PicChip::Master, !lines);
        let idle = assemble(PROGRAM, |a| {
            let mut again = a.create_label();
            a.sti()?;
            a.set_label(&mut again)?;
            a.cmp(byte_ptr(STOP.0 as u32), 0)?;
            a.je(again)?;
            a.out(i32::from(EXIT_PORT), al)
        });
        let handler = assemble(HANDLER, |a| {
            // OCW2: non-specific EOI.
            a.mov(al, 0x20)?;
            a.out(0x20, al)?;
            a.iret()
        });
        machine.load(PROGRAM, &idle);
        machine.load(HANDLER, &handler);
        for irq in irqs {
            machine.set_handler(VECTOR_BASE + irq, HANDLER);
        }
        let memory = machine.memory().clone();
        let made = before(machine.vm());
        let guest = thread::Builder::new().name("guest".into()).spawn(move || {
            machine.run(PROGRAM);
        });
        let responder = Self {
            memory,
            guest: Some(guest.expect("a thread for the guest")),
        };
        (responder, made)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let stopped = self.memory.write_obj(1u8, STOP);
        if let (Ok(()), Some(guest)) = (stopped, self.guest.take()) {
            // The panic hook has reported a guest that failed.
            drop(guest.join());
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a guest that ends each interrupt of its 8259")
    }
}
