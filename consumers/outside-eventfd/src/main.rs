// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device in another process, which brings its own eventfds, as vhost-user and vfio-user devices do. The device
//! signals one eventfd to assert its line, and the other eventfd is signalled at the guest's EOI. The VMM passes both
//! eventfds to KVM, and takes no part in the signals.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::ControlFlow::{Break, Continue};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use interrupt_core::{EoiNotifier, Gsi, Listener};
use kvm_irqfd::{KvmInterrupts, eventfd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use small_vmm::{AFTER_EOI, Error, Exit, IN_HANDLER, READY, SmallVmm, skip_without_kvm};

const IRQ: u8 = 5;
const ROUNDS: u32 = 3;

fn main() -> Result<ExitCode, Error> {
    if std::env::args().nth(1).as_deref() == Some("device") {
        return device().map(|()| ExitCode::SUCCESS);
    }
    if skip_without_kvm("outside-eventfd") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut vmm = SmallVmm::new()?;
    vmm.serve_level_irq(IRQ, &[])?;
    let interrupts = KvmInterrupts::new(vmm.vm().clone())?;

    let (ours, theirs) = UnixStream::pair()?;
    let mut device = Command::new(std::env::current_exe()?)
        .arg("device")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let (trigger, eoi) = receive(&ours)?;
    let line = interrupts.resample_source_with(Gsi(IRQ.into()), "peer", eventfd::from_owned(trigger))?;
    let _guard = interrupts.subscribe(line.key().into(), Listener::fd(eoi))?;

    let (mut taken, mut ended) = (0, 0);
    vmm.run(|exit| {
        match exit {
            Exit::PioWrite(READY, _) => drop(rustix::io::write(&ours, b"go").unwrap()),
            Exit::PioWrite(IN_HANDLER, _) => taken += 1,
            Exit::PioWrite(AFTER_EOI, _) => ended += 1,
            other => panic!("{other:?}"),
        }
        if ended == ROUNDS { Break(()) } else { Continue(()) }
    })?;
    assert_eq!(taken, ROUNDS);
    let status = device.wait()?;
    assert!(status.success(), "the device in the other process: {status}");
    println!("{taken} interrupts of a device in another process, which was told of each EOI");
    Ok(ExitCode::SUCCESS)
}

/// The other process: asserts, and waits to be told of the EOI before it asserts again.
fn device() -> Result<(), Error> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let (trigger, eoi) = (rustix::event::eventfd(0, flags)?, rustix::event::eventfd(0, flags)?);
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [trigger.as_fd(), eoi.as_fd()];
    assert!(
        control.push(SendAncillaryMessage::ScmRights(&fds)),
        "there is room for both"
    );
    sendmsg(socket, &[IoSlice::new(b"fds")], &mut control, SendFlags::empty())?;
    rustix::io::read(socket, &mut [0; 2])?;

    for round in 1..=ROUNDS {
        rustix::io::write(&trigger, &1u64.to_ne_bytes())?;
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&eoi, PollFlags::IN)], Some(&patience))?;
        let mut count = [0; 8];
        if ready == 0 || rustix::io::read(&eoi, &mut count)? != 8 || u64::from_ne_bytes(count) != 1 {
            return Err(format!("round {round}: not told of one EOI").into());
        }
    }
    Ok(())
}

/// The two eventfds that the device sends.
fn receive(socket: &UnixStream) -> Result<(OwnedFd, OwnedFd), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 3];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    match (fds.next(), fds.next()) {
        (Some(trigger), Some(eoi)) => Ok((trigger, eoi)),
        _ => Err("the device sent no eventfds".into()),
    }
}
