// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run of a Linux guest, from its files to its summary.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use interrupt_core::{Irqchip, LevelInterrupt};
use ioevent::{IoeventBus, ReservedRange};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_irqfd::{Chip, KvmInterrupts, Route};

use super::boot::cpu_state;
use super::boot::kernel::Kernel;
use super::boot::memory_map::{BOOT_PARAMS, SERIAL_GSI};
use super::devices::terminal::GuestTerminal;
use super::devices::wiring::{Devices, Wiring};
use super::eoi_thread::EoiThread;
use super::guest_summary::{CardSummary, DeviceSummary, GuestSummary, Setup};
use super::host_counts::host_count;
use super::prepare::Prepared;
use super::signals::Signals;
use crate::composition::options::DoorbellPath;
use crate::error::{Error, Result, at};
use crate::pci::host::{Machine, PciHost};
use crate::pci::path_changer::PathChanger;
use crate::vm::cpu_thread::Cpu;
use crate::vm::ending::{End, Ending};
use crate::vm::exits::{Exits, Unassigned};
use crate::vm::irqchip::Controllers;
use crate::vm::kvm::{create_vm, map};

/// Boots the guest with `input` as its keyboard and `output` as its screen. Returns when the guest has ended, or at
/// SIGINT, SIGTERM or SIGHUP. A terminal is in the guest's mode during the run.
///
/// # Errors
/// When the machine cannot be built. A processor that fails ends the run; its error is the second value.
pub fn launch(
    kvm: &Kvm,
    prepared: Prepared,
    setup: Setup,
    input: File,
    output: File,
) -> Result<(GuestSummary, Option<Error>)> {
    let Prepared {
        options,
        memory,
        kernel,
        backends,
    } = prepared;
    let most = kvm.get_max_vcpus();
    if usize::from(options.cpus) > most {
        return Err(Error::Guest(format!(
            "this KVM has at most {most} CPUs for a guest; use --cpus {most}"
        )));
    }
    let vm = Arc::new(create_vm(kvm, options.irqchip)?);
    map(&vm, &memory)?;
    let vcpus = (0..options.cpus)
        .map(|id| processor(kvm, &vm, id, options.cpus, &kernel))
        .collect::<Result<Vec<_>>>()?;
    let interrupts = KvmInterrupts::new(Arc::clone(&vm))?;
    let controllers = match options.irqchip {
        Irqchip::Split => Controllers::split(interrupts.clone())?,
        Irqchip::Kernel | Irqchip::User => {
            without_8259(&interrupts)?;
            Controllers::Kernel(interrupts.clone())
        }
    };
    let doorbells = match options.doorbell {
        DoorbellPath::Ioeventfd => IoeventBus::kvm(Arc::clone(&vm)),
        DoorbellPath::Trap => IoeventBus::userspace(),
    };
    doorbells.reserve(&[ReservedRange::LAPIC])?;
    let ending = Ending::new()?;
    let wiring = Wiring {
        controllers: &controllers,
        source: options.source,
        share_irq: options.share_irq,
        memory: &memory,
        doorbells: &doorbells,
    };
    let devices = Devices::new(&wiring, backends, output, &ending)?;
    let mut places = devices.io_manager()?;
    controllers.attach(&mut places)?;
    let pci = PciHost::new(
        &options.pci,
        Machine {
            vm: &vm,
            memory: &memory,
            controllers: &controllers,
            ending: &ending,
        },
    )?;
    pci.attach(&mut places)?;
    let exits = Arc::new(Exits {
        devices: places,
        doorbells,
        doorbell_stores: Arc::default(),
        controllers,
        ending: Arc::clone(&ending),
        unassigned: Unassigned::Ones,
    });

    let host_counts = || pci.cards.iter().map(|card| host_count(&card.name)).collect::<Vec<_>>();
    let before = host_counts();
    let changer = match options.swap_every {
        Some(every) => Some(PathChanger::start(&pci.cards, every, &ending)?),
        None => None,
    };
    let signals = Signals::catch()?;
    // The terminal is restored last, when no thread prints any more.
    let terminal = GuestTerminal::take(&input);
    let eois = EoiThread::start(interrupts)?;
    let workers = devices
        .virtio
        .iter()
        .enumerate()
        .map(|(number, device)| device.mmio.start(format!("virtio{number}")))
        .collect::<Result<Vec<_>>>()?;
    let keyboard = devices.console.start(input)?;
    let start = Instant::now();
    let cpus = vcpus
        .into_iter()
        .enumerate()
        .map(|(id, vcpu)| {
            let exits = Arc::clone(&exits);
            Cpu::start(&format!("cpu{id}"), move |stop| exits.run(vcpu, stop))
        })
        .collect::<Result<Vec<_>>>()?;

    signals.wait(&ending)?;
    let elapsed = start.elapsed();
    let mut failure = None;
    for cpu in cpus {
        if let Err(error) = cpu.stop() {
            failure.get_or_insert(error);
        }
    }
    let swaps = changer.map(PathChanger::stop).unwrap_or_default();
    if let Some(error) = ending.take_failure() {
        failure.get_or_insert(error);
    }
    let after = host_counts();
    let cards = pci.cards.iter().enumerate().map(|(index, card)| CardSummary {
        host: after[index]
            .zip(before[index])
            .map(|(after, before)| after.saturating_sub(before)),
        swaps: swaps.get(index).cloned(),
        guest: devices.console.guest_count(card.eois.gsi),
        ..CardSummary::new(card)
    });
    let cards = cards.collect();
    // INTx is disabled here.
    for card in pci.cards {
        if let Err(error) = card.forwarding.stop() {
            failure.get_or_insert(error);
        }
    }
    // Stop the workers: completed requests have reached the disk, and requests still in the queue are not begun.
    drop(workers);
    drop(eois);
    drop(keyboard);
    drop(terminal);
    let summary = GuestSummary {
        setup,
        devices: summaries(&devices, options.doorbell),
        cards,
        end: ending.ended().unwrap_or(End::Interrupted),
        guest_status: devices.power.status(),
        elapsed,
    };
    Ok((summary, failure))
}

/// A vCPU. The first one starts at the kernel's entry, the others wait for its start message.
fn processor(kvm: &Kvm, vm: &VmFd, id: u8, cpus: u8, kernel: &Kernel) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).map_err(at("KVM_CREATE_VCPU"))?;
    cpu_state::set_cpuid(kvm, &vcpu, id, cpus)?;
    cpu_state::set_memory_types(&vcpu)?;
    if id == 0 {
        cpu_state::start_at(&vcpu, kernel.entry, BOOT_PARAMS)?;
    }
    Ok(vcpu)
}

/// The ACPI tables declare no 8259, so the guest leaves the kernel's pair uninitialised, and the pair would inject
/// vectors of its own. Route the one GSI that both controllers share to the IOAPIC alone.
fn without_8259(interrupts: &KvmInterrupts) -> Result<()> {
    let mut routing = interrupts.routing();
    let pin = Route::Pin {
        chip: Chip::Ioapic,
        pin: SERIAL_GSI.0,
    };
    routing.set(SERIAL_GSI, &[pin])?;
    routing.commit()?;
    Ok(())
}

fn summaries(devices: &Devices, asked: DoorbellPath) -> Vec<DeviceSummary> {
    let summary = |name: &str, interrupt: &LevelInterrupt| DeviceSummary {
        name: name.to_owned(),
        gsi: interrupt.gsi(),
        counts: interrupt.counts().into(),
        high: interrupt.causes() != 0,
        guest: devices.console.guest_count(interrupt.gsi()),
        trapped: None,
        needed_reset: None,
    };
    let serial = summary("ttyS0", devices.console.interrupt());
    let virtio = devices.virtio.iter().map(|device| {
        let shared = device.mmio.shared();
        DeviceSummary {
            trapped: device.trapped().filter(|_| asked == DoorbellPath::Ioeventfd),
            needed_reset: shared.trouble().map(|why| why.to_string()),
            ..summary(&device.name, shared.interrupt())
        }
    });
    [serial].into_iter().chain(virtio).collect()
}
