// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An explorer of failures: the real `Intx`, `Relay` and registry run over a device, a line and a notifier whose every single
//! request can fail. One thread moves everything on, one step at a time: the event loop, the kernel's part of an irqfd and of
//! an unmask eventfd, the guest's handler.
//!
//! Every sequence of events up to a depth is tried, from every wiring and every moment of an interrupt. Afterwards nobody
//! asks anything of INTx, the world runs on, and [`claims`] says what has to hold. `IRQ_TEST_DEPTH` sets the depth of the
//! sequences in which requests fail; 3 takes several minutes.
//!
//! The guest's controller is a model here. The explorers of user-irqchip and of kvm-irqfd search the real ones.
//! "What the explorers find" in `docs/conformance.md` has what each of them is known to find.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod claims;
mod epoll;
mod faults;
mod guest;
mod search;
mod watch;
mod wires;
mod world;

use std::sync::{Mutex, PoisonError};

use search::Search;

/// Open files are counted, so that one search runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[track_caller]
fn explore(depth: usize, faults: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let search = Search::explore(depth, faults);
    println!("{} sequences", search.runs);
    assert!(
        search.findings.is_empty(),
        "{} findings:\n{}",
        search.findings.len(),
        search.report()
    );
}

#[test]
fn nothing_is_lost_when_requests_fail() {
    let depth = std::env::var("IRQ_TEST_DEPTH")
        .ok()
        .and_then(|depth| depth.parse().ok());
    explore(depth.unwrap_or(2), 1);
}

#[test]
fn nothing_is_lost_when_nothing_fails() {
    explore(3, 0);
}
