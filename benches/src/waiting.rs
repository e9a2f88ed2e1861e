// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Adaptive waiting beside bare polling and bare blocking, on an idle and on a busy host, and the processor time of an
//! adaptive wait without events.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvm_ioctls::Kvm;
use kvm_irqfd::{WaitMode, Waiter};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};
use vmm_ref::composition::options::{Composition, Controller, Wait};

use crate::Result;
use crate::floor::Floor;
use crate::measure::{Extent, Subject, ratio};
use crate::results::{Adaptive, Waiting};
use crate::ways::{of_composition, of_floor};

/// `--only` with this name measures this and nothing else.
pub const ONLY: &str = "waiting";

/// Makes all three measurements on the in-kernel irqchip.
///
/// # Errors
/// The first run that fails.
pub fn measure(kvm: &Kvm, extent: Extent, interrupted: &AtomicBool) -> Result<Waiting> {
    Ok(Waiting {
        idle: compare(kvm, extent, interrupted)?,
        busy: with_neighbours(|| compare(kvm, extent, interrupted))?,
        // A second has a thousand milliseconds.
        second_per_mille: second()?.as_secs_f64() * 1000.0,
    })
}

fn compare(kvm: &Kvm, extent: Extent, interrupted: &AtomicBool) -> Result<Adaptive> {
    let adaptive = Composition {
        wait: Wait::Adaptive,
        ..Composition::in_kernel(Controller::Pic)
    };
    let floor = |polls| Floor {
        polls,
        ..Floor::under(&adaptive)
    };
    let mut subjects: [Subject<'_>; 3] = [
        of_floor(Some(kvm), floor(true)),
        of_floor(Some(kvm), floor(false)),
        of_composition(Some(kvm), adaptive, 0, interrupted),
    ];
    let mut medians = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..extent.turns {
        for (subject, medians) in subjects.iter_mut().zip(&mut medians) {
            medians.extend((subject.round_trips)(extent.rounds)?.percentiles().map(|of| of.p50));
        }
    }
    let [polling, blocking, adaptive] = &medians;
    Ok(Adaptive {
        over_polling: ratio(adaptive, polling),
        over_blocking: ratio(adaptive, blocking),
    })
}

/// Runs `what` while a thread keeps each processor busy.
fn with_neighbours<T>(what: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = what();
        stop.store(true, Ordering::Relaxed);
        done
    })
}

/// The processor time of one wait that lasts a second, by a waiter that has adapted to fast events.
fn second() -> Result<Duration> {
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let mut waiter = Waiter::new(WaitMode::Adaptive);
    for _ in 0..1000 {
        signal(&event)?;
        waiter.wait(event.as_fd())?;
    }
    let wakes = event.try_clone()?;
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        signal(&wakes)
    });
    let before = clock_gettime(ClockId::ThreadCPUTime);
    waiter.wait(event.as_fd())?;
    let after = clock_gettime(ClockId::ThreadCPUTime);
    if later.join().is_err() {
        anyhow::bail!("the thread that ends the wait panicked");
    }
    let time = |of: rustix::time::Timespec| Duration::new(of.tv_sec as u64, of.tv_nsec as u32);
    Ok(time(after) - time(before))
}

fn signal(event: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes()).map(drop)
}
