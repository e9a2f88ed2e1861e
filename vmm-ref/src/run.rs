// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run: a machine, the parts of its composition, traffic through them, and the account of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use interrupt_core::forward::Explanation;
use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::composition::{Composition, DeviceKind, Forward, Impossible, MachineKind};
use crate::controllers::Controllers;
use crate::device::Device;
use crate::doorbell::{self, Doorbell};
use crate::error::{Error, Result};
use crate::guest::{Controller, Idle, Program, Status};
use crate::latency::{Latency, Percentiles};
use crate::machine::Machine;
use crate::parts::Parts;
use crate::passthrough::{Bar, Forwarding, SwapAccount, Swapper};
use crate::soft::SoftMachine;
use crate::traffic::{Progress, Traffic, Watched};

/// A round trip that takes longer than this has come to nothing. Rounds take microseconds; the rest is for a busy host.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// How long after the handler has run an EOI may come that it did not make. Where the host ends interrupts by itself it has
/// done so before the handler starts, and the news takes microseconds.
const NO_EOI_LIMIT: Duration = Duration::from_millis(250);

/// How long the guest goes on at the end, so that interrupts that nobody raised are taken and counted.
const LINGER: Duration = Duration::from_millis(10);

/// How often the run is looked after.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The parts.
    pub composition: Composition,
    /// Round trips.
    pub count: u64,
    /// Whether the guest's handler ends its interrupts. Without, the run is the negative control.
    pub guest_eoi: bool,
    /// The path of the device's interrupt is changed every so many round trips.
    pub swap_every: Option<u64>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All round trips were made, nothing was lost and nothing was spurious.
    Ok,
    /// A request was not served, or its device was not told.
    Lost,
    /// The guest took interrupts that nobody had raised.
    Spurious,
    /// A store to the doorbell was not signalled exactly once.
    Doorbell,
    /// Stopped before its end; nothing lost and nothing spurious until then.
    Interrupted,
    /// The negative control, as it should be: the handler served the request, did not end the interrupt, and nobody was told.
    NoEoi,
    /// The negative control found that the host ends interrupts without the guest: figures of this path are no EOI figures.
    EndedByHost,
}

/// The account of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was to be run.
    pub options: Options,
    /// Round trips completed.
    pub done: u64,
    /// Assertions made: one for each request, and one each time that a level was stated again.
    pub asserted: u64,
    /// Requests that the guest says it has served.
    pub serviced: u64,
    /// EOIs of the line that the devices were told of.
    pub resampled: u64,
    /// Requests that were not served, or whose device was not told so.
    pub lost: u64,
    /// Interrupts that the guest took beyond the assertions made.
    pub spurious: u64,
    /// How often the handler ran.
    pub handler_runs: u64,
    /// How often it found no request.
    pub found_nothing: u64,
    /// From assertion to the EOI that ends the request.
    pub latency: Option<Percentiles>,
    /// All of these latencies.
    pub distribution: Latency,
    /// The first round trips.
    pub trace: Vec<Watched>,
    /// From the first assertion to the last EOI.
    pub elapsed: Duration,
    /// The doorbell, if the guest rang it.
    pub doorbell: Option<doorbell::Account>,
    /// By which path the device's interrupt went at the beginning, and why, if it was forwarded.
    pub forwarding: Option<Explanation>,
    /// The changes of path, if there were to be any.
    pub swaps: Option<SwapAccount>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Runs, calling `on_progress` with the number of completed round trips now and then, until all are made, `interrupted` becomes
/// true, or no progress is made any more. The soft machine needs no `kvm`.
///
/// # Errors
/// When the parts cannot be put together, the guest fails, or a system call does. Lost interrupts are no error but an
/// [`Outcome`].
pub fn run(
    kvm: Option<&Kvm>,
    options: &Options,
    interrupted: &AtomicBool,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Summary> {
    let composition = &options.composition;
    composition.check()?;
    let (mut guest, controllers) = Guest::new(kvm, composition, options.guest_eoi)?;
    let status = guest.status()?;
    let parts = Parts::compose(&controllers, &status, composition)?;
    if let Some(passthrough) = &parts.passthrough {
        guest.map_bar(passthrough.edu.bar())?;
    }
    let forwarding = parts.forwarding().and_then(Forwarding::explanation);
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
        // The soft machine with one is impossible.
        (Guest::Soft(_), Some(_)) | (_, None) => None,
    };
    let acknowledged = Arc::clone(&devices);
    let on_acknowledge = move || Ok(acknowledged.iter().try_for_each(Device::acknowledge)?);
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
    let mut patience = Patience::new(options.guest_eoi);
    while !thread.is_finished() && !running.has_ended() {
        if interrupted.load(Ordering::Acquire) {
            progress.finish();
        }
        let done = progress.done();
        on_progress(done);
        if patience.is_at_its_end(done, &devices) {
            break;
        }
        thread::park_timeout(INTERVAL);
    }
    // Whatever ended the loop, the thread ends now, and the guest's own error comes first: the others follow from it.
    let stopped = stop.stop();
    let traffic = thread.join();
    progress.finish();
    let swaps = swapper.map(Swapper::join);
    thread::sleep(LINGER);
    running.stop()?;
    stopped?;
    if let Some(passthrough) = passthrough {
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
        doorbell.map(Doorbell::account).transpose()?,
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
    /// The machine of a composition, and its interrupt controllers. `guest_eoi` says whether its handler ends its interrupts.
    pub(crate) fn new(kvm: Option<&Kvm>, composition: &Composition, guest_eoi: bool) -> Result<(Self, Controllers)> {
        let program = Program {
            controller: composition.controller,
            devices: composition.sharers,
            edu: matches!(composition.device, DeviceKind::Vfio(_) | DeviceKind::VfioUser(_)),
            acknowledge: composition.acknowledge(),
            eoi: guest_eoi,
            idle: Idle::on(composition.irqchip),
        };
        match (composition.machine, kvm) {
            (MachineKind::Kvm, Some(kvm)) => {
                let machine = Machine::new(kvm, &program.assemble()?, composition.irqchip)?;
                let controllers = machine.controllers()?;
                Ok((Self::Kvm(machine), controllers))
            }
            (MachineKind::Kvm, None) => Err(Error::Absent("--machine kvm: KVM was not opened".to_owned())),
            (MachineKind::Soft, _) => {
                let controllers = match composition.controller {
                    Controller::Pic => Controllers::pic(),
                    Controller::Ioapic => Controllers::ioapic()?,
                };
                Ok((Self::Soft(SoftMachine::new(program)?), controllers))
            }
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

/// Decides when nothing will come any more.
struct Patience {
    guest_eoi: bool,
    done: u64,
    since: Instant,
    served_since: Option<Instant>,
}

impl Patience {
    fn new(guest_eoi: bool) -> Self {
        Self {
            guest_eoi,
            done: 0,
            since: Instant::now(),
            served_since: None,
        }
    }

    fn is_at_its_end(&mut self, done: u64, devices: &[Device]) -> bool {
        let now = Instant::now();
        if done != self.done {
            (self.done, self.since, self.served_since) = (done, now, None);
        }
        if !self.guest_eoi && devices.iter().all(Device::is_served) && devices.iter().any(|device| device.raised() > 0)
        {
            let since = *self.served_since.get_or_insert(now);
            return now - since > NO_EOI_LIMIT;
        }
        now - self.since > STALL_LIMIT
    }
}

impl Summary {
    /// Draws up the account of a run that has ended.
    pub fn new(
        options: &Options,
        traffic: &Traffic,
        devices: &[Device],
        status: &Status,
        doorbell: Option<doorbell::Account>,
        interrupted: bool,
    ) -> Self {
        let sum = |of: fn(&Device) -> u64| devices.iter().map(of).sum::<u64>();
        let (raised, asserted, serviced) = (sum(Device::raised), sum(Device::asserted), sum(Device::serviced));
        let handler_runs = u64::from(status.handler_runs());
        let mut summary = Self {
            options: *options,
            done: traffic.done,
            asserted,
            serviced,
            resampled: traffic.resampled,
            // A handler that ends nothing cannot get its device told.
            lost: raised - if options.guest_eoi { traffic.done } else { serviced },
            spurious: handler_runs.saturating_sub(asserted) + u64::from(status.stray()),
            handler_runs,
            found_nothing: status.found_nothing().into(),
            latency: traffic.latency.percentiles(),
            distribution: traffic.latency.clone(),
            trace: traffic.trace.clone(),
            elapsed: traffic.elapsed,
            doorbell,
            forwarding: None,
            swaps: None,
            outcome: Outcome::Ok,
        };
        summary.outcome = summary.judge(interrupted);
        summary
    }

    /// Whether everything was made that was asked for.
    fn is_complete(&self) -> bool {
        let count = self.options.count;
        self.done == count && self.doorbell.as_ref().is_none_or(|doorbell| doorbell.made(count))
    }

    /// The one place that decides how a run ended.
    fn judge(&self, interrupted: bool) -> Outcome {
        if self.lost > 0 {
            Outcome::Lost
        } else if self.spurious > 0 {
            Outcome::Spurious
        } else if self.doorbell.as_ref().is_some_and(|doorbell| !doorbell.is_exact()) {
            Outcome::Doorbell
        } else if !self.options.guest_eoi && self.done > 0 {
            Outcome::EndedByHost
        } else if interrupted && !self.is_complete() {
            Outcome::Interrupted
        } else if !self.options.guest_eoi {
            Outcome::NoEoi
        } else {
            Outcome::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composition;
    use crate::doorbell::Rung;
    use crate::report::tests::report;

    /// A run of 100 that went well, and what `change` makes of it.
    fn outcome(guest_eoi: bool, interrupted: bool, change: impl FnOnce(&mut Summary)) -> Outcome {
        let mut summary = report().summary;
        summary.options.guest_eoi = guest_eoi;
        (summary.options.count, summary.done) = (100, 100);
        change(&mut summary);
        summary.judge(interrupted)
    }

    #[test]
    fn a_run_is_judged_by_its_worst() {
        assert_eq!(outcome(true, false, |_| {}), Outcome::Ok);
        assert_eq!(outcome(true, false, |run| run.spurious = 1), Outcome::Spurious);
        assert_eq!(
            outcome(true, true, |run| (run.lost, run.spurious) = (1, 1)),
            Outcome::Lost
        );
        assert_eq!(outcome(true, true, |run| run.done = 99), Outcome::Interrupted);
        assert_eq!(
            outcome(true, true, |_| {}),
            Outcome::Ok,
            "an interruption after the last round trip"
        );
    }

    #[test]
    fn a_doorbell_is_judged_too() {
        let rung = |signals, exits| Rung {
            path: composition::Doorbell::Trap,
            why: None,
            stores: 100,
            signals,
            exits,
            p50_ns: None,
        };
        let with = |interrupted, pio, mmio, done| {
            outcome(true, interrupted, |run| {
                run.done = done;
                run.doorbell = Some(doorbell::Account {
                    pio,
                    mmio,
                    clock_p50_ns: None,
                });
            })
        };
        assert_eq!(with(false, rung(100, 100), rung(100, 100), 100), Outcome::Ok);
        for (signals, exits) in [(99, 100), (101, 100), (100, 99), (100, 101), (0, 0)] {
            assert_eq!(
                with(false, rung(signals, exits), rung(100, 100), 100),
                Outcome::Doorbell
            );
            assert_eq!(with(true, rung(100, 100), rung(signals, exits), 99), Outcome::Doorbell);
        }
        let some = || Rung {
            stores: 64,
            ..rung(64, 64)
        };
        assert_eq!(with(true, some(), some(), 100), Outcome::Interrupted);
    }

    #[test]
    fn the_negative_control_expects_that_nothing_is_reported() {
        assert_eq!(outcome(false, false, |run| run.done = 0), Outcome::NoEoi);
        assert_eq!(outcome(false, false, |run| run.done = 1), Outcome::EndedByHost);
        assert_eq!(outcome(false, true, |run| run.done = 0), Outcome::Interrupted);
        assert_eq!(
            outcome(false, false, |run| (run.done, run.lost) = (0, 1)),
            Outcome::Lost
        );
    }
}
