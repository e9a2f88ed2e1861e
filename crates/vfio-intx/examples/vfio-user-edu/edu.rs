// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device as a vfio-user server shows it: its registers, its configuration space, and the INTx of [`ModelIntx`].

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_intx::ModelIntx;
use vfio_intx::irq_set::{Data, INTX, IrqSet, flags};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const BAR0_SIZE: u64 = 1 << 20;
const CONFIG_SIZE: usize = 256;

// QEMU, docs/specs/edu.rst: offsets into BAR 0.
const ID: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

/// What of an INTx the server reports and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intx {
    /// As vfio-pci: EVENTFD, MASKABLE and AUTOMASKED, and an eventfd may unmask it.
    Level,
    /// As libvfio-user: EVENTFD alone. Masks are accepted and do nothing.
    Pulse,
}

/// The device.
pub struct Edu {
    model: Arc<ModelIntx>,
    config: [u8; CONFIG_SIZE],
    liveness: u32,
    /// Counts the changes of the interrupt's wires, so that a watcher of an old unmask eventfd ends.
    wiring: Arc<AtomicU64>,
}

/// A server that listens at `path`, which must not exist.
pub fn server(path: &Path, intx: Intx) -> Result<Server, vfio_user::Error> {
    let flags = match intx {
        Intx::Level => flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED,
        Intx::Pulse => flags::INFO_EVENTFD,
    };
    let irqs = (0..VFIO_PCI_NUM_IRQS).map(|index| match index {
        INTX => IrqInfo { index, flags, count: 1 },
        _ => IrqInfo {
            index,
            flags: 0,
            count: 0,
        },
    });
    let regions = (0..VFIO_PCI_NUM_REGIONS).map(|index| ServerRegion {
        region_info: vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            index,
            size: match index {
                BAR0 => BAR0_SIZE,
                CONFIG => CONFIG_SIZE as u64,
                _ => 0,
            },
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    });
    Server::new(path, true, irqs.collect(), regions.collect())
}

impl Edu {
    /// A device that asserts nothing.
    pub fn new(intx: Intx) -> Self {
        let model = match intx {
            Intx::Level => ModelIntx::new("edu"),
            Intx::Pulse => ModelIntx::pulse("edu"),
        };
        let mut config = [0; CONFIG_SIZE];
        config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
        config[0x3d] = 1; // Interrupt Pin: INTA
        Self {
            model: Arc::new(model),
            config,
            liveness: 0,
            wiring: Arc::default(),
        }
    }

    /// Its interrupt and status register, for whoever plays the device.
    pub fn model(&self) -> &Arc<ModelIntx> {
        &self.model
    }

    /// Plays the kernel's part: unmasks when the unmask eventfd says so, for as long as that is the one.
    fn watch_unmask(&self) {
        let (model, wiring) = (Arc::clone(&self.model), Arc::clone(&self.wiring));
        let mine = wiring.load(Ordering::Acquire);
        thread::spawn(move || {
            while wiring.load(Ordering::Acquire) == mine {
                // The limit is for the end; a signal is seen at once.
                model.wait_unmask(Duration::from_millis(100));
            }
        });
    }

    fn rewired(&self) {
        self.wiring.fetch_add(1, Ordering::AcqRel);
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            ID => 0x0100_00ed,
            LIVENESS => !self.liveness,
            STATUS => self.model.status(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            LIVENESS => self.liveness = value,
            RAISE => self.model.raise(value),
            ACKNOWLEDGE => self.model.acknowledge(value),
            _ => {}
        }
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

impl ServerBackend for Edu {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            BAR0 if data.len() == 4 => data.copy_from_slice(&self.register(offset).to_le_bytes()),
            CONFIG => {
                let from = usize::try_from(offset).map_err(|_| invalid())?;
                let bytes = self.config.get(from..).and_then(|rest| rest.get(..data.len()));
                data.copy_from_slice(bytes.ok_or_else(invalid)?);
            }
            _ => data.fill(0xff),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        const COMMAND: u64 = 4;
        const INTERRUPT_DISABLE: u16 = 1 << 10;
        match (region, offset, data) {
            (BAR0, _, &[a, b, c, d]) => self.set_register(offset, u32::from_le_bytes([a, b, c, d])),
            (CONFIG, COMMAND, &[low, high]) => {
                self.config[4..6].copy_from_slice(data);
                self.model
                    .set_disintx(u16::from_le_bytes([low, high]) & INTERRUPT_DISABLE != 0);
            }
            _ => {} // read-only, or nothing
        }
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(()) // it makes no use of it
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.model.reset();
        self.rewired();
        self.liveness = 0;
        self.config[4..6].fill(0);
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        let (data, size) = match flags & flags::DATA_TYPES {
            flags::DATA_EVENTFD => (Data::Eventfd(fds.first().map(AsFd::as_fd)), 4),
            _ => (Data::None, 0),
        };
        let argsz = IrqSet::HEADER + size;
        self.model.set_irqs(&IrqSet {
            argsz,
            flags,
            index,
            start,
            count,
            data,
        })?;
        if index == INTX
            && flags & (flags::ACTION_UNMASK | flags::DATA_EVENTFD) == flags::ACTION_UNMASK | flags::DATA_EVENTFD
        {
            self.rewired();
            if !fds.is_empty() {
                self.watch_unmask();
            }
        }
        Ok(())
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.rewired();
    }
}
