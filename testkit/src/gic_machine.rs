// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small real-KVM machine of arm64: one VM with a GICv3, and one vCPU at EL1 that makes one access at a time.
//!
//! The vCPU only runs inside a method, with interrupts masked, so that it takes no interrupt by itself:
//! [`GicMachine::accept`] reads ICC_IAR1_EL1, which moves the interrupt into service, and the test decides about its end.
//! After each method the state of the GIC does not change.
//!
//! So that the shared rows run on a GIC, the SPI of a pin is set up with an entry of an IOAPIC's redirection table: bit
//! 15 is level-triggered, bit 16 is disabled, and [`accept`](GicMachine::accept) returns the vector in its low byte. The
//! pin's remote IRR stands for "at the CPU": active, or pending and enabled. All methods panic when KVM fails.

use std::arch::global_asm;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_userspace_memory_region,
    kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::gic::{DISTRIBUTOR, make_gic};
use crate::need::Need;
use crate::patience::Patience;
use crate::rig::{LEVEL, MASKED, REMOTE_IRR};

/// Bytes of memory from guest-physical address 0.
pub const MEMORY: u64 = 0x10_0000;

const CODE: u64 = 0x1000;
/// A store to this address ends a run.
const EXIT: u64 = 0x900_0000;
/// What ICC_IAR1_EL1 reads as when no interrupt is pending.
const NONE: u64 = 1023;
/// Interrupt ID of pin 0.
pub(crate) const FIRST_SPI: u32 = 32;
const PINS: usize = 64;

// Each access ends with a store of x0 to the address in x2, which is an exit. The next run begins with the branch to the
// address in x3.
global_asm!(
    r#"
    .pushsection .rodata.testkit_gic_accesses, "a"
    .balign 16
    .global testkit_gic_accesses
testkit_gic_accesses:
0:  br      x3
    .balign 16
    ldr     w0, [x1]
    b       9f
    .balign 16
    str     w0, [x1]
    b       9f
    .balign 16
    strb    w0, [x1]
    b       9f
    .balign 16
    str     x0, [x1]
    b       9f
    .balign 16
    mrs     x0, ICC_IAR1_EL1
    dsb     sy
    b       9f
    .balign 16
    msr     ICC_EOIR1_EL1, x0
    isb
    b       9f
    .balign 16
    msr     ICC_DIR_EL1, x0
    isb
    b       9f
    .balign 16
    msr     ICC_CTLR_EL1, x0
    isb
    b       9f
    .balign 16
    msr     ICC_PMR_EL1, x0
    isb
    b       9f
    .balign 16
    msr     ICC_IGRPEN1_EL1, x0
    isb
    b       9f
    .balign 16
    mrs     x0, ICC_IAR1_EL1
    msr     ICC_EOIR1_EL1, x0
    isb
    b       9f
    .balign 16
    wfi                                 // goes on when an interrupt is pending, although none is taken
    b       9f
    .balign 16
9:  str     x0, [x2]
    b       0b
    .global testkit_gic_accesses_end
testkit_gic_accesses_end:
    .popsection
    "#
);

unsafe extern "C" {
    static testkit_gic_accesses: u8;
    static testkit_gic_accesses_end: u8;
}

/// One access of the vCPU, by the number of its 16 bytes in the code.
#[derive(Clone, Copy)]
enum Access {
    Load = 1,
    Store,
    StoreByte,
    StoreLong,
    Acknowledge,
    End,
    Deactivate,
    Control,
    PriorityMask,
    Enable,
    TakeAndEnd,
    Wait,
}

/// A VM with one vCPU and a GICv3. See the [module](self).
// Field order is drop order: the vCPU goes before the memory it runs in.
#[derive(Debug)]
pub struct GicMachine {
    vcpu: VcpuFd,
    memory: GuestMemoryMmap,
    vm: Arc<VmFd>,
    entries: [u64; PINS],
    in_service: Vec<u64>,
}

impl GicMachine {
    /// The needs of this machine.
    pub const NEEDS: &[Need] = &[Need::FullIrqchip];

    /// Builds the machine. `make_gic` is called when the vCPU is made.
    pub fn new(make_gic: impl FnOnce(&VmFd)) -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("guest memory");
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping owned by `memory`, which the machine owns and drops after its vCPU.
            unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
        }
        let (start, end) = (&raw const testkit_gic_accesses, &raw const testkit_gic_accesses_end);
        // SAFETY: the bytes between the two are those of the assembly above, which nothing writes.
        let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
        memory.write_slice(code, GuestAddress(CODE)).expect("it fits");

        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).expect("KVM_ARM_PREFERRED_TARGET");
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        vcpu.vcpu_init(&init).expect("KVM_ARM_VCPU_INIT");
        make_gic(&vm);
        let mut machine = Self {
            vcpu,
            memory,
            vm: Arc::new(vm),
            entries: [MASKED; PINS],
            in_service: Vec::new(),
        };
        machine.set_register(2, EXIT);
        machine.set(core_register(std::mem::offset_of!(user_pt_regs, pc)), CODE);
        machine
    }

    /// A machine with a GIC that is turned on.
    pub fn full() -> Self {
        let mut machine = Self::new(|vm| make_gic(vm).expect("a GICv3"));
        machine.turn_on();
        machine
    }

    /// Turns on the distributor and the CPU's interface, for all priorities.
    pub fn turn_on(&mut self) {
        self.store(DISTRIBUTOR, 0x12);
        self.access(Access::PriorityMask, 0xff, 0);
        self.access(Access::Control, 0, 0);
        self.access(Access::Enable, 1, 0);
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The machine of the rig, which is the rig.
    pub fn machine(&mut self) -> &mut Self {
        self
    }

    /// A load of 32 bits by the guest.
    pub fn load(&mut self, address: u64) -> u32 {
        self.access(Access::Load, 0, address) as u32
    }

    /// A store of 32 bits by the guest.
    pub fn store(&mut self, address: u64, value: u32) {
        self.access(Access::Store, value.into(), address);
    }

    /// A store of 64 bits by the guest.
    pub fn store_long(&mut self, address: u64, value: u64) {
        self.access(Access::StoreLong, value, address);
    }

    /// Bytes into the guest's memory, which the guest has not cached.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("guest memory");
    }

    /// The guest's choice of EOImode 1: an EOI drops the priority, and [`deactivate`](Self::deactivate) ends the
    /// interrupt.
    pub fn set_eoi_mode_1(&mut self) {
        self.access(Access::Control, 0b10, 0);
    }

    /// ICC_DIR_EL1: ends the interrupt of a pin in EOImode 1.
    pub fn deactivate(&mut self, pin: u32) {
        self.access(Access::Deactivate, u64::from(FIRST_SPI + pin), 0);
    }

    /// Reads ICC_IAR1_EL1: the interrupt ID that the CPU takes.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let taken = self.access(Access::Acknowledge, 0, 0);
        if taken == NONE {
            return None;
        }
        self.in_service.push(taken);
        Some(taken as u32)
    }

    /// Reads ICC_IAR1_EL1 and writes ICC_EOIR1_EL1 with no exit in between: the interrupt ID that the CPU took and
    /// ended.
    pub fn take_and_end(&mut self) -> Option<u32> {
        let taken = self.access(Access::TakeAndEnd, 0, 0);
        (taken != NONE).then_some(taken as u32)
    }

    /// Sleeps until an interrupt is pending.
    pub fn wait(&mut self) {
        self.access(Access::Wait, 0, 0);
    }

    /// The vector of the entry of the pin that the CPU takes.
    pub fn accept(&mut self) -> Option<u8> {
        let pin = self.acknowledge()? - FIRST_SPI;
        Some(self.entries[pin as usize] as u8)
    }

    /// As [`accept`](Self::accept), repeated for this much of the thread's CPU time.
    pub fn accept_within(&mut self, limit: Duration) -> Option<u8> {
        let patience = Patience::new(limit);
        loop {
            let taken = self.accept();
            if taken.is_some() || patience.is_over() {
                return taken;
            }
        }
    }

    /// ICC_EOIR1_EL1 for the interrupt that the CPU took last.
    pub fn eoi(&mut self) {
        let last = self.in_service.pop().expect("an interrupt is in service");
        self.access(Access::End, last, 0);
    }

    /// As [`write_rte_low`](Self::write_rte_low).
    pub fn set_rte(&mut self, pin: u32, entry: u64) {
        self.write_rte_low(pin, entry as u32);
    }

    /// Sets up the SPI of a pin as an entry of an IOAPIC says; nothing is touched that stays as it is.
    pub fn write_rte_low(&mut self, pin: u32, value: u32) {
        let (before, entry) = (self.entries[pin as usize], u64::from(value) & !REMOTE_IRR);
        self.entries[pin as usize] = entry;
        let (id, changed) = (FIRST_SPI + pin, before ^ entry);
        let bit = 1 << (id % 32);
        let of = |base: u32, per_register: u32| DISTRIBUTOR + u64::from(base + id / per_register * 4);
        if entry & MASKED != 0 && changed & MASKED != 0 {
            self.store(of(0x180, 32), bit); // GICD_ICENABLER
        }
        if changed & !MASKED != 0 {
            let group = self.load(of(0x80, 32));
            self.store(of(0x80, 32), group | bit); // GICD_IGROUPR
            let (config, edge) = (self.load(of(0xc00, 16)), 0b10 << (id % 16 * 2));
            let config = if entry & LEVEL == 0 {
                config | edge
            } else {
                config & !edge
            };
            self.store(of(0xc00, 16), config); // GICD_ICFGR
            self.access(Access::StoreByte, 0xa0, DISTRIBUTOR + 0x400 + u64::from(id)); // GICD_IPRIORITYR
            self.store_long(DISTRIBUTOR + 0x6000 + u64::from(id) * 8, 0); // GICD_IROUTER
        }
        if entry & MASKED == 0 && changed & MASKED != 0 {
            self.store(of(0x100, 32), bit); // GICD_ISENABLER
        }
    }

    /// The destination of an IOAPIC's entry. A GIC with one CPU has one destination.
    pub fn write_rte_high(&mut self, _: u32, value: u32) {
        assert_eq!(value, 0, "there is one CPU");
    }

    /// The entry of a pin, with remote IRR while the SPI is at the CPU.
    pub fn rte(&mut self, pin: u32) -> u64 {
        let entry = self.entries[pin as usize];
        let at_cpu = self.is_active(pin) || entry & MASKED == 0 && self.irr(pin);
        if at_cpu { entry | REMOTE_IRR } else { entry }
    }

    /// Whether the SPI of a pin is pending: its line is high, or it is latched.
    pub fn irr(&mut self, pin: u32) -> bool {
        self.bit(0x200, pin)
    }

    /// Whether the SPI of a pin is active: taken and not deactivated.
    pub fn is_active(&mut self, pin: u32) -> bool {
        self.bit(0x300, pin)
    }

    /// Messages need an ITS.
    pub fn send_msi(&mut self, _: u8) {
        panic!("no row with a message runs on a GIC");
    }

    /// There is no LAPIC.
    pub fn set_lapic_enabled(&mut self, _: bool) {
        panic!("no row with a LAPIC runs on a GIC");
    }

    fn bit(&mut self, base: u64, pin: u32) -> bool {
        let id = FIRST_SPI + pin;
        let register = self.load(DISTRIBUTOR + base + u64::from(id / 32 * 4));
        register & 1 << (id % 32) != 0
    }

    /// Runs one access with these values of x0 and x1, and returns x0 after it.
    fn access(&mut self, access: Access, x0: u64, x1: u64) -> u64 {
        self.set_register(0, x0);
        self.set_register(1, x1);
        self.set_register(3, CODE + 16 * access as u64);
        let result = loop {
            match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(EXIT, data)) => {
                    break u64::from_le_bytes(data.try_into().expect("64 bits"));
                }
                Ok(other) => panic!("unexpected exit {other:?}"),
                Err(e) if e.errno() == Errno::INTR.raw_os_error() => {}
                Err(e) => panic!("KVM_RUN: {e}"),
            }
        };
        // KVM finishes the store when it next enters, which it does here without running the guest.
        self.vcpu.set_kvm_immediate_exit(1);
        let entered = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        match entered {
            Err(e) if e.errno() == Errno::INTR.raw_os_error() => result,
            other => panic!("completing an exit: {other:?}"),
        }
    }

    fn set_register(&mut self, n: usize, value: u64) {
        self.set(core_register(std::mem::offset_of!(user_pt_regs, regs) + 8 * n), value);
    }

    fn set(&mut self, register: u64, value: u64) {
        let set = self.vcpu.set_one_reg(register, &value.to_ne_bytes());
        set.expect("KVM_SET_ONE_REG");
    }
}

/// KVM's number of a register of 64 bits at an offset in `user_pt_regs`: it counts in 32 bits.
const fn core_register(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}
