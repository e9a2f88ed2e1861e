// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM that a consumer starts from: a `VmFd`, one real-mode vCPU, and a guest of a few bytes. This VMM uses none of
//! the crates that the consumers try.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The error of any function here.
pub type Error = Box<dyn std::error::Error>;

/// The guest writes to this port from its interrupt handler, before the EOI.
pub const IN_HANDLER: u16 = 0x510;
/// The guest writes to this port from its interrupt handler, after the EOI.
pub const AFTER_EOI: u16 = 0x511;
/// The guest writes to this port when its program is over.
pub const DONE: u16 = 0x512;
/// The guest writes to this port when it has set its interrupt controller up. KVM's 8259 forgets at ICW1 a line that is
/// already high.
pub const READY: u16 = 0x513;

const PROGRAM: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
const STACK: u64 = 0x8000;
const MEMORY: usize = 0x1_0000;
/// The vector of IRQ 0.
const VECTORS: u8 = 0x20;

/// Says that `consumer` cannot run here, in the words that `cargo xtask test` counts as a skip; true when there is no
/// KVM.
pub fn skip_without_kvm(consumer: &str) -> bool {
    let missing = !Path::new("/dev/kvm").exists();
    if missing {
        println!("skip: consumers::{consumer}: no /dev/kvm");
    }
    missing
}

/// A VM with one vCPU.
// Field order is drop order: the vCPU goes before the memory it runs in.
pub struct SmallVmm {
    vcpu: VcpuFd,
    memory: GuestMemoryMmap,
    vm: Arc<VmFd>,
}

/// An access by the guest that KVM gave to the VMM.
#[derive(Debug)]
pub enum Exit<'a> {
    PioWrite(u16, &'a [u8]),
    PioRead(u16, &'a mut [u8]),
    MmioWrite(u64, &'a [u8]),
}

impl SmallVmm {
    /// A VM with KVM's whole irqchip.
    pub fn new() -> Result<Self, Error> {
        let vm = Kvm::new()?.create_vm()?;
        vm.create_irq_chip()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the region is the whole of `memory`, which lives as long as the VM.
        unsafe { vm.set_user_memory_region(region)? };
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs)?;
        let mut regs = vcpu.get_regs()?;
        (regs.rip, regs.rsp, regs.rflags) = (PROGRAM, STACK, 2);
        vcpu.set_regs(&regs)?;
        Ok(Self {
            vcpu,
            memory,
            vm: Arc::new(vm),
        })
    }

    /// The VM, as any crate of rust-vmm takes it.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The program of the guest.
    pub fn load(&self, program: &[u8]) -> Result<(), Error> {
        Ok(self.memory.write_slice(program, GuestAddress(PROGRAM))?)
    }

    /// A guest that makes `irq` of the 8259 pair level-triggered, waits for it for ever, and runs `acknowledge` and an
    /// EOI in its handler. [`READY`], [`IN_HANDLER`] and [`AFTER_EOI`] say where it is.
    pub fn serve_level_irq(&self, irq: u8, acknowledge: &[u8]) -> Result<(), Error> {
        assert!(irq < 8, "the slave's lines need an EOI of both chips");
        let handler = [
            &outb(IN_HANDLER, irq)[..],
            acknowledge,
            &outb(0x20, 0x20), // OCW2: non-specific EOI
            &outb(AFTER_EOI, irq),
            &[0xcf], // iret
        ];
        let vector = u64::from(VECTORS + irq);
        self.memory.write_slice(&handler.concat(), GuestAddress(HANDLER))?;
        self.memory
            .write_slice(&(HANDLER as u32).to_le_bytes(), GuestAddress(vector * 4))?;
        let program: Vec<u8> = [
            // ICW1 to ICW4 of both chips, their masks, and the edge/level control register.
            [(0x20, 0x11), (0x21, VECTORS), (0x21, 4), (0x21, 1)],
            [(0xa0, 0x11), (0xa1, VECTORS + 8), (0xa1, 2), (0xa1, 1)],
            [(0x21, !(1 << irq)), (0xa1, 0xff), (0x4d0, 1 << irq), (0x4d1, 0)],
        ]
        .concat()
        .into_iter()
        .flat_map(|(port, value)| outb(port, value))
        .chain(outb(READY, irq))
        .chain([0xfb, 0xeb, 0xfe]) // sti; jmp to itself
        .collect();
        self.load(&program)
    }

    /// Runs the guest until `exit` breaks the loop with a value.
    pub fn run<T>(&mut self, mut exit: impl FnMut(Exit<'_>) -> ControlFlow<T>) -> Result<T, Error> {
        loop {
            let flow = match self.vcpu.run()? {
                VcpuExit::IoOut(port, data) => exit(Exit::PioWrite(port, data)),
                VcpuExit::IoIn(port, data) => exit(Exit::PioRead(port, data)),
                VcpuExit::MmioWrite(address, data) => exit(Exit::MmioWrite(address, data)),
                other => return Err(format!("the guest made {other:?}").into()),
            };
            if let ControlFlow::Break(value) = flow {
                return Ok(value);
            }
        }
    }
}

/// `mov dx, port; mov al, value; out dx, al`
pub fn outb(port: u16, value: u8) -> [u8; 6] {
    let [low, high] = port.to_le_bytes();
    [0xba, low, high, 0xb0, value, 0xee]
}

/// `mov dx, port; in al, dx`
pub fn inb(port: u16) -> [u8; 4] {
    let [low, high] = port.to_le_bytes();
    [0xba, low, high, 0xec]
}
