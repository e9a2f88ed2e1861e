// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run of a Linux guest, from files to the account of it.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ioevent::{IoeventBus, Window};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_irqfd::{Chip, KvmInterrupts, Route};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};
use vm_memory::GuestMemoryMmap;

use super::acpi;
use super::args::{COMMAND_LINE, DiskArg};
use super::boot::{self, Initrd};
use super::cpu;
use super::devices::{Devices, Places, virtio_places};
use super::error::Error as LinuxError;
use super::kernel::Kernel;
use super::layout::{BOOT_PARAMS, SERIAL_GSI, VIRTIO_GSIS, memory_ranges};
use super::power::{End, Ending};
use super::processor::Machine;
use super::report::{DeviceAccount, Setup, Summary};
use super::speed;
use super::terminal::GuestTerminal;
use super::virtio::Backend;
use super::virtio::block::Block;
use super::virtio::disk::Disk;
use super::virtio::entropy::Entropy;
use super::wake::Wake;
use crate::composition::{Doorbell, Impossible, Irqchip, Source};
use crate::controllers::Controllers;
use crate::error::{Error, Result, at};
use crate::host::Host;
use crate::machine::{create_vm, map};
use crate::vcpu::Cpu;

/// What to boot, and on what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initrd.
    pub initrd: Option<PathBuf>,
    /// Its command line; [`COMMAND_LINE`] when there is none.
    pub cmdline: Option<String>,
    /// The guest's memory in bytes, whole pages.
    pub memory: u64,
    /// Its processors.
    pub cpus: u8,
    /// Its disks.
    pub disks: Vec<DiskArg>,
    /// Whether all virtio devices have one line.
    pub share_irq: bool,
    /// Where the interrupt controllers are.
    pub irqchip: Irqchip,
    /// How a device holds its line.
    pub source: Source,
    /// Who takes the stores to the doorbells.
    pub doorbell: Doorbell,
}

/// How these devices hold their lines when nothing else is said. They know their level at all times, so that a line which they lower
/// themselves, when the guest acknowledges, is the shorter way; a resample irqfd stays high until the EOI.
pub fn default_source(irqchip: Irqchip) -> Source {
    match irqchip {
        Irqchip::Kernel => Source::Line,
        Irqchip::Split | Irqchip::User => Source::Pin,
    }
}

/// A guest whose files have been read: what is left to do needs KVM.
#[derive(Debug)]
pub struct Prepared {
    options: Options,
    memory: Arc<GuestMemoryMmap>,
    kernel: Kernel,
    backends: Vec<(String, Box<dyn Backend>)>,
}

/// Reads the files and lays out the guest's memory.
///
/// # Errors
/// [`Error::Impossible`] for a source that the irqchip does not have, [`Error::Linux`] for what the guest cannot be made of, [`Error::Memory`] when there is no memory to be had.
pub fn prepare(options: Options) -> Result<Prepared> {
    match (options.irqchip, options.source) {
        (Irqchip::User, _) => return Err(LinuxError::UserIrqchip.into()),
        (_, Source::Irqfd) => return Err(LinuxError::IrqfdSource.into()),
        (Irqchip::Kernel, Source::Pin) => return Err(Impossible::NoUserPins.into()),
        (Irqchip::Split, Source::Resample | Source::Line) => return Err(Impossible::NoKernelPins.into()),
        (Irqchip::Kernel, Source::Resample | Source::Line) | (Irqchip::Split, Source::Pin) => {}
    }
    // The last one is the entropy device's.
    if options.disks.len() >= VIRTIO_GSIS {
        return Err(LinuxError::TooManyDisks(options.disks.len()).into());
    }
    let mut backends: Vec<(String, Box<dyn Backend>)> = Vec::new();
    for (number, DiskArg { path, read_only }) in options.disks.iter().enumerate() {
        let disk = Disk::open(path, *read_only)?;
        let name = format!("virtio{number} (disk {})", path.display());
        backends.push((name, Box::new(Block::new(disk))));
    }
    backends.push((format!("virtio{} (entropy)", backends.len()), Box::new(Entropy)));

    let size = options.memory;
    let memory = GuestMemoryMmap::from_ranges(&memory_ranges(size))
        .map(Arc::new)
        .map_err(|error| Error::Memory(format!("{error}; use a smaller --memory")))?;
    let kernel = Kernel::load(&memory, size, &options.kernel)?;
    let initrd = match &options.initrd {
        Some(path) => Some(Initrd::load(&memory, size, &kernel, path)?),
        None => None,
    };
    let command_line = options.cmdline.as_deref().unwrap_or(COMMAND_LINE);
    boot::write_reset_vector(&memory)?;
    boot::write_parameters(&memory, size, &kernel, initrd, command_line)?;
    acpi::write_tables(&memory, options.cpus, &virtio_places(backends.len(), options.share_irq))?;
    cpu::write_tables(&memory)?;
    Ok(Prepared {
        options,
        memory,
        kernel,
        backends,
    })
}

impl Prepared {
    /// What the account will say of how the run was put together.
    pub fn setup(&self, host: Host) -> Setup {
        Setup {
            host,
            irqchip: self.options.irqchip,
            source: self.options.source,
            doorbell: self.options.doorbell,
            cpus: self.options.cpus,
            memory_mib: self.options.memory >> 20,
        }
    }
}

/// Refuses a host that would take hours.
///
/// # Errors
/// [`LinuxError::SlowHost`], or that of the measurement.
pub fn check_speed(kvm: &Kvm, host: &Host) -> Result<()> {
    match speed::measure(kvm)? {
        mips if mips < speed::ENOUGH_MIPS => Err(LinuxError::SlowHost {
            kvm: host.kvm_modules.join(" and "),
            mips,
        }
        .into()),
        _ => Ok(()),
    }
}

/// Boots the guest with `input` as its keyboard and `output` as its screen, and returns when it has ended, or when SIGINT, SIGTERM or
/// SIGHUP comes. A terminal is the guest's meanwhile.
///
/// # Errors
/// When the machine cannot be put together, or a processor cannot go on: its account is the second value then.
pub fn run(kvm: &Kvm, prepared: Prepared, setup: Setup, input: File, output: File) -> Result<(Summary, Option<Error>)> {
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
        Doorbell::Ioeventfd => IoeventBus::kvm(Arc::clone(&vm)),
        Doorbell::Trap => IoeventBus::userspace(),
    };
    doorbells.exclude(&[Window::LAPIC])?;
    let ending = Ending::new()?;
    let places = Places {
        controllers: &controllers,
        source: options.source,
        share_irq: options.share_irq,
        memory: &memory,
        doorbells: &doorbells,
    };
    let devices = Devices::new(&places, backends, output, &ending)?;
    let ioapic = match &controllers {
        Controllers::Split { ioapic, .. } => Some(Arc::clone(ioapic)),
        _ => None,
    };
    let machine = Arc::new(Machine {
        devices: devices.io_manager(ioapic.as_ref())?,
        doorbells,
        ioapic,
        ending: Arc::clone(&ending),
    });

    let signals = Signals::catch()?;
    // In this order: the terminal is put back last, when nobody prints any more.
    let terminal = GuestTerminal::take(&input);
    let eois = Dispatch::start(interrupts)?;
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
            let machine = Arc::clone(&machine);
            Cpu::start(&format!("cpu{id}"), move |stop| machine.run(vcpu, stop))
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
    // What the guest was told is done is on the disk; what is in the queue yet is not begun.
    drop(workers);
    drop(eois);
    drop(keyboard);
    drop(terminal);
    let summary = Summary {
        setup,
        devices: account(&devices, options.doorbell),
        end: ending.ended().unwrap_or(End::Interrupted),
        guest_status: devices.power.status(),
        elapsed,
    };
    Ok((summary, failure))
}

/// A vCPU. The first one starts at the kernel's entry, the others wait for its start message.
fn processor(kvm: &Kvm, vm: &VmFd, id: u8, cpus: u8, kernel: &Kernel) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).map_err(at("KVM_CREATE_VCPU"))?;
    cpu::set_cpuid(kvm, &vcpu, id, cpus)?;
    cpu::set_memory_types(&vcpu)?;
    if id == 0 {
        cpu::start_at(&vcpu, kernel.entry, BOOT_PARAMS)?;
    }
    Ok(vcpu)
}

/// The guest is told that there is no 8259. The kernel's pair is there, nobody sets it up, and it would inject vectors of its own: the
/// one line that leads to both leads to the IOAPIC alone.
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

fn account(devices: &Devices, asked: Doorbell) -> Vec<DeviceAccount> {
    let serial = DeviceAccount {
        name: "ttyS0".to_owned(),
        gsi: devices.serial_line.gsi(),
        counts: devices.serial_line.counts(),
        high: devices.serial_line.causes() != 0,
        guest: devices.console.guest_count(devices.serial_line.gsi()),
        trapped: None,
        needed_reset: None,
    };
    let virtio = devices.virtio.iter().map(|device| {
        let line = device.mmio.shared().line();
        DeviceAccount {
            name: device.name.clone(),
            gsi: line.gsi(),
            counts: line.counts(),
            high: line.causes() != 0,
            guest: devices.console.guest_count(line.gsi()),
            trapped: device.trapped().filter(|_| asked == Doorbell::Ioeventfd),
            needed_reset: device.mmio.shared().trouble().map(|why| why.to_string()),
        }
    });
    [serial].into_iter().chain(virtio).collect()
}

/// The signals that end a run, as a file.
#[derive(Debug)]
struct Signals {
    came: UnixStream,
    registered: Vec<signal_hook::SigId>,
}

impl Signals {
    fn catch() -> Result<Self> {
        let failed = |source| Error::System {
            step: "catching signals",
            source,
        };
        let (came, tell) = UnixStream::pair().map_err(failed)?;
        let mut signals = Self {
            came,
            registered: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let tell = tell.try_clone().map_err(failed)?;
            signals.registered.push(pipe::register(signal, tell).map_err(failed)?);
        }
        Ok(signals)
    }

    /// Returns at the end of the run, or at a signal, which ends it.
    fn wait(&self, ending: &Ending) -> Result<()> {
        while ending.ended().is_none() {
            let mut fds = [
                PollFd::new(&self.came, PollFlags::IN),
                PollFd::new(ending.event(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => ending.end(End::Interrupted),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::System {
                        step: "poll",
                        source: errno.into(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}

/// The thread that hands out the EOIs that the kernel's irqchip reports. With a split irqchip the processors do that themselves, at
/// the exit of the EOI.
#[derive(Debug)]
struct Dispatch {
    thread: Option<JoinHandle<()>>,
    stop: Arc<(AtomicBool, Wake)>,
}

impl Dispatch {
    fn start(interrupts: KvmInterrupts) -> Result<Self> {
        let stop = Arc::new((AtomicBool::new(false), Wake::new()?));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("eois".to_owned())
            .spawn(move || {
                while !stopped.0.load(Ordering::Acquire) {
                    if is_ready(interrupts.as_fd(), stopped.1.as_fd()) {
                        // An error is a listener's, and these have none.
                        let _ = interrupts.dispatch(Some(Duration::ZERO));
                    }
                }
            })
            .map_err(|source| Error::System {
                step: "starting the EOIs' thread",
                source,
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }
}

/// Waits until one of them is readable; whether it is the first.
fn is_ready(first: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(first, PollFlags::IN),
        PollFd::from_borrowed_fd(other, PollFlags::IN),
    ];
    poll(&mut fds, None).is_ok() && !fds[0].revents().is_empty()
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Release);
        self.stop.1.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
