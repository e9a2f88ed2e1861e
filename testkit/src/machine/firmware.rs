// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine's own small real-mode programs: one for each access that the guest makes for a test, and a handler for
//! each vector that ends the run. Assembled once per process.

use std::sync::LazyLock;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dx, eax, ebx, ecx, ptr};

use crate::program::{EXIT_PORT, IRQ_PORT, PROGRAM, assemble};

/// The guest address of the image.
pub(super) const STUBS: u64 = 0x500;
const CATCHERS: u64 = 0xc00;
/// `mov al, vector; out IRQ_PORT, al`
const CATCHER_SIZE: u64 = 4;
const _: () = assert!(CATCHERS + 256 * CATCHER_SIZE <= PROGRAM);

/// Address of the handler that reports `vector`.
pub(super) fn catcher(vector: u8) -> u64 {
    CATCHERS + u64::from(vector) * CATCHER_SIZE
}

/// Entry addresses. Arguments and results are in registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stubs {
    /// al to port dx.
    pub(super) outb: u64,
    /// al from port dx.
    pub(super) inb: u64,
    /// edx:eax to MSR ecx.
    pub(super) wrmsr: u64,
    /// edx:eax from MSR ecx.
    pub(super) rdmsr: u64,
    /// eax to guest-physical ebx.
    pub(super) store: u64,
    /// eax from guest-physical ebx.
    pub(super) load: u64,
    /// eax to register ecx of the IOAPIC at ebx.
    pub(super) ioapic_write: u64,
    /// Two instructions at which the CPU can take an interrupt, if the program starts with IF set.
    pub(super) window: u64,
}

pub(super) struct Firmware {
    pub(super) code: Vec<u8>,
    pub(super) stubs: Stubs,
}

pub(super) static FIRMWARE: LazyLock<Firmware> = LazyLock::new(|| {
    let mut code = Vec::new();
    let mut lay = |body: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let at = STUBS + code.len() as u64;
        code.extend(assemble(at, |a| {
            body(a)?;
            a.out(i32::from(EXIT_PORT), al)
        }));
        at
    };
    let stubs = Stubs {
        outb: lay(|a| a.out(dx, al)),
        inb: lay(|a| a.in_(al, dx)),
        wrmsr: lay(|a| a.wrmsr()),
        rdmsr: lay(|a| a.rdmsr()),
        store: lay(|a| a.mov(ptr(ebx).es(), eax)),
        load: lay(|a| a.mov(eax, ptr(ebx).es())),
        ioapic_write: lay(|a| {
            a.mov(ptr(ebx).es(), ecx)?;
            a.mov(ptr(ebx + 0x10).es(), eax)
        }),
        window: lay(|a| {
            a.nop()?;
            a.nop()?;
            a.cli()
        }),
    };
    assert!(STUBS + code.len() as u64 <= CATCHERS);
    code.resize((CATCHERS - STUBS) as usize, 0);
    for vector in 0..=u8::MAX {
        let handler = assemble(catcher(vector), |a| {
            a.mov(al, i32::from(vector))?;
            a.out(i32::from(IRQ_PORT), al)
        });
        assert_eq!(handler.len() as u64, CATCHER_SIZE);
        code.extend(handler);
    }
    Firmware { code, stubs }
});
