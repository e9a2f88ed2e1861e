// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions and windows with a model of a device, as a guest reaches them: through the ports and the addresses.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use interrupt_core::forward::{DeviceInterrupt, DeviceIrq};
use kvm_bindings::kvm_userspace_memory_region;
use proptest::prelude::*;
use vfio_intx::{Intx, ModelIntx, State};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::EventFd;

use super::address_map::{IO_WINDOW, MEMORY_WINDOW};
use super::bar::Bars;
use super::config_ports::{ConfigPorts, PORT};
use super::config_space::{ConfigSpace, SIZE};
use super::device::{Area, BAR0_REGION, CONFIG_REGION, PciDevice};
use super::function::{Function, Identity};
use super::windows::{Windows, slots_of};
use crate::vm::ending::{End, Ending};

/// BAR 0: 8 KiB of memory, the first half of which is mapped. BAR 1: 256 bytes of memory. BAR 2: 32 ports. BARs 4 and 5:
/// 64 KiB of 64-bit memory, mapped.
const SIZES: [u64; 6] = [0x2000, 0x100, 0x20, 0, 0x1_0000, 0];

/// Power management at 0x50, MSI at 0x60, PCI Express with a function-level reset at 0x90.
const POWER: u8 = 0x54;
const FLR: u8 = 0x98;
const HIDDEN: Range<usize> = 0x60..0x6e;

/// A device that keeps what is written to its registers, and whose registers all can be written.
#[derive(Debug)]
struct Model {
    space: Mutex<[u8; SIZE]>,
    bars: Mutex<BTreeMap<(u32, u64), u8>>,
    resets: AtomicUsize,
    gone: AtomicBool,
    /// Whether the device refuses accesses to its configuration space and resets, without being gone.
    refuses: AtomicBool,
    intx: Arc<ModelIntx>,
    /// The guest's memory slots, and which of them are the device's.
    slots: OnceLock<(Slots, Range<u32>)>,
    /// With it, a store to a BAR says that it has begun, and ends when it is told to.
    gate: OnceLock<(Sender<()>, Mutex<Receiver<()>>)>,
}

fn model() -> Arc<Model> {
    let mut space = [0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x86, 0x80, 0x0e, 0x10, 7, 4, 0x10, 0]);
    put(0x08, &[3, 0, 0, 2]);
    put(0x10, &0xfeb0_0000_u32.to_le_bytes());
    put(0x14, &0xfeb0_2000_u32.to_le_bytes());
    put(0x18, &0xc001_u32.to_le_bytes());
    put(0x20, &0x000c_u32.to_le_bytes());
    put(0x34, &[0x50]);
    put(0x3c, &[11, 1]);
    put(0x50, &[0x01, 0x60]);
    put(0x60, &[0x05, 0x90, 0x80, 0]);
    put(0x90, &[0x10, 0, 2, 0, 0, 0, 0, 1 << 4]);
    Arc::new(Model {
        space: Mutex::new(space),
        bars: Mutex::default(),
        resets: AtomicUsize::new(0),
        gone: AtomicBool::new(false),
        refuses: AtomicBool::new(false),
        intx: Arc::new(ModelIntx::new("model")),
        slots: OnceLock::new(),
        gate: OnceLock::new(),
    })
}

impl PciDevice for Model {
    fn label(&self) -> &str {
        "model"
    }

    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::<ModelIntx>::clone(&self.intx)
    }

    fn irq(&self) -> Option<DeviceIrq> {
        None
    }

    fn bar_size(&self, bar: u8) -> io::Result<u64> {
        Ok(SIZES[usize::from(bar)])
    }

    fn areas(&self, bar: u8) -> Vec<Area> {
        let size = match bar {
            0 => 0x1000,
            4 => 0x1_0000,
            _ => return Vec::new(),
        };
        let (offset, address) = (0, 0x7000_0000_0000);
        vec![Area { offset, size, address }]
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.serves(region)?;
        for (at, byte) in (offset..).zip(data) {
            *byte = match region {
                CONFIG_REGION => self.space.lock().unwrap()[at as usize],
                _ => self.bars.lock().unwrap().get(&(region, at)).copied().unwrap_or(0),
            };
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.serves(region)?;
        let turns_off = match (region, offset, data) {
            (CONFIG_REGION, 4, [command, ..]) => command & 2 == 0,
            (CONFIG_REGION, 0x54, [power, ..]) => power & 3 != 0,
            _ => false,
        };
        if let Some((slots, mine)) = self.slots.get().filter(|_| turns_off) {
            let slots = slots.lock().unwrap();
            assert_eq!(
                slots.range(mine.clone()).count(),
                0,
                "a guest reaches what is turned off"
            );
        }
        if let Some((begun, go_on)) = self.gate.get().filter(|_| region != CONFIG_REGION) {
            begun.send(()).unwrap();
            go_on.lock().unwrap().recv().unwrap();
        }
        for (at, byte) in (offset..).zip(data) {
            match region {
                CONFIG_REGION => self.space.lock().unwrap()[at as usize] = *byte,
                _ => drop(self.bars.lock().unwrap().insert((region, at), *byte)),
            }
        }
        Ok(())
    }

    fn has_messages(&self) -> bool {
        false
    }

    fn set_messages(&self, _: &[EventFd]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.check()?;
        self.serves(CONFIG_REGION)
    }

    fn is_gone(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::NotConnected
    }
}

impl Model {
    fn check(&self) -> io::Result<()> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::NotConnected.into()),
            false => Ok(()),
        }
    }

    fn serves(&self, region: u32) -> io::Result<()> {
        match region == CONFIG_REGION && self.refuses.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => Ok(()),
        }
    }
}

/// The guest's memory slots of the devices: address and size.
type Slots = Arc<Mutex<BTreeMap<u32, (u64, u64)>>>;

/// Two models on a bus, at devices 1 and 2.
struct Bus {
    ports: ConfigPorts,
    windows: Arc<Windows>,
    slots: Slots,
    ending: Arc<Ending>,
    models: [Arc<Model>; 2],
    intx: Vec<Arc<Intx>>,
}

impl Bus {
    fn new() -> Self {
        let slots = Slots::default();
        let (changed, ending) = (Arc::clone(&slots), Ending::new().unwrap());
        let set_memory = move |region: kvm_userspace_memory_region| {
            let mut slots = changed.lock().unwrap();
            match region.memory_size {
                0 => drop(slots.remove(&region.slot).expect("a slot that there is")),
                size => {
                    let range = (region.guest_phys_addr, size);
                    assert!(slots.insert(region.slot, range).is_none(), "a free slot");
                }
            }
            Ok(())
        };
        let windows = Arc::new(Windows::new(Box::new(set_memory), Arc::clone(&ending)));
        let models = [model(), model()];
        let mut intx = Vec::new();
        let functions = (1..).zip(&models).map(|(number, model)| {
            let mine = slots_of(number);
            model.slots.set((Arc::clone(&slots), mine)).unwrap();
            let (handle, _) = Intx::new(model.interrupt()).unwrap();
            let handle = Arc::new(handle);
            let device: Arc<dyn PciDevice> = Arc::<Model>::clone(model);
            let identity = Identity::read(&*device, false).unwrap();
            let (weak, windows, ending) = (Arc::downgrade(&handle), Arc::clone(&windows), Arc::clone(&ending));
            intx.push(handle);
            let function = Function::new(number, device, identity, windows, weak, None, ending).unwrap();
            (number, Arc::new(function) as Arc<dyn ConfigSpace>)
        });
        Self {
            ports: ConfigPorts::new(functions.collect()),
            windows,
            slots,
            ending,
            models,
            intx,
        }
    }

    fn select(&self, device: u8, offset: u8) -> u16 {
        let address = 1 << 31 | u32::from(device) << 11 | u32::from(offset & 0xfc);
        self.ports.pio_write(PioAddress(PORT), 0, &address.to_le_bytes());
        4 + u16::from(offset & 3)
    }

    fn read<const SIZE: usize>(&self, device: u8, offset: u8) -> [u8; SIZE] {
        let (port, mut data) = (self.select(device, offset), [0; SIZE]);
        self.ports.pio_read(PioAddress(PORT), port, &mut data);
        data
    }

    fn write(&self, device: u8, offset: u8, data: &[u8]) {
        let port = self.select(device, offset);
        self.ports.pio_write(PioAddress(PORT), port, data);
    }

    /// Places a BAR.
    fn place(&self, device: u8, bar: u8, address: u32) {
        self.write(device, 0x10 + 4 * bar, &address.to_le_bytes());
    }

    fn slots(&self) -> Vec<(u64, u64)> {
        self.lock().values().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, (u64, u64)>> {
        self.slots.lock().unwrap()
    }

    fn load(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        let base = *MEMORY_WINDOW.start();
        self.windows.mmio_read(MmioAddress(base), address - base, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&self, address: u64, value: u32) {
        let base = *MEMORY_WINDOW.start();
        self.windows
            .mmio_write(MmioAddress(base), address - base, &value.to_le_bytes());
    }
}

const IO_AND_MEMORY: [u8; 2] = [3, 0];
const OFF: [u8; 2] = [0, 0];

#[test]
fn a_guest_finds_the_device_with_everything_off() {
    let bus = Bus::new();
    assert_eq!(bus.read(1, 0), [0x86, 0x80, 0x0e, 0x10]);
    assert_eq!(bus.read(1, 4), OFF, "whatever the host has set");
    assert_eq!(bus.read(1, 0x3d), [1]);
    let bars = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map(|offset| u32::from_le_bytes(bus.read(1, offset)));
    assert_eq!(bars, [0, 0, 1, 0, 0xc, 0], "without the host's addresses");
    assert_eq!(bus.read(1, 0x51), [0x90], "without MSI");
    assert_eq!(bus.read(3, 0), [0xff; 4]);
}

#[test]
fn a_bar_is_memory_of_the_guest_while_it_decodes() {
    let bus = Bus::new();
    bus.place(1, 0, 0xe000_0000);
    bus.place(1, 4, 0xe100_0000);
    assert_eq!(bus.slots(), []);
    bus.write(1, 4, &IO_AND_MEMORY);
    assert_eq!(bus.slots(), [(0xe000_0000, 0x1000), (0xe100_0000, 0x1_0000)]);
    bus.place(1, 0, 0xe200_0000);
    assert_eq!(bus.slots(), [(0xe200_0000, 0x1000), (0xe100_0000, 0x1_0000)]);
    // The upper half of the address is beyond the window.
    bus.place(1, 5, 1);
    assert_eq!(bus.slots(), [(0xe200_0000, 0x1000)]);
    bus.write(1, 4, &OFF);
    assert_eq!(bus.slots(), []);
    assert_eq!(
        bus.models[0].space.lock().unwrap()[0x10..0x14],
        0xfeb0_0000_u32.to_le_bytes()
    );
}

#[test]
fn what_is_no_memory_of_the_guest_exits_to_the_device() {
    let bus = Bus::new();
    bus.place(1, 0, 0xe000_0000);
    bus.place(1, 1, 0xe000_2100);
    bus.place(1, 2, 0x1020);
    assert_eq!(bus.load(0xe000_2100), u32::MAX, "it does not decode yet");
    bus.write(1, 4, &IO_AND_MEMORY);
    bus.store(0xe000_2104, 0x1234_5678);
    bus.store(0xe000_1ffc, 7);
    assert_eq!(bus.load(0xe000_2104), 0x1234_5678);
    let bars = bus.models[0].bars.lock().unwrap().clone();
    assert_eq!(bars[&(BAR0_REGION + 1, 4)], 0x78);
    assert_eq!(bars[&(BAR0_REGION, 0x1ffc)], 7, "its second half is not mapped");
    // Across the end of the BAR.
    assert_eq!(bus.load(0xe000_21fe), u32::MAX);
    let io = PioAddress(*IO_WINDOW.start() as u16);
    bus.windows.pio_write(io, 0x24, &[9]);
    let mut data = [0; 2];
    bus.windows.pio_read(io, 0x24, &mut data);
    assert_eq!(data, [9, 0]);
    bus.windows.pio_read(io, 0x3f, &mut data);
    assert_eq!(data, [0xff; 2], "across the end");
}

#[test]
fn no_store_reaches_a_device_that_is_turned_off() {
    let bus = &Bus::new();
    bus.place(1, 1, 0xe000_0000);
    bus.write(1, 4, &IO_AND_MEMORY);
    thread::scope(|scope| {
        let ((begun, has_begun), (go_on, wait), (off, is_off)) = (channel(), channel(), channel());
        bus.models[0].gate.set((begun, Mutex::new(wait))).unwrap();
        scope.spawn(|| bus.store(0xe000_0000, 1));
        has_begun.recv().unwrap();
        scope.spawn(move || {
            bus.write(1, 4, &OFF);
            off.send(()).unwrap();
        });
        // Without the wait for the store this takes microseconds.
        let during = is_off.recv_timeout(Duration::from_millis(200));
        assert_eq!(during, Err(RecvTimeoutError::Timeout), "a store is on its way");
        go_on.send(()).unwrap();
        is_off.recv().unwrap();
    });
}

#[test]
fn a_bar_over_another_one_does_not_decode_until_that_one_has_moved() {
    let bus = Bus::new();
    bus.place(1, 0, 0xe000_0000);
    bus.write(1, 4, &IO_AND_MEMORY);
    bus.place(2, 4, 0xe000_0000);
    bus.write(2, 4, &IO_AND_MEMORY);
    assert_eq!(bus.slots(), [(0xe000_0000, 0x1000)], "the first one stays");
    bus.place(1, 0, 0xe001_0000);
    assert_eq!(bus.slots(), [(0xe001_0000, 0x1000), (0xe000_0000, 0x1_0000)]);
}

#[test]
fn a_bar_over_memory_does_not_decode() {
    let bus = Bus::new();
    bus.write(1, 4, &IO_AND_MEMORY);
    for address in [0x0, 0x10_0000, 0xbfff_e000, 0xd000_0000, 0xfec0_0000, 0xfee0_0000] {
        bus.place(1, 0, address);
        assert_eq!(bus.slots(), [], "{address:#x}");
        assert_eq!(bus.read(1, 0x10), address.to_le_bytes(), "the register keeps it");
    }
    // Ports of the PC.
    bus.place(1, 2, 0x60);
    let mut data = [0; 1];
    bus.windows.pio_read(PioAddress(0), 0x64, &mut data);
    assert_eq!(data, [0xff]);
}

#[test]
fn a_device_that_sleeps_does_not_decode() {
    let bus = Bus::new();
    bus.place(1, 0, 0xe000_0000);
    bus.write(1, 4, &IO_AND_MEMORY);
    bus.write(1, POWER, &[3, 0]);
    assert_eq!(bus.slots(), []);
    assert_eq!(bus.load(0xe000_1800), u32::MAX);
    bus.write(1, POWER, &[0, 0]);
    assert_eq!(bus.slots(), [(0xe000_0000, 0x1000)]);
}

#[test]
fn interrupt_disable_masks_intx() {
    let bus = Bus::new();
    bus.intx[0].enable().unwrap();
    let masked = || bus.intx[0].status().state == State::Masked || bus.intx[0].save().disintx;
    assert!(!masked());
    bus.write(1, 5, &[4]);
    assert!(masked());
    bus.write(1, 4, &IO_AND_MEMORY);
    assert!(!masked());
}

#[test]
fn a_reset_of_the_guests_is_one_of_the_device() {
    let bus = Bus::new();
    bus.place(1, 0, 0xe000_0000);
    bus.write(1, 4, &[3, 4]);
    bus.write(1, FLR, &[0, 0x80]);
    assert_eq!(bus.models[0].resets.load(Ordering::Relaxed), 1);
    assert_eq!(bus.models[1].resets.load(Ordering::Relaxed), 0);
    assert_eq!((bus.read(1, 4), bus.read(1, 0x10)), (OFF, [0; 4]));
    assert_eq!(bus.slots(), []);
    assert!(!bus.intx[0].save().disintx);
}

#[test]
fn a_reset_that_fails_ends_the_machine() {
    let bus = Bus::new();
    bus.models[0].refuses.store(true, Ordering::Relaxed);
    bus.write(1, FLR, &[0, 0x80]);
    assert_eq!(bus.ending.ended(), Some(End::Failed));
}

#[test]
fn a_write_that_the_device_refuses_has_no_effect() {
    let bus = Bus::new();
    bus.intx[0].enable().unwrap();
    bus.place(1, 0, 0xe000_0000);
    // Memory decodes, and Interrupt Disable is set.
    bus.write(1, 4, &[2, 4]);
    assert!(bus.intx[0].save().disintx);
    bus.models[0].refuses.store(true, Ordering::Relaxed);
    bus.write(1, 4, &[2, 4]);
    bus.models[0].refuses.store(false, Ordering::Relaxed);
    assert_eq!(bus.read(1, 4), [2, 4], "the device has kept its command register");
    assert!(
        bus.intx[0].save().disintx,
        "INTx is unmasked, and Interrupt Disable is set"
    );
    assert_eq!(bus.slots(), [(0xe000_0000, 0x1000)], "the BAR is still on");
    assert_eq!(bus.ending.ended(), None);
}

#[test]
fn memory_that_kvm_does_not_take_back_ends_the_machine() {
    let ending = Ending::new().unwrap();
    let set_memory = |region: kvm_userspace_memory_region| match region.memory_size {
        0 => Err(vmm_sys_util::errno::Error::new(12)),
        _ => Ok(()),
    };
    let windows = Windows::new(Box::new(set_memory), Arc::clone(&ending));
    let device: Arc<dyn PciDevice> = model();
    let mut bars = Bars::new([0; 6], [0x1000, 0, 0, 0, 0, 0]).unwrap();
    bars.write(0, 0xe000_0000);
    windows.decode(1, &device, bars.iter());
    windows.decode(1, &device, [].into_iter());
    assert_eq!(ending.ended(), Some(End::Failed), "the guest still reaches the device");
}

#[test]
fn a_device_that_is_gone_ends_the_machine() {
    let bus = Bus::new();
    bus.place(1, 1, 0xe000_0000);
    bus.write(1, 4, &IO_AND_MEMORY);
    bus.models[0].gone.store(true, Ordering::Relaxed);
    assert_eq!(bus.load(0xe000_0000), u32::MAX);
    assert_eq!(bus.ending.ended(), Some(End::Failed));
    assert_eq!(bus.read(1, 0), [0xff; 4]);
}

/// An access of a guest that does what it likes.
#[derive(Clone, Debug)]
enum Access {
    Config { device: u8, offset: u8, data: Vec<u8> },
    ConfigRead { device: u8, offset: u8, size: usize },
    Memory { address: u64, data: Vec<u8> },
    Io { port: u16, data: Vec<u8> },
}

fn access() -> impl Strategy<Value = Access> {
    let data = || prop::collection::vec(any::<u8>(), 0..9);
    let register = prop_oneof![any::<u8>(), Just(4), 0x10..0x28_u8, 0x50..0x70_u8, 0x90..0xa0_u8];
    let base = prop_oneof![
        Just(0xe000_0000_u32),
        Just(0xe000_2000),
        Just(0xe001_0000),
        Just(0x1000),
        any::<u32>()
    ];
    prop_oneof![
        4 => (1..4_u8, register, data()).prop_map(|(device, offset, data)| Access::Config { device, offset, data }),
        2 => (1..3_u8, 0..6_u8, base).prop_map(|(device, bar, base)| Access::Config {
            device,
            offset: 0x10 + 4 * bar,
            data: base.to_le_bytes().to_vec(),
        }),
        2 => (1..3_u8, 0..8_u8).prop_map(|(device, command)| Access::Config { device, offset: 4, data: vec![command, 0] }),
        1 => (0..4_u8, any::<u8>(), 0..9_usize).prop_map(|(device, offset, size)| Access::ConfigRead { device, offset, size }),
        1 => (MEMORY_WINDOW, data()).prop_map(|(address, data)| Access::Memory { address, data }),
        1 => (0x1000..=0xffff_u16, data()).prop_map(|(port, data)| Access::Io { port, data }),
    ]
}

proptest! {
    /// Whatever a guest does, it changes no register of the host's but those of a driver, and what is memory of the guest
    /// is within the window and does not overlap.
    #[test]
    fn a_guest_changes_what_it_may_alone(accesses in prop::collection::vec(access(), 1..80)) {
        let bus = Bus::new();
        let before = *bus.models[0].space.lock().unwrap();
        for access in accesses {
            match access {
                Access::Config { device, offset, data } => bus.write(device, offset, &data),
                Access::ConfigRead { device, offset, size } => {
                    let port = bus.select(device, offset);
                    bus.ports.pio_read(PioAddress(PORT), port, &mut vec![0; size]);
                }
                Access::Memory { address, mut data } => {
                    let base = *MEMORY_WINDOW.start();
                    bus.windows.mmio_write(MmioAddress(base), address - base, &data);
                    bus.windows.mmio_read(MmioAddress(base), address - base, &mut data);
                }
                Access::Io { port, mut data } => {
                    bus.windows.pio_write(PioAddress(0x1000), port - 0x1000, &data);
                    bus.windows.pio_read(PioAddress(0x1000), port - 0x1000, &mut data);
                }
            }
            let mut slots = bus.slots();
            slots.sort_unstable();
            for (address, size) in &slots {
                prop_assert!(MEMORY_WINDOW.contains(address) && MEMORY_WINDOW.contains(&(address + size - 1)));
            }
            prop_assert!(slots.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{slots:?}");
        }
        for model in &bus.models {
            let after = *model.space.lock().unwrap();
            let may = |at: usize| matches!(at, 4..=7 | 0x0c | 0x0d | 0x3c | 0x52..0x58 | 0x92..0xcc);
            for at in (0..SIZE).filter(|at| !may(*at)) {
                prop_assert_eq!(after[at], before[at], "byte {:#x}", at);
            }
            prop_assert!(HIDDEN.clone().all(|at| !may(at)));
        }
        prop_assert_eq!(bus.ending.ended(), None);
    }
}
