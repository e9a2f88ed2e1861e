// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small real-KVM machine: one VM, one vCPU in real mode, a little memory, and the interrupt controllers a test asks
//! for.
//!
//! The vCPU only runs inside [`Machine::run`] and the helpers built on it, on the calling thread, until the program
//! writes [`EXIT_PORT`]. Between runs its state does not change, so that tests can check orders of events.
//!
//! All methods that drive the machine panic when KVM fails, which fails the test.

mod firmware;
mod ioapic;
mod lapic;
mod pic;

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;

use crate::patience::Patience;
use crate::program::{EXIT_PORT, IRQ_PORT, STACK};

use firmware::{FIRMWARE, STUBS, Stubs, catcher};

pub use interrupt_core::Irqchip;
pub use lapic::Lapic;
pub use pic::PicChip;

/// Pins of the IOAPIC, and GSIs reserved for it on a split irqchip.
pub const IOAPIC_PINS: u32 = 24;

/// Why no machine could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A system call failed.
    #[error("{step}: {errno}")]
    Kvm {
        /// The system call.
        step: &'static str,
        /// The errno of the system call.
        errno: Errno,
    },
    /// Guest memory could not be mapped.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::mmap::FromRangesError),
}

fn at_step(step: &'static str) -> impl Fn(errno::Error) -> BuildError {
    move |e| BuildError::Kvm {
        step,
        errno: Errno::from_raw_os_error(e.errno()),
    }
}

/// The configuration of a [`Machine`]. The default is a full irqchip and 1 MiB of memory.
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    irqchip: Irqchip,
    memory: usize,
    prepare: fn(&VmFd),
}

impl MachineBuilder {
    /// The interrupt controllers in the kernel.
    pub fn irqchip(mut self, irqchip: Irqchip) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// Size of guest memory from address 0, in bytes: a multiple of 4096, at least 64 KiB.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Calls `prepare` on the VM after its irqchip is made and before its vCPU is made.
    pub fn prepare(mut self, prepare: fn(&VmFd)) -> Self {
        self.prepare = prepare;
        self
    }

    /// Builds the machine and brings its controllers to rest: both 8259s fully masked, LAPIC in x2APIC mode, enabled,
    /// LVT0 masked. IOAPIC entries are as after reset, that is masked.
    pub fn build(self) -> Result<Machine, BuildError> {
        let kvm = Kvm::new().map_err(at_step("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(at_step("KVM_CREATE_VM"))?;
        // Outside the memory of any test; only Intel hosts without unrestricted guests use it.
        vm.set_tss_address(0xfffb_d000).map_err(at_step("KVM_SET_TSS_ADDR"))?;
        match self.irqchip {
            Irqchip::Kernel => vm.create_irq_chip().map_err(at_step("KVM_CREATE_IRQCHIP"))?,
            Irqchip::Split => {
                enable_cap(&vm, KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS.into()).map_err(at_step("KVM_CAP_SPLIT_IRQCHIP"))?
            }
            Irqchip::User => {}
        }
        (self.prepare)(&vm);

        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), self.memory)])?;
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping owned by `memory`. Only a vCPU accesses the range through KVM. The machine
            // owns both `memory` and its one vCPU, and drops the vCPU first.
            unsafe { vm.set_user_memory_region(region) }.map_err(at_step("KVM_SET_USER_MEMORY_REGION"))?;
        }

        let vcpu = vm.create_vcpu(0).map_err(at_step("KVM_CREATE_VCPU"))?;
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(at_step("KVM_GET_SUPPORTED_CPUID"))?;
        let has_lapic = self.irqchip != Irqchip::User;
        for entry in cpuid.as_mut_slice().iter_mut().filter(|e| e.function == 1) {
            const X2APIC: u32 = 1 << 21;
            if has_lapic {
                entry.ecx |= X2APIC;
            }
        }
        vcpu.set_cpuid2(&cpuid).map_err(at_step("KVM_SET_CPUID2"))?;

        let mut sregs = vcpu.get_sregs().map_err(at_step("KVM_GET_SREGS"))?;
        for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            segment.selector = 0;
            segment.base = 0;
        }
        // Real mode with 32-bit offsets: `es:[ebx]` reaches every guest-physical address below 4 GiB.
        for segment in [&mut sregs.ds, &mut sregs.es] {
            let flat = kvm_segment {
                limit: 0xffff_ffff,
                g: 1,
                ..*segment
            };
            *segment = flat;
        }
        if has_lapic {
            const ENABLE: u64 = 1 << 11;
            const EXTENDED: u64 = 1 << 10;
            sregs.apic_base |= ENABLE | EXTENDED;
        }
        vcpu.set_sregs(&sregs).map_err(at_step("KVM_SET_SREGS"))?;

        let mut machine = Machine {
            vcpu,
            memory,
            vm: Arc::new(vm),
            irqchip: self.irqchip,
            stubs: FIRMWARE.stubs,
            exit_limit: 100_000,
        };
        machine.lay_firmware();
        machine.rest();
        Ok(machine)
    }
}

fn enable_cap(vm: &VmFd, cap: u32, argument: u64) -> Result<(), errno::Error> {
    vm.enable_cap(&kvm_enable_cap {
        cap,
        args: [argument, 0, 0, 0],
        ..Default::default()
    })
}

/// An exit of the guest to userspace that does not end the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A load of `len` bytes from an address that the kernel does not handle.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Width in bytes.
        len: usize,
    },
    /// A store to such an address.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// The bytes stored.
        data: Vec<u8>,
    },
    /// An `in`, or one or more elements of an `ins`.
    PioRead {
        /// Port.
        port: u16,
        /// Bytes wanted.
        len: usize,
    },
    /// An `out`, or one or more elements of an `outs`.
    PioWrite {
        /// Port.
        port: u16,
        /// The bytes written.
        data: Vec<u8>,
    },
    /// Split irqchip: a level-triggered vector of a reserved GSI was ended.
    IoapicEoi(u8),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The program wrote this byte to [`EXIT_PORT`].
    Exit(u8),
    /// The CPU took this vector, and the test has set no handler for it ([`Machine::set_handler`]).
    Interrupt(u8),
    /// `hlt` on a machine without in-kernel irqchip. With one, a halt waits in the kernel and does not end the run.
    Halt,
}

/// One run of a program: the exits in order, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Exits to userspace, in order.
    pub exits: Vec<Exit>,
    /// The end.
    pub end: End,
}

/// A VM with one vCPU in real mode. See the [module](self).
// Field order is drop order: the vCPU goes before the memory it runs in.
#[derive(Debug)]
pub struct Machine {
    vcpu: VcpuFd,
    memory: GuestMemoryMmap,
    vm: Arc<VmFd>,
    irqchip: Irqchip,
    stubs: Stubs,
    exit_limit: usize,
}

impl Machine {
    /// Starts describing a machine.
    pub fn builder() -> MachineBuilder {
        MachineBuilder {
            irqchip: Irqchip::Kernel,
            memory: 1 << 20,
            prepare: |_| {},
        }
    }

    /// A machine with the full in-kernel irqchip and 1 MiB of memory.
    ///
    /// # Panics
    /// When it cannot be built; a test asks for [`crate::need::Need::FullIrqchip`] first.
    pub fn full() -> Self {
        match Self::builder().build() {
            Ok(machine) => machine,
            Err(e) => panic!("{e}"),
        }
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The vCPU, for operations that this type does not have.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Guest memory. A clone of it stays valid and shared, for looking at the guest's data from another thread.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The controllers the machine was built with.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    /// How many exits one run may take before it panics. Starts at 100,000.
    pub fn set_exit_limit(&mut self, exits: usize) {
        self.exit_limit = exits;
    }

    /// Puts bytes into guest memory.
    pub fn load(&mut self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("the range is inside guest memory");
    }

    /// Lets `vector` run the code at `at` (below 64 KiB) instead of ending the run.
    pub fn set_handler(&mut self, vector: u8, at: u64) {
        let offset = u16::try_from(at).expect("real-mode handlers lie below 64 KiB");
        self.load(u64::from(vector) * 4, &u32::from(offset).to_le_bytes());
    }

    /// Lets `vector` end the run with [`End::Interrupt`] again.
    pub fn clear_handler(&mut self, vector: u8) {
        self.set_handler(vector, catcher(vector));
    }

    /// Runs the code at `entry` with interrupts disabled and zeroed registers, to its end. Reads of ports and addresses
    /// without a device return ones.
    ///
    /// # Panics
    /// When the vCPU fails, shuts down, or exits more often than the limit allows. Only the harness's time limit stops
    /// a program that neither ends nor exits.
    pub fn run(&mut self, entry: u64) -> Run {
        self.run_with(entry, |_| u64::MAX)
    }

    /// As [`Machine::run`], with `answer` called at each exit; the low bytes of its result answer a read.
    pub fn run_with(&mut self, entry: u64, answer: impl FnMut(&Exit) -> u64) -> Run {
        self.run_from(&registers(entry), answer)
    }

    /// As [`Machine::run_with`], starting from these registers.
    pub fn run_from(&mut self, regs: &kvm_regs, mut answer: impl FnMut(&Exit) -> u64) -> Run {
        self.vcpu.set_regs(regs).expect("KVM_SET_REGS");
        let mut exits = Vec::new();
        let end = loop {
            assert!(
                exits.len() < self.exit_limit,
                "no end after {} exits, the last {:?}",
                exits.len(),
                exits.last()
            );
            let exit = match self.vcpu.run() {
                Ok(exit) => exit,
                Err(e) if e.errno() == Errno::INTR.raw_os_error() => continue,
                Err(e) => panic!("KVM_RUN: {e}"),
            };
            let (exit, reply) = match exit {
                VcpuExit::IoOut(EXIT_PORT, data) => break End::Exit(data[0]),
                VcpuExit::IoOut(IRQ_PORT, data) => break End::Interrupt(data[0]),
                VcpuExit::Hlt => break End::Halt,
                VcpuExit::IoOut(port, data) => (
                    Exit::PioWrite {
                        port,
                        data: data.to_vec(),
                    },
                    None,
                ),
                VcpuExit::MmioWrite(addr, data) => (
                    Exit::MmioWrite {
                        addr,
                        data: data.to_vec(),
                    },
                    None,
                ),
                VcpuExit::IoIn(port, data) => (Exit::PioRead { port, len: data.len() }, Some(data)),
                VcpuExit::MmioRead(addr, data) => (Exit::MmioRead { addr, len: data.len() }, Some(data)),
                VcpuExit::IoapicEoi(vector) => (Exit::IoapicEoi(vector), None),
                other => panic!("unexpected exit {other:?}"),
            };
            let value = answer(&exit).to_le_bytes();
            if let Some(reply) = reply {
                for (byte, value) in reply.iter_mut().zip(value.iter().cycle()) {
                    *byte = *value;
                }
            }
            exits.push(exit);
        };
        self.complete_exit();
        Run { exits, end }
    }

    /// Opens the interrupt window: lets the CPU take a pending interrupt, if there is one, and returns its vector. The
    /// handler does not run further, so the interrupt is not ended (unless the host's LAPIC ends interrupts by itself).
    pub fn take_interrupt(&mut self) -> Option<u8> {
        const IF: u64 = 1 << 9;
        let mut regs = registers(self.stubs.window);
        regs.rflags |= IF;
        match self.run_from(&regs, |_| u64::MAX).end {
            End::Interrupt(vector) => Some(vector),
            _ => None,
        }
    }

    /// As [`Machine::take_interrupt`], repeated for this much of the thread's CPU time. Returns `None` when the time is
    /// used up.
    pub fn take_interrupt_within(&mut self, limit: Duration) -> Option<u8> {
        let patience = Patience::new(limit);
        loop {
            let taken = self.take_interrupt();
            if taken.is_some() || patience.is_over() {
                return taken;
            }
        }
    }

    /// `out port, value` by the guest.
    pub fn outb(&mut self, port: u16, value: u8) -> Vec<Exit> {
        self.call(self.stubs.outb, |r| {
            r.rdx = port.into();
            r.rax = value.into();
        })
        .exits
    }

    /// `in al, port` by the guest.
    pub fn inb(&mut self, port: u16) -> u8 {
        self.call(self.stubs.inb, |r| r.rdx = port.into());
        self.regs().rax as u8
    }

    /// `wrmsr` by the guest.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Vec<Exit> {
        self.call(self.stubs.wrmsr, |r| {
            r.rcx = msr.into();
            r.rax = value & 0xffff_ffff;
            r.rdx = value >> 32;
        })
        .exits
    }

    /// `rdmsr` by the guest.
    pub fn rdmsr(&mut self, msr: u32) -> u64 {
        self.call(self.stubs.rdmsr, |r| r.rcx = msr.into());
        let regs = self.regs();
        (regs.rdx << 32) | (regs.rax & 0xffff_ffff)
    }

    /// A 32-bit store by the guest to a guest-physical address below 4 GiB.
    pub fn store(&mut self, addr: u32, value: u32) -> Vec<Exit> {
        self.call(self.stubs.store, |r| {
            r.rbx = addr.into();
            r.rax = value.into();
        })
        .exits
    }

    /// A 32-bit load by the guest from a guest-physical address below 4 GiB.
    pub fn fetch(&mut self, addr: u32) -> u32 {
        self.call(self.stubs.load, |r| r.rbx = addr.into());
        self.regs().rax as u32
    }

    fn regs(&self) -> kvm_regs {
        self.vcpu.get_regs().expect("KVM_GET_REGS")
    }

    fn call(&mut self, entry: u64, arguments: impl FnOnce(&mut kvm_regs)) -> Run {
        let mut regs = registers(entry);
        arguments(&mut regs);
        self.run_from(&regs, |_| u64::MAX)
    }

    /// Lets KVM finish the instruction of the last exit. KVM's API requires that before registers are read or replaced.
    fn complete_exit(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let entered = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        match entered {
            Err(e) if e.errno() == Errno::INTR.raw_os_error() => {}
            other => panic!("completing an exit: {other:?}"),
        }
    }

    fn lay_firmware(&mut self) {
        self.load(STUBS, &FIRMWARE.code);
        for vector in 0..=u8::MAX {
            self.clear_handler(vector);
        }
    }

    fn rest(&mut self) {
        if self.irqchip == Irqchip::Kernel {
            self.mask_pics();
        }
        if self.irqchip != Irqchip::User {
            self.set_lapic_enabled(true);
            self.set_lvt0_extint(false);
        }
    }
}

/// Registers to start a program at `entry` with: interrupts disabled, all else zero.
pub fn registers(entry: u64) -> kvm_regs {
    const ALWAYS_ONE: u64 = 2;
    kvm_regs {
        rip: entry,
        rsp: STACK,
        rflags: ALWAYS_ONE,
        ..Default::default()
    }
}
