// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vm-superio's serial port, as its users have it, on a level-triggered line: the port's `Trigger` is a level source, and an EOI
//! asks it for its level.
//!
//! The guest's handler reads one byte and returns, which a UART allows. A port whose trigger is a pulse would be silent from
//! then on.

use std::ops::ControlFlow::{Break, Continue};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interrupt_core::{EoiNotifier, Gsi, LevelSource, Listener};
use kvm_irqfd::{KvmInterrupts, LevelTrigger};
use small_vmm::{AFTER_EOI, Error, Exit, IN_HANDLER, READY, SmallVmm, inb, skip_without_kvm};
use vm_superio::Serial;

const IRQ: u8 = 4;
const COM1: u16 = 0x3f8;
const LAST: u16 = COM1 + 7;
const RECEIVED_DATA: u8 = 1;
const TEXT: &[u8] = b"three";

fn main() -> Result<(), Error> {
    if skip_without_kvm("superio-serial") {
        return Ok(());
    }
    let mut vmm = SmallVmm::new()?;
    // The handler reads a byte and gives it back, so that this program sees what the guest got.
    let read_one = [&inb(COM1)[..], &[0xba, 0xf8, 0x03, 0xee]].concat();
    vmm.serve_level_irq(IRQ, &read_one)?;

    let interrupts = KvmInterrupts::new(vmm.vm().clone())?;
    let line = Arc::new(interrupts.resample_source(Gsi(IRQ.into()), "serial")?);
    let serial = Arc::new(Mutex::new(Serial::new(LevelTrigger::from(line.clone()), Vec::new())));
    let (device, again) = (serial.clone(), line.clone());
    let _guard = interrupts.subscribe(
        line.key().into(),
        Listener::callback(move |_| {
            let state = device.lock().unwrap().state();
            if !state.in_buffer.is_empty() && state.interrupt_enable & RECEIVED_DATA != 0 {
                again.assert().unwrap();
            }
        }),
    )?;

    let mut handlers = 0;
    vmm.run(|exit| {
        match exit {
            Exit::PioWrite(READY, _) => {
                let mut serial = serial.lock().unwrap();
                serial.write(1, RECEIVED_DATA).unwrap();
                serial.enqueue_raw_bytes(TEXT).unwrap();
            }
            Exit::PioWrite(IN_HANDLER, _) => handlers += 1,
            Exit::PioWrite(AFTER_EOI, _) => {
                interrupts.dispatch(Some(Duration::ZERO)).unwrap();
                if serial.lock().unwrap().state().in_buffer.is_empty() {
                    return Break(());
                }
            }
            Exit::PioRead(port @ COM1..=LAST, data) => data[0] = serial.lock().unwrap().read((port - COM1) as u8),
            Exit::PioWrite(port @ COM1..=LAST, data) => {
                serial.lock().unwrap().write((port - COM1) as u8, data[0]).unwrap();
            }
            other => panic!("{other:?}"),
        }
        Continue(())
    })?;
    let echoed = serial.lock().unwrap().writer().clone();
    assert_eq!(echoed, TEXT, "the guest read all of it, in order");
    assert_eq!(handlers, TEXT.len(), "one interrupt for each byte that was left");
    println!(
        "{} bytes read by {handlers} level interrupts of a vm-superio serial port",
        echoed.len()
    );
    Ok(())
}
