// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device behind vfio-pci.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interrupt_core::forward::DeviceInterrupt;
use vfio_intx::VfioIntx;
use vfio_intx::irq_set::{IrqInfo, IrqSet};
use vfio_ioctls::{VfioContainer, VfioDevice};

use crate::common::Rig;

const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// Registers in BAR0, 32 bits each.
const ID: u64 = 0x00;
const STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

/// The command register, and its bits.
const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u16 = 0x6;
const INTERRUPT_DISABLE: u16 = 1 << 10;

const FIRST: &str = "0000:00:02.0";
const SECOND: &str = "0000:00:03.0";

/// An edu whose status is 0 and whose interrupts are not set up.
pub struct Edu {
    device: Arc<VfioDevice>,
    intx: Arc<VfioIntx<Arc<VfioDevice>>>,
}

/// Why there is no such edu here.
fn probe(address: &str) -> Result<(), String> {
    let name = format!("/sys/bus/pci/devices/{address}");
    let device = Path::new(&name);
    if !Path::new("/dev/vfio/vfio").exists() {
        return Err("no /dev/vfio/vfio: run it in the lab (cargo xtask lab)".to_owned());
    }
    let read = |file| fs::read_to_string(device.join(file)).unwrap_or_default();
    if (read("vendor").trim(), read("device").trim()) != ("0x1234", "0x11e8") {
        return Err(format!("{address} is no edu device"));
    }
    let driver = fs::read_link(device.join("driver")).unwrap_or_default();
    match driver.file_name() {
        Some(name) if name == "vfio-pci" => Ok(()),
        _ => Err(format!("{address} is not bound to vfio-pci")),
    }
}

pub fn probe_first() -> Result<(), String> {
    probe(FIRST)
}

pub fn probe_second() -> Result<(), String> {
    probe(SECOND)
}

pub fn first() -> Arc<Edu> {
    static EDU: OnceLock<Arc<Edu>> = OnceLock::new();
    Edu::at_rest(&EDU, FIRST)
}

pub fn second() -> Arc<Edu> {
    static EDU: OnceLock<Arc<Edu>> = OnceLock::new();
    Edu::at_rest(&EDU, SECOND)
}

/// How often the host's kernel has handled the INTx of the first edu: its row of /proc/interrupts, which is only shown
/// there while INTx is set up.
#[cfg(target_arch = "x86_64")]
pub fn host_interrupts() -> u64 {
    let read = |path: String| fs::read_to_string(path).unwrap();
    let irq = read(format!("/sys/bus/pci/devices/{FIRST}/irq"));
    let counts = read(format!("/sys/kernel/irq/{}/per_cpu_count", irq.trim()));
    counts
        .trim()
        .split(',')
        .map(|count| count.parse::<u64>().unwrap())
        .sum()
}

impl Edu {
    fn open(address: &str) -> Self {
        let container = Arc::new(VfioContainer::new(None).unwrap());
        let path = format!("/sys/bus/pci/devices/{address}");
        let device = Arc::new(VfioDevice::new(Path::new(&path), container, false).unwrap());
        let edu = Self {
            intx: Arc::new(VfioIntx::new(address, Arc::clone(&device))),
            device,
        };
        edu.set_command(MEMORY_AND_MASTER);
        assert_eq!(edu.read(ID) & 0xffff, 0xed, "{address} answers as an edu does");
        edu
    }

    fn at_rest(slot: &OnceLock<Arc<Self>>, address: &str) -> Arc<Self> {
        let edu = slot.get_or_init(|| Arc::new(Self::open(address)));
        edu.acknowledge(u32::MAX);
        edu.set_disintx(false);
        // A test that failed may have left it set up.
        drop(edu.intx.set_trigger(None));
        Arc::clone(edu)
    }

    fn read(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.device.region_read(BAR0, &mut value, register);
        u32::from_le_bytes(value)
    }

    fn write(&self, register: u64, value: u32) {
        self.device.region_write(BAR0, &value.to_le_bytes(), register);
    }

    fn set_command(&self, command: u16) {
        self.device.region_write(CONFIG, &command.to_le_bytes(), COMMAND);
    }

    /// What VFIO_DEVICE_RESET leaves: vfio-pci cannot reset this device (no FLR, on the root bus), and edu's status is
    /// cleared instead. The command register stays as it is: vfio-pci restores it.
    pub fn reset(&self) {
        self.device.reset();
        self.write(ACKNOWLEDGE, u32::MAX);
    }
}

impl Rig for Arc<Edu> {
    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        self.intx.clone()
    }

    fn set_irqs(&self, request: &IrqSet<'_>) -> std::io::Result<()> {
        self.intx.set_irqs(request)
    }

    fn irq_info(&self) -> IrqInfo {
        self.intx.irq_info().unwrap()
    }

    fn raise(&self, bits: u32) {
        self.write(RAISE, bits);
    }

    fn acknowledge(&self, bits: u32) {
        self.write(ACKNOWLEDGE, bits);
    }

    fn status(&self) -> u32 {
        self.read(STATUS)
    }

    fn set_disintx(&self, disable: bool) {
        let bit = if disable { INTERRUPT_DISABLE } else { 0 };
        self.set_command(MEMORY_AND_MASTER | bit);
    }

    fn pump(&self) {
        // The kernel needs nobody; it may need this CPU.
        std::thread::yield_now();
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(10)
    }
}
