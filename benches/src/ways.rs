// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every composition that can work on this host, its floor, and the compositions that were left out, with reasons.

use std::sync::atomic::AtomicBool;

use clap::ValueEnum as _;
use interrupt_core::Irqchip;
use kvm_ioctls::Kvm;
use vmm_ref::composition::options::{
    Composition, Controller, DeviceKind, Eoi, Forward, MachineKind, Source, Wait, name,
};
use vmm_ref::composition::pci_address::PciAddress;
use vmm_ref::passthrough::preflight::check;
use vmm_ref::roundtrip::negative_control::{EndedBy, ended_by};
use vmm_ref::roundtrip::run::run;
use vmm_ref::roundtrip::summary::{Options, Outcome};

use crate::Result;
use crate::floor::{Floor, Path};
use crate::measure::Subject;
use crate::results::{Control, LeftOut};

/// One irqchip and controller: its negative control, and all ways through it.
#[derive(Debug)]
pub struct Group<'a> {
    /// The result of the negative control.
    pub control: Control,
    /// The subjects, each floor before the compositions on it.
    pub subjects: Vec<Subject<'a>>,
}

/// The subjects to measure.
#[derive(Debug, Default)]
pub struct Ways<'a> {
    /// The groups, in the order of the command line's names.
    pub groups: Vec<Group<'a>>,
    /// The compositions that were left out.
    pub left_out: Vec<LeftOut>,
}

/// Whether a composition is in the short set: one source and one notifier for each controller, and the two ways to wait
/// that differ most.
fn is_short(composition: &Composition) -> bool {
    let plain = Composition::new(composition.machine, composition.irqchip, composition.controller);
    let is_plain = composition.source == plain.source && composition.eoi == plain.eoi;
    let is_line = composition.source == Source::Line && composition.wait == Wait::Block;
    is_plain || is_line
}

/// Finds the subjects that this host can measure, and runs the negative control of each group.
///
/// # Errors
/// When a negative control cannot be run.
pub fn here<'a>(kvm: Option<&'a Kvm>, full: bool, interrupted: &'a AtomicBool) -> Result<Ways<'a>> {
    let mut ways = Ways::default();
    for &machine in MachineKind::value_variants() {
        for &irqchip in machine.irqchips() {
            for &controller in machine.controllers(irqchip) {
                let plain = Composition::new(machine, irqchip, controller);
                let title = title(&plain);
                if machine == MachineKind::Kvm && kvm.is_none() {
                    ways.left_out
                        .push(LeftOut::new(title, "there is no /dev/kvm that opens"));
                    continue;
                }
                match ended_by(kvm, plain, interrupted) {
                    Err(error) => ways.left_out.push(LeftOut::new(title, error.to_string())),
                    Ok(EndedBy::Nobody) => ways.left_out.push(LeftOut::new(title, EndedBy::Nobody.to_string())),
                    Ok(ended_by) => ways.groups.push(Group {
                        control: Control {
                            group: title,
                            finding: ended_by.to_string(),
                            eoi: ended_by == EndedBy::Guest,
                        },
                        subjects: subjects(kvm, &plain, full, ended_by == EndedBy::Guest, interrupted),
                    }),
                }
            }
        }
    }
    if let Err(why) = passthrough(kvm, interrupted, &mut ways.groups) {
        ways.left_out.push(LeftOut::new(INTX, why.to_string()));
    }
    Ok(ways)
}

/// The group of a VFIO device's INTx.
pub const INTX: &str = "INTx of a VFIO device";

/// The address of the lab's first edu.
const EDU: &str = "0000:00:02.0";

/// The compositions of INTx, each with its own irqchip, beside the floor of the fastest.
fn passthrough<'a>(kvm: Option<&'a Kvm>, interrupted: &'a AtomicBool, groups: &mut Vec<Group<'a>>) -> Result<()> {
    let address: PciAddress = EDU.parse().map_err(anyhow::Error::msg)?;
    check(address)?;
    let way = |irqchip, forward| {
        let controller = MachineKind::Kvm.controllers(irqchip)[0];
        let plain = Composition::new(MachineKind::Kvm, irqchip, controller);
        forwarded(DeviceKind::Vfio(address), forward, &plain)
    };
    let kernel = way(Irqchip::Kernel, Forward::Kernel);
    let ended_by = ended_by(kvm, kernel, interrupted)?;
    let mut subjects = vec![of_floor(kvm, Floor::under(&kernel))];
    for composition in [
        kernel,
        way(Irqchip::Kernel, Forward::Relay),
        way(Irqchip::Split, Forward::SplitKick),
    ] {
        if MachineKind::Kvm.irqchips().contains(&composition.irqchip) {
            subjects.push(of_composition(kvm, composition, 0, interrupted));
        }
    }
    groups.push(Group {
        control: Control {
            group: INTX.to_owned(),
            finding: ended_by.to_string(),
            eoi: ended_by == EndedBy::Guest,
        },
        subjects,
    });
    Ok(())
}

/// The composition `plain` with `device`, forwarded by `forward`.
fn forwarded(device: DeviceKind, forward: Forward, plain: &Composition) -> Composition {
    let source = Source::default_with(plain.irqchip, forward);
    Composition {
        device,
        forward,
        source,
        eoi: Eoi::default_of(source),
        ..*plain
    }
}

fn title(composition: &Composition) -> String {
    let controller = match composition.controller {
        Controller::Ioapic => "IOAPIC",
        Controller::Pic => "8259",
        Controller::Gic => "GIC",
    };
    match composition.machine {
        MachineKind::Soft => format!("no KVM, {controller}"),
        MachineKind::Kvm => format!("{} irqchip, {controller}", composition.irqchip),
    }
}

fn subjects<'a>(
    kvm: Option<&'a Kvm>,
    plain: &Composition,
    full: bool,
    eoi: bool,
    interrupted: &'a AtomicBool,
) -> Vec<Subject<'a>> {
    let (mut subjects, mut floors): (Vec<Subject<'a>>, Vec<(Floor, usize)>) = (Vec::new(), Vec::new());
    let mut add = |composition: Composition| {
        let floor = Floor::under(&composition);
        let known = floors.iter().find(|(other, _)| *other == floor).map(|(_, at)| *at);
        let at = known.unwrap_or(subjects.len());
        if known.is_none() {
            floors.push((floor, at));
            subjects.push(of_floor(kvm, floor));
        }
        subjects.push(of_composition(kvm, composition, at, interrupted));
    };
    for &source in Source::value_variants() {
        for &eoi in Eoi::value_variants() {
            for &wait in Wait::value_variants() {
                let composition = Composition {
                    source,
                    eoi,
                    wait,
                    ..*plain
                };
                if composition.check().is_err() || !(full || is_short(&composition)) {
                    continue;
                }
                add(composition);
            }
        }
    }
    for forward in [Forward::Kernel, Forward::SplitKick, Forward::Relay] {
        let composition = forwarded(DeviceKind::Model, forward, plain);
        // On a host that ends interrupts by itself, a model device is notified before its handler has run, and not
        // again afterwards.
        if eoi && composition.check().is_ok() {
            add(composition);
        }
    }
    subjects
}

/// A floor as a subject.
pub(crate) fn of_floor(kvm: Option<&Kvm>, floor: Floor) -> Subject<'_> {
    let path = match floor.path {
        Path::Resample => "bare irqfd and resamplefd",
        Path::Line => "bare KVM_IRQ_LINE and resamplefd",
        Path::Split => "bare irqfd and EOI exit",
        Path::Interrupt => "bare KVM_INTERRUPT and OUT exit",
        Path::Thread => "a thread woken and an eventfd",
        Path::Intx(_) => "bare VFIO and irqfd, in the kernel",
    };
    Subject {
        name: path.to_owned(),
        wait: if floor.polls { "busy poll" } else { "blocking read" }.to_owned(),
        floor: None,
        round_trips: Box::new(move |count| floor.run(kvm, count)),
    }
}

/// A composition as a subject; `floor` is the index of its floor among the subjects.
pub(crate) fn of_composition<'a>(
    kvm: Option<&'a Kvm>,
    composition: Composition,
    floor: usize,
    interrupted: &'a AtomicBool,
) -> Subject<'a> {
    Subject {
        name: match composition.device {
            DeviceKind::Embedded => format!("{}, told by {}", name(&composition.source), name(&composition.eoi)),
            DeviceKind::Model => format!("model device, {}", name(&composition.forward)),
            _ => format!("{}, {} irqchip", name(&composition.forward), composition.irqchip),
        },
        wait: name(&composition.wait),
        floor: Some(floor),
        round_trips: Box::new(move |count| {
            let options = Options {
                composition,
                count,
                without: None,
                swap_every: None,
            };
            let summary = run(kvm, &options, interrupted, &mut |_| {})?;
            let spurious = summary.outcome == Outcome::Spurious;
            // On a host that ends interrupts at injection, the guest takes a level twice if it is still high. The
            // figure does not measure an EOI there.
            anyhow::ensure!(
                summary.outcome == Outcome::Ok || spurious && summary.lost == 0,
                "{composition}: {:?} after {} of {count}",
                summary.outcome,
                summary.done
            );
            Ok(summary.distribution)
        }),
    }
}
