// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of single operations: criterion's times from the last `cargo bench`, and counts of instructions, which do
//! not depend on the load of the host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::Result;

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// Criterion's medians under `directory`, in nanoseconds: lower bound, estimate, upper bound. Empty when there are
/// none.
pub fn criterion(directory: &Path) -> BTreeMap<String, [f64; 3]> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            if entry.file_name() == "new" {
                found.extend(one(&path));
            } else {
                directories.push(path);
            }
        }
    }
    found
}

fn one(directory: &Path) -> Option<(String, [f64; 3])> {
    let read = |name: &str| fs::read(directory.join(name)).ok();
    let benchmark: Benchmark = serde_json::from_slice(&read("benchmark.json")?).ok()?;
    let Estimates { median } = serde_json::from_slice(&read("estimates.json")?).ok()?;
    let Interval {
        lower_bound,
        upper_bound,
    } = median.confidence_interval;
    Some((benchmark.full_id, [lower_bound, median.point_estimate, upper_bound]))
}

/// Instructions of one operation, counted by valgrind for `program OPERATION COUNT`: the count for 2000 operations
/// minus the count for 1000.
///
/// # Errors
/// When valgrind is missing, or its output cannot be parsed.
pub fn instructions(program: &Path, operation: &str) -> Result<f64> {
    const SHORT: u64 = 1000;
    let of = |count: u64| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(program)
            .args(["operation", operation, &count.to_string()])
            .output()
            .context("valgrind cannot be run; install it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        ensure!(output.status.success(), "valgrind: {}: {last}", output.status);
        let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
        let instructions = collected.and_then(|of| of.trim().parse::<u64>().ok());
        instructions.context("valgrind does not say how many instructions it has seen")
    };
    Ok((of(2 * SHORT)? as f64 - of(SHORT)? as f64) / SHORT as f64)
}
