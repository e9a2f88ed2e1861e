// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor under every figure of this VMM: the same guest, with the round trip written out in bare ioctls, an eventfd write and
//! an eventfd read.
//!
//! `cargo run --release -p vmm-ref --example floor [COUNT [RUNS]]`

use std::error::Error;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hdrhistogram::Histogram;
use vmm_ref::guest::{Controller, Program};
use vmm_ref::machine::{DEV_KVM, Machine, open_kvm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn round_trips(controller: Controller, spin: bool, count: u64) -> Result<(Histogram<u64>, u32, u32), Box<dyn Error>> {
    let kvm = open_kvm(Path::new(DEV_KVM))?;
    let program = Program {
        controller,
        devices: 1,
        acknowledge: false,
        eoi: true,
    };
    let machine = Machine::new(&kvm, &program.assemble()?)?;
    let status = machine.status()?;
    let registers = status.device(0)?;
    let trigger = EventFd::new(0)?;
    let resample = EventFd::new(if spin { EFD_NONBLOCK } else { 0 })?;
    machine
        .vm()
        .register_irqfd_with_resample(&trigger, &resample, controller.gsi().0)?;
    let running = machine.start(|_| Ok(()))?;

    let mut latency = Histogram::new_with_bounds(1, 10_000_000_000, 3)?;
    for round in 0..count {
        registers.raised.store(round as u32 + 1, Ordering::Release);
        let asserted = Instant::now();
        trigger.write(1)?;
        if spin {
            while resample.read().is_err() {}
        } else {
            resample.read()?;
        }
        latency.saturating_record(asserted.elapsed().as_nanos() as u64);
        // Only where the host ends interrupts at injection.
        while !registers.is_served() {
            std::hint::spin_loop();
        }
    }
    let counts = (status.handler_runs(), status.found_nothing());
    running.stop()?;
    Ok((latency, counts.0, counts.1))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(10_000), |n| n.parse())?;
    let runs = arguments.next().map_or(Ok(3), |n| n.parse())?;
    for controller in [Controller::Pic, Controller::Ioapic] {
        for spin in [false, true] {
            for _ in 0..runs {
                let (latency, handler_runs, found_nothing) = round_trips(controller, spin, count)?;
                let us = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
                println!(
                    "{controller:?} {} p50 {:.1} p90 {:.1} p99 {:.1} us, {handler_runs} handler runs, {found_nothing} found nothing",
                    if spin { "busy-poll" } else { "block" },
                    us(0.5),
                    us(0.9),
                    us(0.99),
                );
            }
        }
    }
    Ok(())
}
