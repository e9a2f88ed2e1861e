// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vm-superio's unchanged serial port on a level-triggered line: the port's `Trigger` is a level source, and an EOI
//! asks the port for its level.
//!
//! The guest's handler reads one byte and returns, which a UART allows. A port with a pulse as its trigger would then
//! make no further interrupt.

use std::ops::ControlFlow::{Break, Continue};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interrupt_core::{Gsi, LevelInterrupt};
use kvm_irqfd::KvmInterrupts;
use small_vmm::{AFTER_EOI, Error, Exit, IN_HANDLER, READY, SmallVmm, inb, skip_without_kvm};
use vm_superio::{Serial, Trigger};

const IRQ: u8 = 4;
const COM1: u16 = 0x3f8;
const LAST: u16 = COM1 + 7;
const RECEIVED_DATA: u8 = 1;
const TEXT: &[u8] = b"three";

/// The port's interrupt, which the port only ever raises.
struct Line(Arc<LevelInterrupt>);

impl Trigger for Line {
    type E = interrupt_core::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_level(true)
    }
}

fn main() -> Result<(), Error> {
    if skip_without_kvm("superio-serial") {
        return Ok(());
    }
    let mut vmm = SmallVmm::new()?;
    // The handler reads a byte and writes the byte to a port, so that this program sees the bytes that the guest got.
    let read_one = [&inb(COM1)[..], &[0xba, 0xf8, 0x03, 0xee]].concat();
    vmm.serve_level_irq(IRQ, &read_one)?;

    let interrupts = KvmInterrupts::new(vmm.vm().clone())?;
    let source = interrupts.resample_source(Gsi(IRQ.into()), "serial")?;
    let line = Arc::new(LevelInterrupt::new(source, &interrupts)?);
    let serial = Mutex::new(Serial::new(Line(line.clone()), Vec::new()));
    // The port reports the begin of a cause; its registers show the end.
    let settle = |serial: &Serial<Line, _, Vec<u8>>| {
        let state = serial.state();
        let cause = !state.in_buffer.is_empty() && state.interrupt_enable & RECEIVED_DATA != 0;
        line.set_level(cause).unwrap();
    };

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
            Exit::PioRead(port @ COM1..=LAST, data) => {
                let mut serial = serial.lock().unwrap();
                data[0] = serial.read((port - COM1) as u8);
                settle(&serial);
            }
            Exit::PioWrite(port @ COM1..=LAST, data) => {
                let mut serial = serial.lock().unwrap();
                serial.write((port - COM1) as u8, data[0]).unwrap();
                settle(&serial);
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
