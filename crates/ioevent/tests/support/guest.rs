// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU that stores, with a VMM around it that offers every store that exits to the bus.

use std::sync::Arc;

use iced_x86::code_asm::*;
use ioevent::{IoeventBus, Kvm, Path, Space};
use testkit::machine::{Exit, Irqchip, Machine, registers};
use testkit::need::Need;
use testkit::program::{DATA, EXIT_PORT, PROGRAM, assemble};

use super::backends::Faulty;

/// Who takes the guest's stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// A guest on KVM; KVM's ioeventfds.
    Kernel,
    /// A guest on KVM; KVM's ioeventfds, of which every second is refused.
    Half,
    /// A guest on KVM; no ioeventfds.
    Trapped,
    /// No KVM at all: every store is an exit.
    Model,
}

impl Setup {
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Half, Self::Trapped, Self::Model];

    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Kernel | Self::Half | Self::Trapped => &[Need::Kvm],
            Self::Model => &[],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Half => "half",
            Self::Trapped => "trapped",
            Self::Model => "model",
        }
    }
}

/// Guest RAM ends here: 64 KiB, so that a page of doorbells fits below 1 MiB too.
pub const RAM: usize = 0x1_0000;

/// A VM and its bus.
pub struct Guest {
    pub setup: Setup,
    pub bus: IoeventBus,
    machine: Option<Machine>,
    stores: Vec<(Space, usize, u64)>,
}

/// A store that exited and that no registration matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub space: Space,
    pub address: u64,
    pub data: Vec<u8>,
}

/// What became of one guest instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Exits that a registration matched, and so signalled from userspace.
    pub dispatched: usize,
    /// Stores that exited and belong to nobody.
    pub unmatched: Vec<Unmatched>,
    /// Reads that exited.
    pub reads: usize,
}

impl Guest {
    pub fn new(setup: Setup) -> Self {
        Self::with_irqchip(setup, Irqchip::User)
    }

    /// On [`Setup::Model`] there is no machine and so no irqchip.
    pub fn with_irqchip(setup: Setup, irqchip: Irqchip) -> Self {
        let machine = (setup != Setup::Model).then(|| Machine::builder().irqchip(irqchip).memory(RAM).build().unwrap());
        let kvm = |machine: &Machine| Kvm::new(machine.vm().clone());
        let bus = match (setup, &machine) {
            (Setup::Kernel, Some(machine)) => IoeventBus::kvm(machine.vm().clone()),
            (Setup::Half, Some(machine)) => IoeventBus::new(Faulty::half(kvm(machine))),
            _ => IoeventBus::userspace(),
        };
        let mut guest = Self {
            setup,
            bus,
            machine,
            stores: Vec::new(),
        };
        guest.lay_stores();
        guest
    }

    pub fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().unwrap()
    }

    /// Where one-instruction programs end and a test's own may begin.
    pub const PROGRAM: u64 = PROGRAM + 0x200;

    fn lay_stores(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let exit = i32::from(EXIT_PORT);
        let mut at = PROGRAM;
        for space in [Space::Mmio, Space::Pio] {
            for width in [1, 2, 4, 8] {
                let code = assemble(at, |a| {
                    match (space, width) {
                        (Space::Mmio, 1) => a.mov(byte_ptr(ebx).es(), al)?,
                        (Space::Mmio, 2) => a.mov(word_ptr(ebx).es(), ax)?,
                        (Space::Mmio, 4) => a.mov(dword_ptr(ebx).es(), eax)?,
                        (Space::Mmio, 8) => {
                            a.movq(mm0, qword_ptr(DATA as u32))?;
                            a.movq(qword_ptr(ebx).es(), mm0)?;
                        }
                        (Space::Pio, 1) => a.out(dx, al)?,
                        (Space::Pio, 2) => a.out(dx, ax)?,
                        (Space::Pio, 4) => a.out(dx, eax)?,
                        _ => return Ok(()),
                    }
                    a.out(exit, al)
                });
                if !code.is_empty() {
                    machine.load(at, &code);
                    self.stores.push((space, width, at));
                    at += code.len() as u64;
                }
            }
        }
        assert!(at <= Self::PROGRAM);
    }

    /// One store of `data` by the guest. MMIO addresses lie below 4 GiB, where a real-mode guest reaches them.
    pub fn store(&mut self, space: Space, address: u64, data: &[u8]) -> Seen {
        let Some(machine) = &mut self.machine else {
            let mut seen = Seen::default();
            offer(&self.bus, &mut seen, space, address, data);
            return seen;
        };
        let (_, _, entry) = self
            .stores
            .iter()
            .find(|(s, width, _)| (*s, *width) == (space, data.len()))
            .unwrap_or_else(|| panic!("no instruction stores {} bytes to {space:?}", data.len()));
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        machine.load(DATA, &value);
        let mut regs = registers(*entry);
        regs.rax = u64::from_ne_bytes(value) & 0xffff_ffff;
        regs.rbx = u32::try_from(address).unwrap().into();
        regs.rdx = address & 0xffff;
        let mut seen = Seen::default();
        let run = machine.run_from(&regs, vmm(&self.bus, &mut seen));
        drop(run);
        seen
    }

    /// A read of `length` bytes by the guest.
    pub fn read(&mut self, space: Space, address: u64, length: usize) -> Seen {
        let Some(machine) = &mut self.machine else {
            // Reads are never offered.
            return Seen {
                reads: 1,
                ..Seen::default()
            };
        };
        let exit = i32::from(EXIT_PORT);
        let code = assemble(Self::PROGRAM, |a| {
            match (space, length) {
                (Space::Mmio, 1) => a.mov(al, byte_ptr(ebx).es())?,
                (Space::Mmio, 2) => a.mov(ax, word_ptr(ebx).es())?,
                (Space::Mmio, 4) => a.mov(eax, dword_ptr(ebx).es())?,
                (Space::Pio, 1) => a.in_(al, dx)?,
                (Space::Pio, 2) => a.in_(ax, dx)?,
                (Space::Pio, 4) => a.in_(eax, dx)?,
                _ => panic!("no instruction reads {length} bytes from {space:?}"),
            }
            a.out(exit, al)
        });
        machine.load(Self::PROGRAM, &code);
        let mut regs = registers(Self::PROGRAM);
        regs.rbx = u32::try_from(address).unwrap().into();
        regs.rdx = address & 0xffff;
        let mut seen = Seen::default();
        machine.run_from(&regs, vmm(&self.bus, &mut seen));
        seen
    }

    /// Runs a program of the test's own.
    pub fn run(&mut self, code: &[u8]) -> Seen {
        let machine = self.machine.as_mut().unwrap();
        machine.load(Self::PROGRAM, code);
        let mut seen = Seen::default();
        machine.run_with(Self::PROGRAM, vmm(&self.bus, &mut seen));
        seen
    }

    /// Runs a program of the test's own that only stores, and hands every store that exits to `exit`.
    pub fn run_with(&mut self, code: &[u8], mut exit: impl FnMut(u64, &[u8])) {
        let machine = self.machine.as_mut().unwrap();
        machine.load(Self::PROGRAM, code);
        machine.set_exit_limit(usize::MAX);
        machine.run_with(Self::PROGRAM, |seen| {
            match seen {
                Exit::MmioWrite { addr, data } => exit(*addr, data),
                Exit::PioWrite { port, data } => exit((*port).into(), data),
                other => panic!("{other:?}"),
            }
            u64::MAX
        });
    }

    /// Asserts that a registration on `path` took the one store of `seen`: no exit when the kernel serves it, exactly
    /// one when the exit path does.
    pub fn assert_taken(&self, seen: &Seen, path: Path) {
        let dispatched = match path {
            Path::Kernel => 0,
            Path::Trapped(_) => 1,
        };
        assert_eq!(
            *seen,
            Seen {
                dispatched,
                ..Seen::default()
            },
            "{:?}, {path:?}",
            self.setup
        );
        match self.setup {
            Setup::Kernel => assert_eq!(path, Path::Kernel),
            Setup::Half => {}
            Setup::Trapped | Setup::Model => assert!(matches!(path, Path::Trapped(_)), "{path:?}"),
        }
    }

    /// Asserts that the one store of `seen` exited and that nobody took it.
    pub fn assert_passed(&self, seen: &Seen, space: Space, address: u64, data: &[u8]) {
        let unmatched = vec![Unmatched {
            space,
            address,
            data: data.to_vec(),
        }];
        assert_eq!(
            *seen,
            Seen {
                unmatched,
                ..Seen::default()
            },
            "{:?}",
            self.setup
        );
    }
}

/// The exit path of a VMM.
fn vmm<'a>(bus: &'a IoeventBus, seen: &'a mut Seen) -> impl FnMut(&Exit) -> u64 + 'a {
    |exit| {
        match exit {
            Exit::MmioWrite { addr, data } => offer(bus, seen, Space::Mmio, *addr, data),
            Exit::PioWrite { port, data } => offer(bus, seen, Space::Pio, (*port).into(), data),
            Exit::MmioRead { .. } | Exit::PioRead { .. } => seen.reads += 1,
            Exit::IoapicEoi(vector) => panic!("EOI of vector {vector:#x}"),
        }
        u64::MAX
    }
}

fn offer(bus: &IoeventBus, seen: &mut Seen, space: Space, address: u64, data: &[u8]) {
    if bus.dispatch(space, address, data).unwrap() {
        seen.dispatched += 1;
    } else {
        seen.unmatched.push(Unmatched {
            space,
            address,
            data: data.to_vec(),
        });
    }
}

/// A shared handle on the VM, for ioctls past the bus.
pub fn vm(guest: &mut Guest) -> Arc<kvm_ioctls::VmFd> {
    guest.machine().vm().clone()
}
