// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The round trip of a level interrupt, from assertion to the notification of its EOI, through every composition that
//! works on this host, each beside its floor. The name of a group contains `EOI` only if its negative control found
//! that the EOI is the guest's own.
//!
//! Criterion measures one composition after the other. Take ratios from `cargo xtask bench`, which measures in turns.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use benches::ways;
use criterion::{Criterion, criterion_group, criterion_main};
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};

fn round_trips(c: &mut Criterion) {
    let (kvm, interrupted) = (open_kvm(Path::new(DEV_KVM)), AtomicBool::new(false));
    if let Err(error) = &kvm {
        println!("left out: everything on KVM: {error}");
    }
    let ways = ways::here(kvm.as_ref().ok(), true, &interrupted).unwrap();
    for left_out in &ways.left_out {
        println!("left out: {}: {}", left_out.what, left_out.why);
    }
    for group in ways.groups {
        println!("negative control: {}: {}", group.control.group, group.control.finding);
        let what = if group.control.eoi { "EOI" } else { "end at injection" };
        let mut criterion = c.benchmark_group(format!("{}, {what}", group.control.group));
        // Each sample makes a new machine.
        criterion.sample_size(10).measurement_time(Duration::from_secs(1));
        for mut subject in group.subjects {
            criterion.bench_function(format!("{subject:?}"), |b| {
                b.iter_custom(|rounds| (subject.round_trips)(rounds).unwrap().total());
            });
        }
        criterion.finish();
    }
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
