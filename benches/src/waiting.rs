// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Adaptive waiting compared with blocking, on an idle and on a busy host, and the processor time of an adaptive wait
//! without events.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvm_ioctls::Kvm;
use kvm_irqfd::{WaitMode, Waiter};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};
use vmm_ref::composition::options::{Composition, Controller, Wait};
use vmm_ref::roundtrip::run::run;
use vmm_ref::roundtrip::summary::Options;

use crate::Result;
use crate::measure::{Extent, ratio};
use crate::results::{Spread, Waiting};

/// Makes all three measurements on the in-kernel 8259.
///
/// # Errors
/// The first run that fails.
pub fn measure(kvm: &Kvm, extent: Extent, interrupted: &AtomicBool) -> Result<Waiting> {
    let idle = compare(kvm, extent, interrupted)?;
    let busy = with_neighbours(|| compare(kvm, extent, interrupted))?;
    Ok(Waiting {
        idle,
        busy,
        second_us: second()?.as_nanos() as f64 / 1000.0,
    })
}

fn compare(kvm: &Kvm, extent: Extent, interrupted: &AtomicBool) -> Result<Spread> {
    let mut medians = [Vec::new(), Vec::new()];
    for _ in 0..extent.turns {
        for (wait, medians) in [Wait::Adaptive, Wait::Block].into_iter().zip(&mut medians) {
            let options = Options {
                composition: Composition {
                    wait,
                    ..Composition::in_kernel(Controller::Pic)
                },
                count: extent.rounds,
                without: None,
                swap_every: None,
            };
            medians.extend(
                run(Some(kvm), &options, interrupted, &mut |_| {})?
                    .latency
                    .map(|of| of.p50),
            );
        }
    }
    Ok(ratio(&medians[0], &medians[1]))
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
