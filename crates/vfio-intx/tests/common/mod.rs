// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of this crate share: a guest with two interrupt lines, and the rows of the conformance list, which
//! run on any device that a [`Rig`] can drive.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

pub mod guest;
#[cfg(target_arch = "x86_64")]
pub mod kvm_guest;
pub mod model_rig;
pub mod rows;
#[cfg(target_arch = "x86_64")]
pub mod split_guest;
pub mod vfio_rows;
pub mod world;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use interrupt_core::forward::{Connection, Consumer, DeviceInterrupt, GuestLine};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_intx::Intx;
use vfio_intx::irq_set::{IrqInfo, IrqSet};

/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A device with an INTx line that is high while its status is not 0.
pub trait Rig: Send + Sync {
    /// Its interrupt as the state machine sees it.
    fn interrupt(&self) -> Arc<dyn DeviceInterrupt>;
    /// VFIO_DEVICE_SET_IRQS.
    fn set_irqs(&self, request: &IrqSet<'_>) -> std::io::Result<()>;
    /// VFIO_DEVICE_GET_IRQ_INFO of INTx.
    fn irq_info(&self) -> IrqInfo;
    /// Sets bits of the status.
    fn raise(&self, bits: u32);
    /// Clears bits of the status.
    fn acknowledge(&self, bits: u32);
    /// The status.
    fn status(&self) -> u32;
    /// The guest's write of Interrupt Disable.
    fn set_disintx(&self, disable: bool);
    /// Lets the kernel do what it does on its own.
    fn pump(&self);
    /// How long nothing must happen, to be called nothing.
    fn quiet(&self) -> Duration;
}

/// A connection of `intx`, and the VMM's handle of it.
pub fn connection(intx: Intx) -> (Arc<Intx>, Connection) {
    let intx = Arc::new(intx);
    (Arc::clone(&intx), Connection::new(intx))
}

/// A line as the consumer's end of a connection.
pub fn to(line: GuestLine) -> Option<Arc<dyn Consumer>> {
    Some(Arc::new(line))
}

/// An eventfd.
pub fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Signals an eventfd.
pub fn signal(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// The count of an eventfd, which is 0 afterwards.
pub fn take(fd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(errno) => panic!("read(eventfd): {errno}"),
    }
}

/// Waits for a count for at most `limit`, and takes it.
pub fn take_within(fd: BorrowedFd<'_>, limit: Duration) -> u64 {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
        match take(fd) {
            0 if !left.is_zero() => {}
            count => return count,
        }
    }
}

/// A file that is no eventfd.
pub fn no_eventfd() -> File {
    File::open("/dev/null").unwrap()
}
