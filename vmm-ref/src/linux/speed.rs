// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures how fast a host's KVM runs a guest's 64-bit code, by running a short loop.
//!
//! Some hosts have no hardware virtualisation. There KVM's instruction emulator runs the code that nothing else can
//! run, at about 2 million instructions a second. A kernel executes about a thousand million instructions before its
//! init.

use std::sync::Arc;
use std::time::Instant;

use interrupt_core::Irqchip;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result, at};
use crate::linux::boot::cpu_state as cpu;
use crate::vm::cpu_thread::EINTR;
use crate::vm::kvm::{create_vm, map};

/// Below this a stock kernel takes minutes. An emulator reaches 2 or 3. A CPU that is itself emulated
/// (`cargo xtask lab`) reaches 10 at the first run of the program, and many times that at later runs.
pub const ENOUGH_MIPS: f64 = 10.0;

const CODE: u64 = 0x1_0000;
const MEMORY: usize = 0x2_0000;
const ROUNDS: u32 = 50_000;
const TRIES: u32 = 8;
/// The port that the program writes at its end.
const DONE: u16 = 0x80;

/// Million instructions a second. Returns the first measurement that suffices.
///
/// # Errors
/// The error of the step that failed, or [`Error::Guest`] when the program does not end.
pub fn measure(kvm: &Kvm) -> Result<f64> {
    let vm = create_vm(kvm, Irqchip::User)?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map(Arc::new)
        .map_err(|error| Error::Memory(error.to_string()))?;
    map(&vm, &memory)?;
    cpu::write_tables(&memory)?;
    let [r0, r1, r2, r3] = ROUNDS.to_le_bytes();
    // start: mov ecx, ROUNDS; again: dec ecx; jnz again; out DONE, al; jmp start
    let program = [
        0xb9, r0, r1, r2, r3, 0xff, 0xc9, 0x75, 0xfc, 0xe6, DONE as u8, 0xeb, 0xf3,
    ];
    memory.write_slice(&program, GuestAddress(CODE))?;
    let mut vcpu = vm.create_vcpu(0).map_err(at("KVM_CREATE_VCPU"))?;
    cpu::set_cpuid(kvm, &vcpu, 0, 1)?;
    cpu::start_at(&vcpu, CODE, 0)?;
    // Take the best of several runs: the first run starts cold, and a busy host may interrupt any run.
    let mut best = 0.0_f64;
    for _ in 0..TRIES {
        let start = Instant::now();
        run(&mut vcpu)?;
        let instructions = f64::from(ROUNDS) * 2.0;
        best = best.max(instructions / start.elapsed().as_secs_f64() / 1e6);
        if best >= ENOUGH_MIPS {
            break;
        }
    }
    Ok(best)
}

/// Runs the program to its next exit.
fn run(vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(DONE, _)) => return Ok(()),
            Ok(other) => return Err(Error::Guest(format!("measuring its speed: unexpected exit {other:?}"))),
            Err(error) if error.errno() == EINTR => {}
            Err(error) => return Err(at("KVM_RUN")(error)),
        }
    }
}
