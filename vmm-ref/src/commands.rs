// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program's commands do with what the library has.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{ProbeArgs, RunArgs};
use crate::composition::{Composition, DeviceKind, Irqchip, MachineKind};
use crate::error::Error;
use crate::guest::Controller;
use crate::host::Host;
use crate::machine::open_kvm;
use crate::observe::{EndedBy, ended_by};
use crate::passthrough;
use crate::probe::Probe;
use crate::report::{Report, json, progress, text};
use crate::run::{Options, Outcome, run};

/// The status of a program that Ctrl-C has ended, as a shell reports it.
pub const INTERRUPTED: u8 = 130;

/// Why a command has no exit status of its own.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not do its work.
    #[error(transparent)]
    Vmm(#[from] Error),
    /// It could not say what it found.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// `vmm-ref run`. Returns the exit status.
///
/// # Errors
/// [`Failure`].
pub fn run_command(kvm_device: &Path, arguments: &RunArgs, out: &mut impl Write) -> Result<u8, Failure> {
    // Before anything else: what cannot work does not depend on the host.
    for machine in [MachineKind::Kvm, MachineKind::Soft] {
        if arguments.machine.unwrap_or(MachineKind::Kvm) == machine {
            let controller = arguments.controller.unwrap_or(first_controller(arguments, machine));
            arguments
                .composition(machine, controller)
                .check()
                .map_err(Error::Impossible)?;
        }
    }
    if let DeviceKind::Vfio(address) = arguments.device {
        passthrough::check(address).map_err(Error::Unusable)?;
    }
    let interrupted = on_interrupt()?;
    let host = Host::this();
    let (machine, kvm) = match (arguments.machine, open_kvm(kvm_device)) {
        (Some(MachineKind::Soft), _) => (MachineKind::Soft, None),
        (_, Ok(kvm)) => (MachineKind::Kvm, Some(kvm)),
        // What was asked for in so many words needs KVM.
        (Some(MachineKind::Kvm), Err(error)) => return Err(error.into()),
        (None, Err(error)) if arguments.irqchip.is_some_and(|irqchip| irqchip != Irqchip::User) => {
            return Err(error.into());
        }
        (None, Err(error)) if arguments.device != DeviceKind::Embedded => return Err(error.into()),
        (None, Err(error)) => {
            let note = format!("vmm-ref: {error}; running on the soft machine instead");
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "{note}");
            (MachineKind::Soft, None)
        }
    };
    let controllers = arguments.irqchip(machine).controllers(machine);

    let mut eois = Vec::new();
    for &controller in controllers {
        let composition = Composition::new(machine, arguments.irqchip(machine), controller);
        eois.push((controller, ended_by(kvm.as_ref(), composition, &interrupted)?));
    }
    if interrupted.load(Ordering::Acquire) {
        // Nothing has begun, and what was found so far is of no value.
        return Ok(INTERRUPTED);
    }
    let observable = eois.iter().find(|(_, ended_by)| *ended_by == EndedBy::Guest);
    let controller = match (arguments.controller, observable) {
        (Some(controller), _) | (None, Some(&(controller, _))) => controller,
        (None, None) => first_controller(arguments, machine),
    };
    let composition = arguments.composition(machine, controller);
    composition.check().map_err(Error::Impossible)?;
    if !arguments.json {
        text::host(out, &host, &eois)?;
        text::composed(out, &composition)?;
        out.flush()?;
    }

    let options = Options {
        composition,
        count: arguments.count(),
        guest_eoi: !arguments.no_guest_eoi,
    };
    let bar = progress::bar(options.count);
    let summary = run(kvm.as_ref(), &options, &interrupted, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let summary = summary?;
    let outcome = summary.outcome;
    let report = Report {
        host,
        ended_by: eois
            .iter()
            .find(|(other, _)| *other == controller)
            .map_or(EndedBy::Nobody, |(_, ended_by)| *ended_by),
        summary,
    };
    if arguments.json {
        json::print(out, &json::Object::from(&report))?;
    } else {
        text::summary(out, &report)?;
    }
    out.flush()?;
    Ok(match outcome {
        Outcome::Ok | Outcome::NoEoi => 0,
        Outcome::Lost | Outcome::Spurious | Outcome::Doorbell | Outcome::EndedByHost => 1,
        Outcome::Interrupted => INTERRUPTED,
    })
}

fn first_controller(arguments: &RunArgs, machine: MachineKind) -> Controller {
    // There is one for every irqchip.
    let controllers = arguments.irqchip(machine).controllers(machine);
    controllers.first().copied().unwrap_or(Controller::Ioapic)
}

/// `vmm-ref probe`. Returns the exit status.
///
/// # Errors
/// [`Failure`].
pub fn probe_command(kvm_device: &Path, arguments: &ProbeArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let probe = Probe::this_host(kvm_device);
    if arguments.json {
        json::print(out, &probe)?;
    } else {
        text::probe(out, &probe)?;
    }
    out.flush()?;
    Ok(0)
}

/// A flag that the first Ctrl-C (or SIGTERM) sets. A second one ends the process at once.
fn on_interrupt() -> Result<Arc<AtomicBool>, Error> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag not set yet.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|source| Error::System {
                step: "sigaction(SIGINT)",
                source,
            })?;
    }
    Ok(interrupted)
}
