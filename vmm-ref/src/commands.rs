// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program's commands, built from the library.

use std::borrow::Cow;
use std::io::{self, Write};
#[cfg(target_arch = "x86_64")]
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interrupt_core::Irqchip;
use kvm_ioctls::Kvm;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{ExplainArgs, ProbeArgs, RunArgs};
use crate::composition::check::Impossible;
#[cfg(target_arch = "x86_64")]
use crate::composition::options::DoorbellPath;
use crate::composition::options::{Composition, Controller, DeviceKind, Forward, MachineKind};
use crate::error::boot_error::BootError;
use crate::error::{Error, INTERRUPTED};
use crate::explain::explain;
use crate::host::Host;
#[cfg(target_arch = "x86_64")]
use crate::linux::args::Switch;
#[cfg(target_arch = "x86_64")]
use crate::linux::launch::launch;
#[cfg(target_arch = "x86_64")]
use crate::linux::prepare::{BootOptions, check_speed, default_source, prepare};
use crate::passthrough::preflight;
#[cfg(target_arch = "x86_64")]
use crate::pci::host::PciOptions;
use crate::probe::capabilities::Probe;
#[cfg(target_arch = "x86_64")]
use crate::report::linux;
use crate::report::{Report, json, progress, text};
use crate::roundtrip::negative_control::{EndedBy, ended_by};
use crate::roundtrip::run::run;
use crate::roundtrip::summary::{Options, Outcome};
use crate::vm::kvm::{create_vm, open_kvm};

/// Why a command has no exit status of its own.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command could not do its work.
    #[error(transparent)]
    Vmm(#[from] Error),
    /// The command could not print its result.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// `vmm-ref run`. Returns the exit status.
///
/// # Errors
/// [`Failure`].
pub fn run_command(kvm_device: &Path, arguments: &RunArgs, out: &mut impl Write) -> Result<u8, Failure> {
    if let Some(kernel) = &arguments.linux.kernel {
        return linux_command(kvm_device, kernel, arguments, out);
    }
    check(arguments)?;
    let forward = arguments.forward();
    if arguments.swap_every.is_some() && forward != Forward::Auto {
        return Err(Error::Impossible(Impossible::NoSwap(forward)).into());
    }
    let interrupted = on_interrupt()?;
    let host = Host::this();
    let (machine, kvm) = machine(kvm_device, arguments)?;
    let arguments = &*on_this_kernel(kvm.as_ref(), arguments);
    let controllers = machine.controllers(arguments.irqchip(machine));

    let mut eois = Vec::new();
    for &controller in controllers {
        let composition = Composition::new(machine, arguments.irqchip(machine), controller);
        eois.push((controller, ended_by(kvm.as_ref(), composition, &interrupted)?));
    }
    if interrupted.load(Ordering::Acquire) {
        // The run has not begun, and the results of the negative control are incomplete.
        return Ok(INTERRUPTED);
    }
    let observable = eois.iter().find(|(_, ended_by)| *ended_by == EndedBy::Guest);
    let controller = match (arguments.controller, observable) {
        (Some(controller), _) | (None, Some(&(controller, _))) => controller,
        (None, None) => first_controller(arguments, machine),
    };
    let composition = arguments.composition(machine, controller);
    composition.check().map_err(Error::Impossible)?;
    composition
        .check_control(arguments.no_guest_eoi)
        .map_err(Error::Impossible)?;
    let host_ends = eois.contains(&(controller, EndedBy::Host));
    if host_ends && composition.device != DeviceKind::Embedded && composition.irqchip == Irqchip::Kernel {
        return Err(Error::EndedTooEarly.into());
    }
    if arguments.swap_every.is_some() {
        // Check this before the first line is printed.
        let explained = explain(kvm.as_ref(), &composition)?;
        if explained.possible.len() < 2 {
            return Err(Error::NothingToSwap(explained.pair.to_string()).into());
        }
    }
    if !arguments.json {
        text::host(out, &host, &eois)?;
        text::composed(out, &composition)?;
        out.flush()?;
    }

    let options = Options {
        composition,
        count: arguments.count(),
        without: arguments.no_guest_eoi,
        swap_every: arguments.swap_every,
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

/// Refuses a composition that works on no host, and a VFIO device that cannot be used.
fn check(arguments: &RunArgs) -> Result<(), Failure> {
    if arguments.device.len() > 1 {
        return Err(Error::Impossible(Impossible::OneDevice).into());
    }
    // Check this first: these reasons do not depend on the host.
    for machine in [MachineKind::Kvm, MachineKind::Soft] {
        if arguments.machine.unwrap_or(MachineKind::Kvm) == machine {
            let controller = arguments.controller.unwrap_or(first_controller(arguments, machine));
            arguments
                .composition(machine, controller)
                .check()
                .map_err(Error::Impossible)?;
        }
    }
    if let DeviceKind::Vfio(address) = arguments.device() {
        preflight::check(address).map_err(Error::Unusable)?;
    }
    Ok(())
}

/// The machine that the options name; otherwise KVM where it exists, and else the soft machine.
fn machine(kvm_device: &Path, arguments: &RunArgs) -> Result<(MachineKind, Option<Kvm>), Failure> {
    Ok(match (arguments.machine, open_kvm(kvm_device)) {
        (Some(MachineKind::Soft), _) => (MachineKind::Soft, None),
        (_, Ok(kvm)) => (MachineKind::Kvm, Some(kvm)),
        // The options ask for KVM explicitly.
        (Some(MachineKind::Kvm), Err(error)) => return Err(error.into()),
        (None, Err(error)) if arguments.irqchip.is_some_and(|irqchip| irqchip != Irqchip::User) => {
            return Err(error.into());
        }
        (None, Err(error)) if matches!(arguments.device(), DeviceKind::Vfio(_)) => return Err(error.into()),
        (None, Err(error)) => {
            let note = format!("vmm-ref: {error}; running on the soft machine instead");
            // If standard error is closed, the note is lost.
            let _ = writeln!(io::stderr(), "{note}");
            (MachineKind::Soft, None)
        }
    })
}

/// The arguments, with a split irqchip where they name none, the kernel has no 8259 and IOAPIC of its own
/// (CONFIG_KVM_IOAPIC=n, possible since Linux 6.17), and the rest of them can be had on a split irqchip. Says so on
/// standard error.
fn on_this_kernel<'a>(kvm: Option<&Kvm>, arguments: &'a RunArgs) -> Cow<'a, RunArgs> {
    let is_open = arguments.irqchip.is_none() && arguments.machine != Some(MachineKind::Soft);
    let Some(kvm) = kvm.filter(|_| is_open) else {
        return Cow::Borrowed(arguments);
    };
    // The kernel is tried: no capability tells (law 8). Another error is the run's to report.
    let Err(error @ Error::NoFullIrqchip(_)) = create_vm(kvm, Irqchip::Kernel) else {
        return Cow::Borrowed(arguments);
    };
    let split = RunArgs {
        irqchip: Some(Irqchip::Split),
        ..arguments.clone()
    };
    let controller = arguments.controller.unwrap_or(Controller::Ioapic);
    if split.composition(MachineKind::Kvm, controller).check().is_err() {
        return Cow::Borrowed(arguments);
    }
    // If standard error is closed, the note is lost.
    let _ = writeln!(io::stderr(), "vmm-ref: {error}; using a split irqchip instead");
    Cow::Owned(split)
}

/// `vmm-ref explain`. Returns the exit status.
///
/// # Errors
/// [`Failure`].
pub fn explain_command(kvm_device: &Path, arguments: &ExplainArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let arguments = RunArgs::from(arguments);
    if arguments.device() == DeviceKind::Embedded {
        return Err(Error::Impossible(Impossible::NothingToForward).into());
    }
    check(&arguments)?;
    let (machine, kvm) = machine(kvm_device, &arguments)?;
    let arguments = on_this_kernel(kvm.as_ref(), &arguments);
    let composition = arguments.composition(machine, first_controller(&arguments, machine));
    composition.check().map_err(Error::Impossible)?;
    let explained = explain(kvm.as_ref(), &composition)?;
    if arguments.json {
        json::print(out, &json::Explained::from(&explained))?;
    } else {
        text::composed(out, &composition)?;
        text::explained(out, &explained)?;
    }
    out.flush()?;
    Ok(0)
}

/// `vmm-ref run --kernel`, on a host without PCs.
#[cfg(target_arch = "aarch64")]
fn linux_command(_: &Path, _: &Path, _: &RunArgs, _: &mut impl Write) -> Result<u8, Failure> {
    Err(Error::from(BootError::NotAPc).into())
}

/// `vmm-ref run --kernel`. Returns the exit status: the guest's own where it gave one.
#[cfg(target_arch = "x86_64")]
fn linux_command(kvm_device: &Path, kernel: &Path, arguments: &RunArgs, out: &mut impl Write) -> Result<u8, Failure> {
    if arguments.machine == Some(MachineKind::Soft) {
        return Err(Error::from(BootError::SoftMachine).into());
    }
    // A file that cannot be used is reported before a KVM that cannot.
    let kvm = open_kvm(kvm_device);
    let arguments = &*on_this_kernel(kvm.as_ref().ok(), arguments);
    let (given, irqchip) = (&arguments.linux, arguments.irqchip(MachineKind::Kvm));
    let forward = arguments.forward.unwrap_or(Forward::Auto);
    if arguments.device.is_empty() && (arguments.forward.is_some() || arguments.swap_every.is_some()) {
        return Err(Error::from(BootError::NothingToForward).into());
    }
    let msi = given.msi == Some(Switch::On);
    if msi
        && !arguments
            .device
            .iter()
            .any(|device| matches!(device, DeviceKind::Vfio(_)))
    {
        return Err(Error::from(BootError::NoMessages).into());
    }
    let impossible = match (forward, irqchip) {
        (Forward::None, _) => Some(Impossible::NotForwarded),
        (Forward::Kernel, Irqchip::Split | Irqchip::User) => Some(Impossible::KernelLoopNeedsResample),
        (Forward::SplitKick, Irqchip::Kernel | Irqchip::User) => Some(Impossible::SplitKickNeedsIrqfd),
        (Forward::Auto, _) => None,
        (other, _) => arguments.swap_every.map(|_| Impossible::NoSwap(other)),
    };
    if let Some(impossible) = impossible {
        return Err(Error::Impossible(impossible).into());
    }
    let prepared = prepare(BootOptions {
        kernel: kernel.to_owned(),
        initrd: given.initrd.clone(),
        cmdline: given.cmdline.clone(),
        memory: given.memory.unwrap_or(256 << 20),
        cpus: given.cpus.unwrap_or(1),
        disks: given.disk.clone(),
        share_irq: given.share_irq,
        irqchip,
        source: arguments.source.unwrap_or(default_source(irqchip)),
        doorbell: arguments.doorbell.unwrap_or(DoorbellPath::Ioeventfd),
        pci: PciOptions {
            devices: arguments.device.clone(),
            forward,
            share_irq: given.share_irq,
            msi,
        },
        swap_every: arguments.swap_every,
    })?;
    let kvm = kvm?;
    let host = Host::this();
    check_speed(&kvm, &host)?;
    let setup = prepared.setup(host);
    if !arguments.json {
        linux::setup(out, &setup)?;
    }
    out.flush()?;
    // The console does not print through `out`, which is locked. With JSON, standard output holds the object alone.
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let screen = if arguments.json { stderr.as_fd() } else { stdout.as_fd() };
    let (input, screen) = (stdin.as_fd().try_clone_to_owned()?, screen.try_clone_to_owned()?);
    let (summary, failure) = launch(&kvm, prepared, setup, input.into(), screen.into())?;
    if arguments.json {
        json::print(out, &summary)?;
    } else {
        linux::summary(out, &summary)?;
    }
    out.flush()?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(summary.exit_status()),
    }
}

fn first_controller(arguments: &RunArgs, machine: MachineKind) -> Controller {
    // Every irqchip has at least one controller.
    let controllers = machine.controllers(arguments.irqchip(machine));
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
        // Register the shutdown first, so that it finds the flag clear at the first signal.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|source| Error::System {
                step: "sigaction(SIGINT)",
                source,
            })?;
    }
    Ok(interrupted)
}
