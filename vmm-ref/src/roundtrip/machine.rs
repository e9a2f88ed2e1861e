// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM on KVM with the embedded guest in it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use interrupt_core::Irqchip;
use ioevent::{IoeventBus, UnassignedRange};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_irqfd::KvmInterrupts;
use user_irqchip::Pic;
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::composition::options::GIC;
use crate::error::{Error, Result, at};
use crate::passthrough::bar::Bar;
#[cfg(target_arch = "aarch64")]
use crate::roundtrip::el1 as processor;
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{ACKNOWLEDGE_PORT, BAR_ADDRESS, BATCH_PORT, FAULT_PORT, MEMORY_SIZE, PORTS};
use crate::roundtrip::guest::status::Status;
#[cfg(target_arch = "x86_64")]
use crate::roundtrip::real_mode as processor;
use crate::vm::cpu_thread::Cpu;
use crate::vm::ending::Ending;
use crate::vm::exits::{DoorbellStores, Exits, Unassigned};
use crate::vm::irqchip::{Controllers, occupied};
use crate::vm::kvm::{create_vm, map};
use crate::vm::port::Port;
use crate::vm::stall::{STALL_LIMIT, StallDetector};

/// The memory slot after the guest's memory.
const BAR_SLOT: u32 = 1;

/// A VM with one vCPU that has not started yet.
// Field order is drop order: the vCPU goes before the memory that it runs in.
pub struct Machine {
    irqchip: Irqchip,
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    devices: IoManager,
    doorbells: IoeventBus,
    doorbell_stores: Arc<DoorbellStores>,
    ending: Arc<Ending>,
    /// Keeps a BAR's mapping, which is also memory of the guest, alive.
    bar: Option<Arc<Bar>>,
}

impl Machine {
    /// Makes a VM with this irqchip and `image` in its memory.
    ///
    /// # Errors
    /// [`Error::NoFullIrqchip`], or the error of the step that failed.
    pub fn new(kvm: &Kvm, image: &Image, irqchip: Irqchip) -> Result<Self> {
        let vm = create_vm(kvm, irqchip)?;
        let memory = load(image)?;
        map(&vm, &memory)?;
        let vcpu = vm.create_vcpu(0).map_err(at("KVM_CREATE_VCPU"))?;
        processor::set_up(kvm, &vm, &vcpu, image, irqchip)?;
        Ok(Self {
            irqchip,
            vcpu,
            vm: Arc::new(vm),
            memory: Arc::new(memory),
            devices: IoManager::new(),
            doorbells: IoeventBus::userspace(),
            doorbell_stores: Arc::default(),
            ending: Ending::new()?,
            bar: None,
        })
    }

    /// Gives the guest a device's BAR, at [`BAR_ADDRESS`]. The guest reaches the registers of a mapped BAR without an
    /// exit, and those of a remote BAR by exits. A machine has room for one BAR.
    ///
    /// # Errors
    /// [`Error::Kvm`] with EEXIST for a second mapped BAR, [`Error::Guest`] for a second remote one.
    pub fn map_bar(&mut self, bar: Arc<Bar>) -> Result<()> {
        match &*bar {
            Bar::Mapped(mapping) => {
                let region = kvm_userspace_memory_region {
                    slot: BAR_SLOT,
                    flags: 0,
                    guest_phys_addr: BAR_ADDRESS,
                    memory_size: bar.size() as u64,
                    userspace_addr: mapping.address() as u64,
                };
                // SAFETY: the range is the mapping that `bar` owns. The owner of the vCPU (`Machine`, then `Running`)
                // owns `bar` too, and drops it last.
                unsafe { self.vm.set_user_memory_region(region) }.map_err(at("KVM_SET_USER_MEMORY_REGION"))?;
            }
            Bar::Remote(remote) => {
                let range = MmioRange::new(MmioAddress(BAR_ADDRESS), bar.size() as u64).map_err(occupied)?;
                let registers = Arc::new(remote.registers(Arc::clone(&self.ending)));
                self.devices.register_mmio(range, registers).map_err(occupied)?;
            }
        }
        self.bar = Some(bar);
        Ok(())
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The guest's status page.
    ///
    /// # Errors
    /// None in practice: the memory is large enough.
    pub fn status(&self) -> Result<Status> {
        Ok(Status::new(&self.memory)?)
    }

    /// The interrupt controllers, in the kernel and in this process.
    ///
    /// # Errors
    /// [`Error::Irqfd`].
    pub fn controllers(&self) -> Result<Controllers> {
        let interrupts = || KvmInterrupts::new(Arc::clone(&self.vm));
        match self.irqchip {
            Irqchip::Kernel => Ok(Controllers::Kernel(interrupts()?)),
            Irqchip::Split => Controllers::split(interrupts()?),
            Irqchip::User => Controllers::user(),
        }
    }

    /// Ticks of the guest's time-stamp counter in a millisecond, never 0.
    ///
    /// # Errors
    /// The error of the ioctl, [`Error::Guest`] when KVM does not report the frequency, or [`Error::Impossible`] on arm64.
    pub fn tsc_khz(&self) -> Result<u32> {
        processor::tsc_khz(&self.vcpu)
    }

    /// Gives the guest these doorbells, and calls `batch_made` after each batch of stores. Returns the counters of the
    /// stores that exit.
    ///
    /// # Errors
    /// [`Error::Guest`] for a second call.
    pub fn connect(
        &mut self,
        doorbells: IoeventBus,
        batch_made: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) -> Result<Arc<DoorbellStores>> {
        self.register_port(BATCH_PORT, batch_made)?;
        self.doorbells = doorbells;
        Ok(Arc::clone(&self.doorbell_stores))
    }

    fn register_port(&mut self, port: u16, on_write: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<()> {
        let device = Arc::new(Port::new(on_write, Arc::clone(&self.ending)));
        if GIC {
            let range = MmioRange::new(MmioAddress(PORTS + u64::from(port)), 1).map_err(occupied)?;
            return self.devices.register_mmio(range, device).map_err(occupied);
        }
        let range = PioRange::new(PioAddress(port), 1).map_err(occupied)?;
        self.devices.register_pio(range, device).map_err(occupied)
    }

    /// Starts the guest and returns when it is ready for interrupts. `on_acknowledge` is called on the vCPU's thread.
    ///
    /// # Errors
    /// The errors of [`Cpu::start`], or [`Error::Guest`] when the guest does not get ready.
    pub fn start(
        mut self,
        controllers: &Controllers,
        on_acknowledge: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) -> Result<Running> {
        self.register_port(ACKNOWLEDGE_PORT, on_acknowledge)?;
        self.register_port(FAULT_PORT, || {
            Err(Error::Guest("it took a vector that nothing here raises".to_owned()))
        })?;
        controllers.attach(&mut self.devices)?;
        if self.irqchip == Irqchip::Split {
            // The guest writes the masks of the 8259s, which a split irqchip does not have.
            for (first, ports) in Pic::PORTS {
                let range = PioRange::new(PioAddress(first), ports).map_err(occupied)?;
                self.devices
                    .register_pio(range, Arc::new(UnassignedRange))
                    .map_err(occupied)?;
            }
        }
        let exits = Exits {
            devices: std::mem::take(&mut self.devices),
            doorbells: self.doorbells.clone(),
            doorbell_stores: Arc::clone(&self.doorbell_stores),
            controllers: controllers.clone(),
            ending: Arc::clone(&self.ending),
            unassigned: Unassigned::Error,
        };
        self.start_with(move |fd, stop| {
            exits.run(fd, stop)?;
            match exits.ending.ended() {
                Some(_) => Err(Error::Guest("its processor gave up (triple fault)".to_owned())),
                None => Ok(()),
            }
        })
    }

    /// As [`start`](Self::start), with the caller's `body`, which runs the vCPU until the flag becomes true.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(self, body: impl FnOnce(VcpuFd, &AtomicBool) -> Result<()> + Send + 'static) -> Result<Running> {
        let (status, vcpu) = (self.status()?, self.vcpu);
        let cpu = Cpu::start("vcpu0", move |stop| body(vcpu, stop))?;
        // Keep the VM's file open: the vCPU keeps the VM alive, but KVM removes the irqfds when the last file of the VM
        // is closed.
        Running::new(cpu, &status, (self.vm, self.memory, self.bar))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({:?}, {:?})", self.irqchip, self.vcpu)
    }
}

/// A machine with a running guest. A drop stops the guest.
pub struct Running {
    cpu: Cpu,
    /// The machine's memory and devices.
    _kept: Box<dyn Send>,
}

impl Running {
    /// Waits for the guest to get ready, and keeps `kept` for as long as it runs.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest ends or does not get ready in time.
    pub(crate) fn new(cpu: Cpu, status: &Status, kept: impl Send + 'static) -> Result<Self> {
        let mut stall = StallDetector::new(STALL_LIMIT);
        while !status.is_ready() {
            if cpu.has_ended() {
                cpu.stop()?;
                return Err(Error::Guest("it ended before it was ready".to_owned()));
            }
            if stall.is_stalled(0) {
                cpu.stop()?;
                return Err(Error::Guest(format!("it was not ready within {STALL_LIMIT:?}")));
            }
            thread::yield_now();
        }
        Ok(Self {
            cpu,
            _kept: Box::new(kept),
        })
    }

    /// Whether the guest has failed; [`stop`](Self::stop) then returns the error.
    pub fn has_ended(&self) -> bool {
        self.cpu.has_ended()
    }

    /// Stops the guest.
    ///
    /// # Errors
    /// The guest's failure, if it failed.
    pub fn stop(self) -> Result<()> {
        self.cpu.stop()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({:?})", self.cpu)
    }
}

/// Makes memory that holds the program and its tables.
fn load(image: &Image) -> Result<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
        .map_err(|error| Error::Memory(error.to_string()))?;
    for (at, bytes) in &image.parts {
        memory.write_slice(bytes, GuestAddress(*at))?;
    }
    Ok(memory)
}
