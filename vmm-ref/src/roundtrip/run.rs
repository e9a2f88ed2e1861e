// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run: builds a machine and the parts of its composition, drives the traffic, and returns the summary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvm_ioctls::Kvm;

use crate::composition::check::Impossible;
use crate::composition::options::{Composition, DeviceKind, Forward, MachineKind, Without};
use crate::error::{Error, Result};
use crate::passthrough::bar::Bar;
use crate::passthrough::forwarding::Forwarding;
use crate::roundtrip::device::Device;
use crate::roundtrip::doorbell::Doorbell;
use crate::roundtrip::guest::program::{Idle, Program};
use crate::roundtrip::guest::status::Status;
use crate::roundtrip::machine::Machine;
use crate::roundtrip::parts::Parts;
use crate::roundtrip::soft::SoftMachine;
use crate::roundtrip::summary::{Options, Summary};
use crate::roundtrip::swapper::Swapper;
use crate::roundtrip::traffic::{Progress, Traffic};
use crate::vm::irqchip::Controllers;
use crate::vm::stall::{INTERVAL, STALL_LIMIT, StallDetector};

/// How long a negative control waits, in own time, for an EOI after the handler has run. A host that ends interrupts by
/// itself does so before the handler starts, and the notification takes microseconds.
const NO_EOI_LIMIT: Duration = Duration::from_millis(250);

/// How long the guest keeps running after the last request, so that it takes and counts spurious interrupts.
const LINGER: Duration = Duration::from_millis(10);

/// Makes the run, until all round trips are complete, `interrupted` becomes true, or the run stalls. Calls
/// `on_progress` with the number of completed round trips at intervals. The soft machine needs no `kvm`.
///
/// # Errors
/// When the parts cannot be built, the guest fails, or a system call fails. Lost interrupts are no error: they are an
/// [`Outcome`](crate::roundtrip::summary::Outcome).
pub fn run(
    kvm: Option<&Kvm>,
    options: &Options,
    interrupted: &AtomicBool,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Summary> {
    let composition = &options.composition;
    composition.check()?;
    composition.check_control(options.without)?;
    let (mut guest, controllers) = Guest::new(kvm, composition, options.without)?;
    let status = guest.status()?;
    let parts = Parts::compose(&controllers, &status, composition)?;
    if let Some(passthrough) = &parts.passthrough {
        guest.map_bar(passthrough.edu.bar())?;
    }
    let forwarding = parts.forwarding().and_then(Forwarding::explanation);
    let pulses = parts.forwarding().is_some_and(Forwarding::pulses);
    let progress = Arc::new(Progress::default());
    let swapper = match (parts.forwarding(), options.swap_every) {
        (Some(forwarding), Some(every)) => Some(Swapper::start(forwarding, every, &progress)?),
        (None, Some(_)) => return Err(Impossible::NoSwap(Forward::None).into()),
        (_, None) => None,
    };
    let Parts {
        devices,
        mut eois,
        passthrough,
        modelled,
    } = parts;
    let doorbell = match (&mut guest, composition.doorbell) {
        (Guest::Kvm(machine), Some(path)) => Some(Doorbell::new(machine, path.bus(machine), options.count)?),
        // A composition with a doorbell and the soft machine is refused earlier.
        (Guest::Soft(_), Some(_)) | (_, None) => None,
    };
    let acknowledged = Arc::clone(&devices);
    let on_acknowledge = move || Ok(acknowledged.iter().try_for_each(|device| device.update().map(drop))?);
    let running = match guest {
        Guest::Kvm(machine) => machine.start(&controllers, on_acknowledge),
        Guest::Soft(machine) => machine.start(&controllers, on_acknowledge),
    }?;
    if let Some(doorbell) = &doorbell {
        doorbell.wait(&running, interrupted)?;
    }

    let stop = eois.stop();
    let (mut traffic, shared, looks_after) = (
        Traffic::new(Arc::clone(&devices), options.count),
        Arc::clone(&progress),
        thread::current(),
    );
    let thread = thread::Builder::new()
        .name("devices".to_owned())
        .spawn(move || {
            let ended = traffic.run(&mut eois, &shared);
            looks_after.unpark();
            ended.map(|()| traffic)
        })
        .map_err(|source| Error::System {
            step: "starting the devices' thread",
            source,
        })?;
    let mut stall = StallDetector::new(STALL_LIMIT);
    let mut silence = StallDetector::new(NO_EOI_LIMIT);
    while !thread.is_finished() && !running.has_ended() {
        if interrupted.load(Ordering::Acquire) {
            progress.finish();
        }
        let done = progress.done();
        on_progress(done);
        let served = devices.iter().all(Device::is_served);
        let serviced = devices.iter().map(Device::serviced).sum::<u64>();
        // Without the guest's EOI the handler serves one request, and no EOI may follow.
        let is_silent = options.without.is_some() && served && serviced > 0 && silence.is_stalled(serviced);
        if is_silent || stall.is_stalled(done) {
            break;
        }
        thread::park_timeout(INTERVAL);
    }
    // Stop the devices' thread first. Return the guest's error before the others, because it causes them.
    let stopped = stop.stop();
    let traffic = thread.join();
    progress.finish();
    let swaps = swapper.map(Swapper::join);
    thread::sleep(LINGER);
    running.stop()?;
    stopped?;
    if let Some(passthrough) = passthrough {
        // Ask the device first: a device that does not answer explains lost interrupts.
        let answer = passthrough.edu.bar().status();
        answer.map_err(|source| Error::System {
            step: "asking the device for its status",
            source,
        })?;
        passthrough.forwarding.stop()?;
    }
    if let Some(modelled) = modelled {
        modelled.forwarding.stop()?;
    }
    let traffic = traffic.map_err(|_| Error::Guest("the devices' thread panicked".to_owned()))??;
    let mut summary = Summary::new(
        options,
        &traffic,
        &devices,
        &status,
        pulses,
        doorbell.map(Doorbell::summary).transpose()?,
        interrupted.load(Ordering::Acquire),
    );
    summary.forwarding = forwarding;
    summary.swaps = swaps.transpose()?;
    Ok(summary)
}

/// The machine of a run, before it starts.
pub(crate) enum Guest {
    Kvm(Machine),
    Soft(SoftMachine),
}

impl Guest {
    /// The machine of a composition, whose guest leaves out `without`, and its interrupt controllers.
    pub(crate) fn new(
        kvm: Option<&Kvm>,
        composition: &Composition,
        without: Option<Without>,
    ) -> Result<(Self, Controllers)> {
        let program = Program {
            controller: composition.controller,
            devices: composition.sharers,
            edu: matches!(composition.device, DeviceKind::Vfio(_) | DeviceKind::VfioUser(_)),
            acknowledge: composition.acknowledge(),
            without,
            idle: Idle::on(composition.irqchip),
        };
        match (composition.machine, kvm) {
            (MachineKind::Kvm, Some(kvm)) => {
                let machine = Machine::new(kvm, &program.assemble()?, composition.irqchip)?;
                let controllers = machine.controllers()?;
                Ok((Self::Kvm(machine), controllers))
            }
            (MachineKind::Kvm, None) => Err(Error::Absent("--machine kvm: KVM was not opened".to_owned())),
            (MachineKind::Soft, _) => Ok((Self::Soft(SoftMachine::new(program)?), Controllers::user()?)),
        }
    }

    fn map_bar(&mut self, bar: &Arc<Bar>) -> Result<()> {
        match self {
            Self::Kvm(machine) => machine.map_bar(Arc::clone(bar)),
            Self::Soft(_) => Err(Impossible::SoftHasNoBar.into()),
        }
    }

    pub(crate) fn status(&self) -> Result<Status> {
        match self {
            Self::Kvm(machine) => machine.status(),
            Self::Soft(machine) => machine.status(),
        }
    }
}
