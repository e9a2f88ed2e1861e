// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's program: sets up one interrupt controller, and then serves interrupts.

use iced_x86::code_asm::{CodeAssembler, al, dword_ptr, dx, eax, ecx, ptr};
use iced_x86::{BlockEncoderOptions, IcedError};
use interrupt_core::Irqchip;

use crate::composition::options::{Controller, Without};
use crate::roundtrip::guest::chips::{
    APIC_BASE_ENABLE_X2APIC, IOAPIC_VECTOR, LVT_MASKED, MASTER_COMMAND, MSR_APIC_BASE, MSR_EOI, MSR_LVT0, MSR_SPURIOUS,
    OCW2_NON_SPECIFIC_EOI, PIC_BASE, SPURIOUS_LAPIC_ENABLE, ioapic_set_up, mask_pics, out, pic_set_up, write_ioapic,
    write_msr,
};
use crate::roundtrip::guest::edu_handler as edu;
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{
    ACKNOWLEDGE_PORT, CODE, FAULT_PORT, FOUND_NOTHING, HANDLER_RUNS, READY, STACK, STRAY, raised, serviced,
};
use crate::roundtrip::guest::ringing::ring;

/// A variant of the program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The controller that the program sets up.
    pub controller: Controller,
    /// How many devices share the line: 1 to `MAX_DEVICES`.
    pub devices: usize,
    /// Whether the one device is an `edu` at [`BAR_ADDRESS`](super::layout::BAR_ADDRESS), which the handler serves
    /// there.
    pub edu: bool,
    /// Whether the handler writes [`ACKNOWLEDGE_PORT`] before the EOI.
    pub acknowledge: bool,
    /// What the program leaves out, as a negative control.
    pub without: Option<Without>,
    /// What the program does between interrupts.
    pub idle: Idle,
}

/// What the program does between interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The program halts, for two reasons. With an in-kernel irqchip a halt costs no exit. And where KVM emulates every
    /// instruction, KVM checks for an interrupt once in a batch of instructions, but at once in a halt.
    Halt,
    /// The program spins. On a split irqchip KVM reports an EOI when the CPU next enters the guest, and a halted CPU
    /// does not enter it.
    Spin,
}

impl Idle {
    /// The choice for an irqchip.
    pub fn on(irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Split => Self::Spin,
            Irqchip::Kernel | Irqchip::User => Self::Halt,
        }
    }
}

/// The 8259 raises IRQ 7 as a spurious interrupt when the requesting line is low again at the acknowledge.
const PIC_SPURIOUS: u8 = PIC_BASE + 7;
/// The LAPIC's vector for spurious interrupts.
const LAPIC_SPURIOUS: u8 = 0xff;

/// The address of real mode's interrupt vector table.
const VECTOR_TABLE: u64 = 0;

/// The table whose entries are offset, then segment, which is 0.
fn vector_table(offsets: &[u16; 256]) -> Vec<u8> {
    offsets
        .iter()
        .flat_map(|offset| u32::from(*offset).to_le_bytes())
        .collect()
}

impl Program {
    /// The vector at which the handler of the devices' line is called. `None` on a GIC, which has interrupt IDs.
    pub fn vector(&self) -> Option<u8> {
        match self.controller {
            Controller::Pic => Some(PIC_BASE + self.controller.gsi().0 as u8),
            Controller::Ioapic => Some(IOAPIC_VECTOR),
            Controller::Gic => None,
        }
    }

    /// Assembles the program.
    ///
    /// # Errors
    /// None for a program whose `devices` is in range, and whose controller this host's machines have. Otherwise
    /// [`Error::Impossible`](crate::error::Error::Impossible), or the assembler's error, which names the instruction.
    pub fn assemble(&self) -> crate::error::Result<Image> {
        match self.vector() {
            Some(vector) => Ok(self.for_real_mode(vector)?),
            #[cfg(target_arch = "aarch64")]
            None => Ok(crate::roundtrip::guest::gic_program::image(
                self.devices,
                self.edu,
                self.acknowledge,
                self.without,
            )),
            #[cfg(not(target_arch = "aarch64"))]
            None => Err(crate::composition::check::Impossible::NoGic.into()),
        }
    }

    fn for_real_mode(&self, vector: u8) -> Result<Image, IcedError> {
        let mut a = CodeAssembler::new(16)?;
        let mut idle = a.create_label();
        let mut handler = a.create_label();
        let mut stray = a.create_label();
        let mut fault = a.create_label();

        match self.controller {
            Controller::Pic => self.set_up_pic(&mut a)?,
            Controller::Ioapic | Controller::Gic => self.set_up_ioapic(&mut a)?,
        }
        a.mov(dword_ptr(READY as u32), 1)?;
        // Ring before the first interrupt, so that doorbells and interrupts do not disturb each other's figures.
        ring(&mut a)?;
        a.sti()?;

        // Only the handler uses registers from here on, so the handler saves none.
        a.set_label(&mut idle)?;
        if self.idle == Idle::Halt {
            a.hlt()?;
        }
        a.jmp(idle)?;

        a.set_label(&mut handler)?;
        self.handle(&mut a)?;

        // A spurious interrupt of a controller needs no EOI.
        a.set_label(&mut stray)?;
        a.inc(dword_ptr(STRAY as u32))?;
        a.iret()?;

        a.set_label(&mut fault)?;
        a.mov(dx, i32::from(FAULT_PORT))?;
        a.out(dx, al)?;
        a.jmp(fault)?;

        let assembled = a.assemble_options(CODE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let offset = |label| assembled.label_ip(label).map(|at| at as u16);
        let mut vectors = [offset(&fault)?; 256];
        vectors[usize::from(vector)] = offset(&handler)?;
        vectors[usize::from(PIC_SPURIOUS)] = offset(&stray)?;
        vectors[usize::from(LAPIC_SPURIOUS)] = offset(&stray)?;
        Ok(Image {
            parts: vec![
                (CODE, assembled.inner.code_buffer),
                (VECTOR_TABLE, vector_table(&vectors)),
            ],
            entry: CODE,
            stack: STACK,
        })
    }

    /// Serves every device with a request, and ends the interrupt.
    fn handle(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.inc(dword_ptr(HANDLER_RUNS as u32))?;
        if self.edu {
            edu::serve(a)?;
        } else {
            self.serve_words(a)?;
        }
        if self.acknowledge {
            a.mov(dx, i32::from(ACKNOWLEDGE_PORT))?;
            a.out(dx, al)?;
        }
        match (self.without, self.controller) {
            (Some(_), _) => {}
            (None, Controller::Pic) => {
                a.mov(al, OCW2_NON_SPECIFIC_EOI)?;
                a.out(MASTER_COMMAND as i32, al)?;
            }
            (None, Controller::Ioapic | Controller::Gic) => write_msr(a, MSR_EOI, 0)?,
        }
        a.iret()
    }

    /// Serves the devices whose requests are words of memory.
    fn serve_words(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut found: Vec<_> = (0..self.devices).map(|_| a.create_label()).collect();
        let mut done = a.create_label();
        for (n, found) in found.iter().enumerate() {
            a.mov(eax, ptr(raised(n) as u32))?;
            a.cmp(eax, ptr(serviced(n) as u32))?;
            a.jne(*found)?;
        }
        a.inc(dword_ptr(FOUND_NOTHING as u32))?;
        a.jmp(done)?;
        // Serve every device from the first with a request on. The copy changes nothing for a device without a request.
        for (n, found) in found.iter_mut().enumerate() {
            a.set_label(found)?;
            a.mov(eax, ptr(raised(n) as u32))?;
            a.mov(ptr(serviced(n) as u32), eax)?;
        }
        a.set_label(&mut done)
    }

    /// Both 8259s in 8086 mode, the line level-triggered, everything else masked.
    fn set_up_pic(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        for (port, value) in pic_set_up(self.controller.gsi().0) {
            out(a, port, value)?;
        }
        Ok(())
    }

    /// Both 8259s masked (an uninitialised one would inject a vector of its own for the same GSI), the LAPIC on and
    /// deaf to them, and the line's pin level-triggered.
    fn set_up_ioapic(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        mask_pics(a)?;

        a.mov(ecx, MSR_APIC_BASE)?;
        a.rdmsr()?;
        a.or(eax, APIC_BASE_ENABLE_X2APIC as i32)?;
        a.wrmsr()?;
        write_msr(a, MSR_LVT0, LVT_MASKED)?;
        write_msr(a, MSR_SPURIOUS, SPURIOUS_LAPIC_ENABLE | u32::from(LAPIC_SPURIOUS))?;

        for (register, value) in ioapic_set_up(self.controller.gsi().0) {
            write_ioapic(a, register, value)?;
        }
        Ok(())
    }
}
