// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of a vCPU's thread, of which a VMM's seccomp filter has a list: those of the guest's writes to the
//! command register, of MSI and back, of another route, and of an EOI. A real device adds its ioctl
//! VFIO_DEVICE_SET_IRQS.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use interrupt_core::Gsi;
use interrupt_core::forward::{Connection, GuestLine, Path};
use interrupt_core::testing::ManualNotifier;
use testkit::seccomp::with_only;
use vfio_intx::{DirectIntx, Intx, ModelIntx, State};

#[path = "common/irqfd.rs"]
mod irqfd;
use irqfd::source;

struct Rig {
    device: Arc<ModelIntx>,
    notifier: Arc<ManualNotifier>,
}

impl Rig {
    fn new() -> Self {
        Self {
            device: Arc::new(ModelIntx::new("model")),
            notifier: Arc::new(ManualNotifier::default()),
        }
    }

    fn line(&self, gsi: u32) -> GuestLine {
        GuestLine::split(source(gsi), self.notifier.clone())
    }
}

/// The ioctl is FIONBIO, of the eventfd that the EOI signals. The last two are those of the model, which plays VFIO: the model
/// looks whether it was given an eventfd, and whether that eventfd was signalled.
const CALLS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_read,
    libc::SYS_write,
    READ_LINK,
    libc::SYS_ppoll,
];

#[cfg(target_arch = "x86_64")]
const READ_LINK: i64 = libc::SYS_readlink;
#[cfg(not(target_arch = "x86_64"))]
const READ_LINK: i64 = libc::SYS_readlinkat;

#[test]
fn without_a_relay() {
    let rig = Rig::new();
    let intx = DirectIntx::new(rig.device.clone(), rig.line(11)).unwrap();
    let other = rig.line(12);
    with_only(CALLS, || {
        assert_eq!(intx.enable().unwrap(), State::Carried(Path::SplitKick));
        rig.notifier.eoi(Gsi(11)).unwrap();
        intx.set_line(other).unwrap();
        rig.notifier.eoi(Gsi(12)).unwrap();
        intx.disable().unwrap();
    });
}

#[test]
fn with_a_relay() {
    let rig = Rig::new();
    let (intx, mut relay) = Intx::new(rig.device.clone()).unwrap();
    let intx = Arc::new(intx);
    let connection = Connection::new(intx.clone());
    let lines = [
        rig.line(11),
        GuestLine::relay(rig.line(12).source().clone(), rig.notifier.clone(), "a trial"),
    ];
    with_only(CALLS, || {
        intx.enable().unwrap();
        for line in lines {
            let gsi = line.source().key().gsi();
            connection.set_consumer(Some(Arc::new(line))).unwrap();
            rig.notifier.eoi(gsi).unwrap();
            intx.set_disintx(true).unwrap();
            intx.set_disintx(false).unwrap();
            intx.enter_msi().unwrap();
            intx.leave_msi().unwrap();
        }
        intx.disable().unwrap();
    });
    assert!(relay.wait(Some(std::time::Duration::ZERO)).is_ok());
}
