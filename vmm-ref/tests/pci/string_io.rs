// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A string instruction of a guest, which reads one port several times.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use ioevent::IoeventBus;
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_irqfd::KvmInterrupts;
use testkit::harness::Suite;
use testkit::need::Need;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset, PioRange};
use vm_device::device_manager::{IoManager, PioManager as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use vmm_ref::vm::ending::{End, Ending};
use vmm_ref::vm::exits::{Exits, Unassigned};
use vmm_ref::vm::irqchip::Controllers;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};
use vmm_ref::vm::port::Port;

pub fn tests(suite: Suite) -> Suite {
    let needs = [Need::SplitIrqchip];
    suite.test("a_string_instruction_reads_one_port", &needs, one_port)
}

/// A port of 16 bits with a queue behind it, as an IDE disk or an NE2000 has. It keeps the accesses.
#[derive(Default)]
struct Queue(Mutex<Vec<(u16, usize)>>);

impl DevicePio for Queue {
    fn pio_read(&self, _: PioAddress, port: PioAddressOffset, data: &mut [u8]) {
        let mut accesses = self.0.lock().unwrap();
        accesses.push((port, data.len()));
        data.fill(accesses.len() as u8);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
}

fn one_port() {
    #[rustfmt::skip]
    const PROGRAM: [u8; 16] = [
        0xba, 0x20, 0x10, // mov dx, 0x1020
        0xbf, 0x00, 0x30, // mov di, 0x3000
        0xb9, 0x04, 0x00, // mov cx, 4
        0xfc,             // cld
        0xf3, 0x6d,       // rep insw
        0xba, 0x00, 0x20, // mov dx, 0x2000
        0xee,             // out dx, al
    ];
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(&PROGRAM, GuestAddress(0x1000)).unwrap();
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the processor, which runs in this function alone.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    let (rip, rflags) = (0x1000, 2);
    vcpu.set_regs(&kvm_regs {
        rip,
        rflags,
        ..Default::default()
    })
    .unwrap();

    let (queue, ending, mut devices) = (Arc::new(Queue::default()), Ending::new().unwrap(), IoManager::new());
    let end = Arc::clone(&ending);
    let off = Port::new(
        move || {
            end.end(End::PowerOff);
            Ok(())
        },
        Arc::clone(&ending),
    );
    devices
        .register_pio(PioRange::new(PioAddress(0x1000), 0x100).unwrap(), queue.clone())
        .unwrap();
    devices
        .register_pio(PioRange::new(PioAddress(0x2000), 1).unwrap(), Arc::new(off))
        .unwrap();
    let exits = Exits {
        devices,
        doorbells: IoeventBus::userspace(),
        doorbell_stores: Arc::default(),
        controllers: Controllers::Kernel(KvmInterrupts::new(vm).unwrap()),
        ending,
        unassigned: Unassigned::Ones,
    };
    exits.run(vcpu, &AtomicBool::new(false)).unwrap();
    assert_eq!(*queue.0.lock().unwrap(), [(0x20, 2); 4]);
    let mut words = [0; 8];
    memory.read_slice(&mut words, GuestAddress(0x3000)).unwrap();
    assert_eq!(words, [1, 1, 2, 2, 3, 3, 4, 4]);
}
