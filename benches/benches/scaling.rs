// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A round trip on one of 1 to 1024 lines of userspace IOAPICs, and on a line that 1 to 32 devices share.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use benches::scaling::{LINES, Lines, SHARERS};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn scaling(c: &mut Criterion) {
    let mut group = c.benchmark_group("lines");
    for count in LINES {
        let mut lines = Lines::new(count).unwrap();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| lines.round_trip().unwrap());
        });
    }
    group.finish();
    let mut group = c.benchmark_group("sharers");
    for count in SHARERS {
        let mut lines = Lines::shared(count).unwrap();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| lines.round_trip().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, scaling);
criterion_main!(benches);
