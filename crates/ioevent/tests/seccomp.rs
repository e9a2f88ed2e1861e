// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of a vCPU's thread, of which a VMM's seccomp filter has a list.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use ioevent::{IoeventBus, Length, Match, Space};
use testkit::seccomp::with_only;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn a_store_writes_and_asks_for_room_and_no_more() {
    let bus = IoeventBus::userspace();
    let registrations = [EFD_NONBLOCK, 0].map(|flags| {
        let event = Arc::new(EventFd::new(flags).unwrap());
        let at = Match::mmio(0x1000 * flags as u64, Length::Bytes4);
        (bus.register(at, event.clone()).unwrap(), event, at)
    });
    with_only(&[libc::SYS_ppoll, libc::SYS_write], || {
        for (_, _, at) in &registrations {
            assert!(bus.dispatch(Space::Mmio, at.address, &[0; 4]).unwrap());
        }
    });
    for (_, event, _) in &registrations {
        assert_eq!(event.read().unwrap(), 1);
    }
}
