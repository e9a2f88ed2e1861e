// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel 8259 pair, driven by guest port I/O and observed through KVM_GET_IRQCHIP.

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state};

use super::Machine;

/// One of the two 8259s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicChip {
    /// IRQ 0-7.
    Master,
    /// IRQ 8-15, cascaded on the master's IRQ 2.
    Slave,
}

impl PicChip {
    /// The chip an IRQ (0-15) is on.
    pub fn of(irq: u8) -> Self {
        if irq < 8 { PicChip::Master } else { PicChip::Slave }
    }

    fn command_port(self) -> u16 {
        match self {
            PicChip::Master => 0x20,
            PicChip::Slave => 0xa0,
        }
    }

    fn data_port(self) -> u16 {
        self.command_port() + 1
    }

    fn elcr_port(self) -> u16 {
        match self {
            PicChip::Master => 0x4d0,
            PicChip::Slave => 0x4d1,
        }
    }
}

impl Machine {
    /// The state of one 8259: `irr`, `isr`, `imr`, `elcr` and the rest.
    pub fn pic(&self, chip: PicChip) -> kvm_pic_state {
        let chip_id = match chip {
            PicChip::Master => KVM_IRQCHIP_PIC_MASTER,
            PicChip::Slave => KVM_IRQCHIP_PIC_SLAVE,
        };
        let mut state = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.vm.get_irqchip(&mut state).expect("KVM_GET_IRQCHIP(PIC)");
        // SAFETY: every bit pattern is a valid `kvm_pic_state`, and the kernel has written one for this chip_id.
        unsafe { state.chip.pic }
    }

    /// Masks all pins of both 8259s.
    pub fn mask_pics(&mut self) {
        self.set_pic_mask(PicChip::Master, 0xff);
        self.set_pic_mask(PicChip::Slave, 0xff);
    }

    /// OCW1: a set bit masks the pin.
    pub fn set_pic_mask(&mut self, chip: PicChip, mask: u8) {
        self.outb(chip.data_port(), mask);
    }

    /// Initialises both 8259s (ICW1-ICW4: edge, cascade on IRQ 2, 8086 mode), leaves all pins masked but the cascade,
    /// and opens LVT0 for them. Vectors are `base + irq` for IRQ 0-15; `base` is a multiple of 8, so that IRQ 8 has
    /// `base + 8`.
    pub fn init_pics(&mut self, base: u8, auto_eoi: bool) {
        for (chip, base, cascade) in [(PicChip::Master, base, 4), (PicChip::Slave, base + 8, 2)] {
            self.outb(chip.command_port(), 0x11);
            self.outb(chip.data_port(), base);
            self.outb(chip.data_port(), cascade);
            self.outb(chip.data_port(), if auto_eoi { 3 } else { 1 });
        }
        self.set_pic_mask(PicChip::Master, !(1 << 2));
        self.set_pic_mask(PicChip::Slave, 0xff);
        self.set_lvt0_extint(true);
    }

    /// Writes the edge/level control register of one chip: a set bit makes the pin level-triggered.
    pub fn set_elcr(&mut self, chip: PicChip, level: u8) {
        self.outb(chip.elcr_port(), level);
    }

    /// OCW2: non-specific EOI.
    pub fn pic_eoi(&mut self, chip: PicChip) {
        self.outb(chip.command_port(), 0x20);
    }

    /// OCW2: specific EOI of pin 0-7 of the chip.
    pub fn pic_specific_eoi(&mut self, chip: PicChip, pin: u8) {
        self.outb(chip.command_port(), 0x60 | (pin & 7));
    }
}
