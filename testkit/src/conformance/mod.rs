// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One body of interrupt-line semantics for every backend: the in-kernel irqchip and the models in userspace.
//!
//! Each row of the conformance list is one function over a fresh rig. A backend takes all rows of a kind with
//! [`add_rows`]. The observations are Linux's, 6.18; a row whose behaviour came with a kernel version names that
//! version in [`Row::kernel_needs`].

pub mod cases;
pub mod ioapic;
pub mod pic;

use std::sync::Arc;
use std::time::Duration;

use crate::harness::Suite;
use crate::need::Need;

/// One row over a kind of rig (`dyn` [`Rig`](crate::rig::Rig), `dyn` [`PicRig`](crate::rig::PicRig)).
#[derive(Debug)]
pub struct Row<R: ?Sized + 'static> {
    /// The row's name: `row_`, its number, and its statement.
    pub name: &'static str,
    /// The needs that the kernel's backend adds to its own. A backend in userspace ignores them.
    pub kernel_needs: &'static [Need],
    /// Time limit.
    pub limit: Duration,
    /// The row itself; panics when the backend differs.
    pub body: fn(&mut R),
}

/// Adds all of `rows` to `suite`, each as `<backend>::<row>` on a rig of its own. `needs` returns the needs of a row.
pub fn add_rows<R: ?Sized>(
    suite: Suite,
    backend: &str,
    rows: &'static [Row<R>],
    needs: impl Fn(&Row<R>) -> Vec<Need>,
    rig: impl Fn() -> Box<R> + Send + Sync + 'static,
) -> Suite {
    let rig = Arc::new(rig);
    rows.iter().fold(suite, |suite, row| {
        let rig = rig.clone();
        let name = format!("{backend}::{}", row.name);
        suite.test_within(row.limit, name, &needs(row), move || (row.body)(&mut rig()))
    })
}

/// Defines `ROWS` from lines of `function [kernel needs] time limit;`.
macro_rules! rows {
    ($rig:ty; $($row:ident [$($need:expr),*] $limit:expr;)*) => {
        /// All rows, in the order of the list.
        pub const ROWS: &[$crate::conformance::Row<$rig>] = &[
            $($crate::conformance::Row {
                name: stringify!($row),
                kernel_needs: &[$($need),*],
                limit: $limit,
                body: |rig| $row(rig),
            }),*
        ];
    };
}
use rows;
