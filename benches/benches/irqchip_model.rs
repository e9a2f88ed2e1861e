// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of the userspace IOAPIC and 8259 pair on one processor, without system calls: the operations of
//! `src/operations.rs`. Their limits are in instructions, which `cargo xtask bench` counts.
//!
//! The measure is the thread's time on a processor, which the load of the machine does not change.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::time::Duration;

use benches::operations::ALL;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};

/// The time that this thread has spent on a processor.
struct CpuTime;

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn operations(c: &mut Criterion<CpuTime>) {
    for operation in &ALL {
        let mut ready = operation.ready().unwrap();
        c.bench_function(operation.name, |b| {
            b.iter_custom(|count| {
                let start = cpu_time();
                ready(count).unwrap();
                cpu_time() - start
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = operations
}
criterion_main!(benches);
