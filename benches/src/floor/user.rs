// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Floor of a VM without an irqchip in the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use interrupt_core::Irqchip;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vmm_ref::composition::check::Impossible;
use vmm_ref::error::{Error, Result as VmmResult, at};
use vmm_ref::latency::Latency;
use vmm_ref::roundtrip::machine::Machine;
use vmm_ref::vm::cpu_thread::Processor;
use vmm_ref::vm::inject::interrupt;
use vmm_sys_util::eventfd::EventFd;

use super::rig::Floor;
use crate::Result;

const OCW2_PORT: u16 = 0x20;
const OCW2_NON_SPECIFIC_EOI: u8 = 0x20;

/// The state that the device and the processor share.
struct Cpu {
    asserted: Arc<AtomicBool>,
    processor: Processor,
    vector: u8,
    ended: EventFd,
}

pub(super) fn run(kvm: &Kvm, floor: &Floor, count: u64) -> Result<Latency> {
    let program = floor.program(Irqchip::User);
    let machine = Machine::new(kvm, &program.assemble()?, Irqchip::User)?;
    let registers = machine.status()?.device(0)?;
    let told = floor.eventfd()?;
    let (asserted, processor) = (Arc::new(AtomicBool::new(false)), Processor::default());
    let cpu = Cpu {
        asserted: Arc::clone(&asserted),
        processor: processor.clone(),
        vector: program.vector().ok_or(Impossible::NoGic)?,
        ended: told.try_clone()?,
    };
    let running = machine.start_with(move |fd, stop| cpu.run(fd, stop))?;
    let latency = floor.round_trips(&registers, &told, count, || {
        asserted.store(true, Ordering::Release);
        processor.wake();
        Ok(())
    })?;
    running.stop()?;
    Ok(latency)
}

impl Cpu {
    fn run(&self, mut fd: VcpuFd, stop: &AtomicBool) -> VmmResult<()> {
        self.processor.is_this_thread();
        while !stop.load(Ordering::Acquire) {
            let asserted = self.asserted.load(Ordering::Acquire);
            let run = fd.get_kvm_run();
            let takes = run.ready_for_interrupt_injection != 0 && run.if_flag != 0;
            run.request_interrupt_window = (asserted && !takes).into();
            if asserted && takes {
                self.asserted.store(false, Ordering::Relaxed);
                interrupt(&fd, self.vector)?;
            }
            match fd.run() {
                Ok(VcpuExit::IoOut(OCW2_PORT, [OCW2_NON_SPECIFIC_EOI])) => {
                    self.ended.write(1).map_err(|source| Error::System {
                        step: "write(eventfd)",
                        source,
                    })?;
                }
                Ok(VcpuExit::IoOut(..) | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Hlt) => {
                    while !self.asserted.load(Ordering::Acquire) && !stop.load(Ordering::Acquire) {
                        thread::park();
                    }
                }
                Ok(other) => return Err(Error::Guest(format!("unexpected exit {other:?}"))),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(at("KVM_RUN")(error)),
            }
        }
        Ok(())
    }
}
