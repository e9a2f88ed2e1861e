// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor under every figure of this VMM: the same guest, with the round trip written out in bare ioctls, an eventfd write and
//! an eventfd read. Bare and composed runs alternate, and the medians of their percentiles are compared.
//!
//! `cargo run --release -p vmm-ref --example floor [COUNT [RUNS]]`

use std::error::Error;
use std::hint::spin_loop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kvm_ioctls::Kvm;
use vmm_ref::composition::Irqchip;
use vmm_ref::composition::{Composition, Wait};
use vmm_ref::guest::{Controller, Idle, Program};
use vmm_ref::latency::{Latency, Percentiles};
use vmm_ref::machine::{DEV_KVM, Machine, open_kvm};
use vmm_ref::run::{Options, run};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn bare(kvm: &Kvm, controller: Controller, spin: bool, count: u64) -> Result<Option<Percentiles>, Box<dyn Error>> {
    let program = Program {
        controller,
        devices: 1,
        edu: false,
        acknowledge: false,
        eoi: true,
        idle: Idle::Halt,
    };
    let machine = Machine::new(kvm, &program.assemble()?, Irqchip::Kernel)?;
    let registers = machine.status()?.device(0)?;
    let trigger = EventFd::new(0)?;
    let resample = EventFd::new(if spin { EFD_NONBLOCK } else { 0 })?;
    machine
        .vm()
        .register_irqfd_with_resample(&trigger, &resample, controller.gsi().0)?;
    let controllers = machine.controllers()?;
    let running = machine.start(&controllers, || Ok(()))?;

    let mut latency = Latency::new();
    for round in 1..=count as u32 {
        registers.raised.store(round, Ordering::Release);
        let asserted = Instant::now();
        trigger.write(1)?;
        if spin {
            while resample.read().is_err() {
                spin_loop();
            }
        } else {
            resample.read()?;
        }
        latency.record(asserted.elapsed());
        // It is served already, except where the host ends interrupts before the handler has run.
        while !registers.is_served() {
            spin_loop();
        }
    }
    running.stop()?;
    Ok(latency.percentiles())
}

fn composed(kvm: &Kvm, controller: Controller, wait: Wait, count: u64) -> Result<Option<Percentiles>, Box<dyn Error>> {
    let options = Options {
        composition: Composition {
            wait,
            ..Composition::in_kernel(controller)
        },
        count,
        guest_eoi: true,
        swap_every: None,
    };
    Ok(run(Some(kvm), &options, &AtomicBool::new(false), &mut |_| {})?.latency)
}

/// p50 and p99, each the median of several runs.
fn medians(runs: &[Percentiles]) -> (f64, f64) {
    let median = |of: fn(&Percentiles) -> f64| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (median(|run| run.p50), median(|run| run.p99))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(10_000), |n| n.parse())?;
    let runs = arguments.next().map_or(Ok(5), |n| n.parse::<u32>())?.max(1);
    let kvm = open_kvm(Path::new(DEV_KVM))?;
    for controller in [Controller::Pic, Controller::Ioapic] {
        let mut all = [const { Vec::new() }; 5];
        for _ in 0..runs {
            all[0].extend(bare(&kvm, controller, false, count)?);
            all[1].extend(composed(&kvm, controller, Wait::Block, count)?);
            all[2].extend(bare(&kvm, controller, true, count)?);
            all[3].extend(composed(&kvm, controller, Wait::Spin, count)?);
            all[4].extend(composed(&kvm, controller, Wait::Adaptive, count)?);
        }
        let all = all.map(|runs| medians(&runs));
        let names = [
            "bare, blocking read",
            "composed, block",
            "bare, busy poll",
            "composed, spin",
            "composed, adaptive",
        ];
        let floors = [0, 0, 2, 2, 2];
        for ((name, (p50, p99)), floor) in names.iter().zip(&all).zip(floors) {
            println!(
                "{controller:?} {name:<20} p50 {p50:6.1} us, p99 {p99:7.1} us, p50 {:.2} of bare, {:.2} of bare blocking",
                p50 / all[floor].0,
                p50 / all[0].0,
            );
        }
    }
    Ok(())
}
