// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM with a bus of its own, which calls a closure for the address of each exit. The VMM adds one line before the
//! bus: ioevent serves each store to a doorbell that exits.
//!
//! The same guest runs with and without KVM's ioeventfds. The doorbells ring in both runs; without ioeventfds their
//! stores exit.

use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::sync::Arc;

use ioevent::{IoeventBus, Length, Match, Space};
use small_vmm::{DONE, Error, Exit, SmallVmm, outb, skip_without_kvm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Beyond the guest's memory, and within reach of real mode.
const DOORBELL: u64 = 0xd_0000;
const PORT: u16 = 0x300;
/// The VMM's own register.
const REGISTER: u16 = 0x301;

/// The VMM's own bus.
type Bus = BTreeMap<u16, Box<dyn FnMut(u8)>>;

fn main() -> Result<(), Error> {
    if skip_without_kvm("ioevent-on-own-bus") {
        return Ok(());
    }
    let in_kernel = ring(|vmm| IoeventBus::kvm(vmm.vm().clone()))?;
    let trapped = ring(|_| IoeventBus::userspace())?;
    assert_eq!(in_kernel, 0, "no doorbell may exit where the kernel has them all");
    assert_eq!(trapped, 3, "every doorbell exits where the kernel has none");
    println!("3 doorbells rang: {in_kernel} by exits with KVM's ioeventfds, {trapped} by exits without");
    Ok(())
}

/// Lets a guest ring two doorbells three times, and returns how many rings were exits.
fn ring(bus: impl FnOnce(&SmallVmm) -> IoeventBus) -> Result<usize, Error> {
    let mut vmm = SmallVmm::new()?;
    let program = [
        &[0xb8, 0x00, 0xd0, 0x8e, 0xd8][..],   // mov ax, 0xd000; mov ds, ax
        &[0xb8, 0x07, 0x00, 0xa3, 0x00, 0x00], // mov ax, 7; mov [0], ax
        &[0xb8, 0x08, 0x00, 0xa3, 0x00, 0x00], // mov ax, 8; mov [0], ax: not this doorbell's datamatch
        &outb(PORT, 1),
        &outb(PORT, 2),
        &outb(REGISTER, 0x5a),
        &outb(DONE, 0),
    ];
    vmm.load(&program.concat())?;

    let bus = bus(&vmm);
    let (queue, port) = (doorbell()?, doorbell()?);
    let at_queue = Match::mmio(DOORBELL, Length::Bytes2).with_datamatch(7);
    let _queue = bus.register(at_queue, queue.clone())?;
    let _port = bus.register(Match::pio(PORT.into(), Length::Any), port.clone())?;

    let (written, mut rung, mut unclaimed) = (Arc::new(std::sync::Mutex::new(Vec::new())), 0, 0);
    let log = written.clone();
    let mut own: Bus = BTreeMap::new();
    own.insert(REGISTER, Box::new(move |value| log.lock().unwrap().push(value)));
    vmm.run(|exit| {
        match exit {
            // The line that was added, once for each kind of store.
            Exit::MmioWrite(address, data) if bus.dispatch(Space::Mmio, address, data).unwrap() => rung += 1,
            Exit::PioWrite(port, data) if bus.dispatch(Space::Pio, port.into(), data).unwrap() => rung += 1,
            // The VMM's own bus.
            Exit::PioWrite(DONE, _) => return Break(()),
            Exit::PioWrite(port, data) if own.contains_key(&port) => own.get_mut(&port).unwrap()(data[0]),
            Exit::MmioWrite(DOORBELL, _) => unclaimed += 1,
            other => panic!("{other:?}"),
        }
        Continue(())
    })?;
    assert_eq!(queue.read()?, 1, "one store had the datamatch");
    assert_eq!(port.read()?, 2, "two stores to the port");
    assert_eq!(unclaimed, 1, "the store with other data stays the VMM's");
    assert_eq!(
        *written.lock().unwrap(),
        [0x5a],
        "the VMM's own register is still its own"
    );
    Ok(rung)
}

fn doorbell() -> Result<Arc<EventFd>, Error> {
    Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?))
}
