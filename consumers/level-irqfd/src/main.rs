// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has its `VmFd` and its vCPU loop, and adds a level-triggered line: an eventfd asserts the line, and
//! another eventfd reports that the guest has ended the interrupt.
//!
//! The device has two requests, and each request is one interrupt. The device asserts again at the first EOI, because
//! its cause persists, and does not assert at the second EOI.

use std::ops::ControlFlow::{Break, Continue};

use interrupt_core::{EoiNotifier, Gsi, Listener};
use kvm_irqfd::{KvmInterrupts, eventfd};
use small_vmm::{AFTER_EOI, Error, Exit, IN_HANDLER, READY, SmallVmm, skip_without_kvm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const IRQ: u8 = 5;

fn main() -> Result<(), Error> {
    if skip_without_kvm("level-irqfd") {
        return Ok(());
    }
    let mut vmm = SmallVmm::new()?;
    vmm.serve_level_irq(IRQ, &[])?;

    let interrupts = KvmInterrupts::new(vmm.vm().clone())?;
    let line = interrupts.resample_source(Gsi(IRQ.into()), "disk")?;
    let eoi = EventFd::new(EFD_NONBLOCK)?;
    // The kernel signals this eventfd itself.
    let _guard = interrupts.subscribe(line.key().into(), Listener::fd(eventfd::into_owned(eoi.try_clone()?)))?;

    let mut requests = 2;
    let mut interrupts_taken = 0;
    vmm.run(|exit| match exit {
        Exit::PioWrite(READY, _) => {
            line.assert().unwrap();
            Continue(())
        }
        Exit::PioWrite(IN_HANDLER, _) => {
            interrupts_taken += 1;
            requests -= 1;
            // The interrupt is in service and has not ended, so no EOI may have been reported yet. A host that has
            // reported one ends interrupts itself.
            assert!(eoi.read().is_err(), "an EOI was told of before the guest made it");
            Continue(())
        }
        Exit::PioWrite(AFTER_EOI, _) => {
            assert_eq!(eoi.read().unwrap(), 1, "the guest's EOI is told of once");
            if requests == 0 {
                return Break(());
            }
            line.assert().unwrap(); // the cause persists
            Continue(())
        }
        other => panic!("{other:?}"),
    })?;
    assert_eq!(interrupts_taken, 2, "one interrupt for each request");
    println!("{interrupts_taken} level interrupts, each with its EOI");
    Ok(())
}
