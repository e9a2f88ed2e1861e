// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MMIO transport (section 4.2), version 2: the registers of one device with one queue.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::LevelInterrupt;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT as _};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Result;
use crate::linux::virtio::backend::Backend;
use crate::linux::virtio::chain::Malformed;
use crate::linux::virtio::worker::{Shared, Worker};

/// The largest queue size in descriptors.
pub const QUEUE_MAX: u16 = 256;

/// The size of the window in bytes.
pub const WINDOW: u64 = 0x200;

/// The offset of the register that the guest writes to announce requests. The ioevent bus serves these writes.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", and the version of the interface.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// The vendor ID: none.
const VENDOR: u32 = 0;

/// The registers that the driver has written.
#[derive(Debug, Default)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queue: QueueRegisters,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    /// The queue size. 0, until the driver chooses a size, stands for the largest.
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// A device's registers, shared by the guest's processors.
#[derive(Debug)]
pub struct Mmio {
    kind: u32,
    features: u64,
    configuration: Vec<u8>,
    registers: Mutex<Registers>,
    shared: Arc<Shared>,
}

impl Mmio {
    /// Makes the transport of `backend`, which drives this interrupt. `kick` is a blocking eventfd that each write to
    /// [`QUEUE_NOTIFY`] signals.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        interrupt: LevelInterrupt,
        kick: Arc<EventFd>,
        backend: Box<dyn Backend>,
    ) -> Arc<Self> {
        let common = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        Arc::new(Self {
            kind: backend.kind(),
            features: backend.features() | common,
            configuration: backend.configuration(),
            registers: Mutex::default(),
            shared: Arc::new(Shared::new(memory, interrupt, kick, backend)),
        })
    }

    /// Starts the thread that serves the queue.
    ///
    /// # Errors
    /// [`Error::System`](crate::error::Error::System) when the thread cannot be started.
    pub fn start(&self, name: String) -> Result<Worker> {
        Worker::start(name, Arc::clone(&self.shared))
    }

    /// The state that the registers share with the thread.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => return MAGIC,
            VIRTIO_MMIO_VERSION => return VERSION,
            VIRTIO_MMIO_DEVICE_ID => return self.kind,
            VIRTIO_MMIO_VENDOR_ID => return VENDOR,
            // Read without the lock of the other registers, because the guest reads this register at each interrupt.
            VIRTIO_MMIO_INTERRUPT_STATUS => return self.shared.interrupt().causes(),
            // The configuration does not change.
            VIRTIO_MMIO_CONFIG_GENERATION => return 0,
            // The device has no shared memory region: its length reads as -1.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let registers = self.registers();
        match (register, registers.queue_select) {
            (VIRTIO_MMIO_DEVICE_FEATURES, _) => half(self.features, registers.device_features_select),
            (VIRTIO_MMIO_STATUS, _) if self.shared.needs_reset() => registers.status | VIRTIO_CONFIG_S_NEEDS_RESET,
            (VIRTIO_MMIO_STATUS, _) => registers.status,
            (VIRTIO_MMIO_QUEUE_NUM_MAX, 0) => QUEUE_MAX.into(),
            (VIRTIO_MMIO_QUEUE_READY, 0) => registers.queue.ready.into(),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        if register == VIRTIO_MMIO_INTERRUPT_ACK {
            // `LevelInterrupt` counts a level that the source refuses, and retries at the next event.
            let _ = self.shared.interrupt().clear(value);
            return;
        }
        let registers = &mut *self.registers();
        match (register, registers.queue_select) {
            (VIRTIO_MMIO_DEVICE_FEATURES_SEL, _) => registers.device_features_select = value,
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, _) => registers.driver_features_select = value,
            (VIRTIO_MMIO_DRIVER_FEATURES, _) if registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let select = registers.driver_features_select;
                set_half(&mut registers.driver_features, select, value);
            }
            (VIRTIO_MMIO_STATUS, _) => self.write_status(registers, value),
            (VIRTIO_MMIO_QUEUE_SEL, _) => registers.queue_select = value,
            (VIRTIO_MMIO_QUEUE_READY, 0) => {
                registers.queue.ready = value & 1 == 1;
                if !registers.queue.ready && registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                    self.shared.reset();
                }
            }
            // The addresses of a queue in use do not change.
            (_, 0) if !registers.queue.ready => {
                let queue = &mut registers.queue;
                match register {
                    VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
                    VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
                    VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
                    VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
                    VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
                    VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
                    VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The device's part of the driver's set-up (section 3.1).
    fn write_status(&self, registers: &mut Registers, mut value: u32) {
        if value == 0 {
            self.shared.reset();
            *registers = Registers::default();
            return;
        }
        let (was, ok) = (registers.status, VIRTIO_CONFIG_S_FEATURES_OK);
        let acceptable =
            registers.driver_features & !self.features == 0 && registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if value & ok != 0 && was & ok == 0 && !acceptable {
            // Clear FEATURES_OK, so that the driver reads back that its choice is refused.
            value &= !ok;
        }
        registers.status = value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let starts = value & !was & VIRTIO_CONFIG_S_DRIVER_OK != 0 && value & ok != 0;
        if starts && registers.queue.ready {
            match registers.queue.build(registers.driver_features, self.shared.memory()) {
                Ok(queue) => self.shared.start(queue, registers.driver_features),
                Err(why) => self.shared.fail(why),
            }
        }
    }
}

impl QueueRegisters {
    /// Builds the queue that the registers describe, and checks it.
    fn build(&self, features: u64, memory: &GuestMemoryMmap) -> std::result::Result<Queue, Malformed> {
        let wrong = |reason| Malformed::Queue {
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            reason,
        };
        let mut queue = Queue::new(QUEUE_MAX).map_err(|_| wrong("size"))?;
        if self.size != 0 {
            let size = u16::try_from(self.size).map_err(|_| wrong("size"))?;
            queue.try_set_size(size).map_err(|_| wrong("size"))?;
        }
        let alignment = |_| wrong("alignment");
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .map_err(alignment)?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .map_err(alignment)?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .map_err(alignment)?;
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        // `virtio-queue` treats an available ring at address 0 as absent.
        if self.available == 0 || !queue.is_valid(memory) {
            return Err(wrong("it is not in the guest's memory"));
        }
        Ok(queue)
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, to: u32) {
    match select {
        0 => *value = *value >> 32 << 32 | u64::from(to),
        1 => *value = *value << 32 >> 32 | u64::from(to) << 32,
        _ => {}
    }
}

/// Serves aligned accesses of 4 bytes to the registers (section 4.2.2.2), and any access to the configuration. Other
/// reads return 0, other writes are ignored.
impl DeviceMmio for Mmio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
        if let Some(at) = offset.checked_sub(CONFIG) {
            for (byte, at) in data.iter_mut().zip(at..) {
                *byte = self.configuration.get(at as usize).copied().unwrap_or(0);
            }
        } else if let (Ok(word), 0) = (<&mut [u8; 4]>::try_from(&mut *data), offset % 4) {
            *word = self.read_register(offset as u32).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        // A write to QUEUE_NOTIFY does not arrive here: the ioevent bus serves it.
        if let (Ok(word), 0, true) = (data.try_into(), offset % 4, offset < VIRTIO_MMIO_CONFIG.into()) {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}
