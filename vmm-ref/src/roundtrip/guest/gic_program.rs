// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's program for arm64: sets up a GICv3, and then serves one level-triggered SPI.
//!
//! The program is assembled with this crate, because host and guest are of one architecture. The host copies it to
//! [`CODE`], writes a word of options to [`OPTIONS`] and the number of devices behind it, and starts it at EL1 with the
//! memory of [`page_table`]. Each access to a register is one plain load or store: KVM gets no syndrome for others.

use std::arch::global_asm;

use crate::composition::options::{Controller, Without};
use crate::passthrough::edu_registers;
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{
    ACKNOWLEDGE_PORT, BAR_ADDRESS, CODE, DISTRIBUTOR, FAULT_PORT, FOUND_NOTHING, HANDLER_RUNS, OPTIONS, PAGE_TABLE,
    PORTS, READY, REDISTRIBUTORS, STACK, STRAY, raised, serviced,
};

/// Interrupt ID of the devices' line.
const INTID: u32 = 32 + Controller::Gic.gsi().0;

// The bits of the options.
const EDU: u32 = 0;
const ACKNOWLEDGE: u32 = 1;
const NO_EOI: u32 = 2;
const NO_DEACTIVATION: u32 = 3;
const EDGE: u32 = 4;

// Registers and bits as in the GIC architecture specification, ARM IHI 0069, chapter 12.
global_asm!(
    r#"
    .pushsection .rodata.vmm_ref_gic_program, "a"
    .balign 2048
    .global vmm_ref_gic_program
vmm_ref_gic_program:
    .rept   5                           // the table of exceptions: 16 entries of 0x80 bytes
    b       9f
    .balign 0x80
    .endr
    b       2f                          // 0x280: an interrupt at EL1
    .balign 0x80
    .rept   10
    b       9f
    .balign 0x80
    .endr

    .global vmm_ref_gic_program_entry
vmm_ref_gic_program_entry:
    mov     x22, #{status}
    mov     x23, #{ports}
    mov     x24, #{bar}
    ldr     w20, [x22, #{variant}]
    ldr     w21, [x22, #{variant} + 4]

    mov     x1, #{distributor}
    mov     w2, #0x12                   // GICD_CTLR: affinity routing, group 1 on
    str     w2, [x1]
    mov     x3, #{redistributors}
    str     wzr, [x3, #0x14]            // GICR_WAKER: no ProcessorSleep
0:  ldr     w2, [x3, #0x14]
    tbnz    w2, #2, 0b                  // ChildrenAsleep
    mov     w2, #{bit}
    str     w2, [x1, #{igroupr}]        // group 1
    mov     w4, #{edge_triggered}
    tst     w20, #1 << {EDGE}
    csel    w4, w4, wzr, ne
    str     w4, [x1, #{icfgr}]          // level-triggered, but for a control
    mov     w4, #0xa0
    strb    w4, [x1, #{ipriorityr}]
    str     xzr, [x1, #{irouter}]       // to the CPU with affinity 0
    str     w2, [x1, #{isenabler}]
    mov     x2, #0xff
    msr     ICC_PMR_EL1, x2             // every priority
    ubfx    x2, x20, #{NO_DEACTIVATION}, #1
    lsl     x2, x2, #1
    msr     ICC_CTLR_EL1, x2            // EOImode 1 for a control: EOIR only drops the priority
    mov     x2, #1
    msr     ICC_IGRPEN1_EL1, x2
    isb
    str     w2, [x22, #{ready}]
    msr     daifclr, #2
1:  wfi
    b       1b

2:  mrs     x0, ICC_IAR1_EL1            // the handler: only it uses registers from here on
    cmp     w0, #{intid}
    b.ne    8f
    ldr     w1, [x22, #{handler_runs}]
    add     w1, w1, #1
    str     w1, [x22, #{handler_runs}]
    add     x1, x22, #{raised}
    tbnz    w20, #{EDU}, 5f
    mov     w2, w21                     // serve every device whose request is a word of memory
    mov     w3, wzr
3:  ldr     w4, [x1]
    ldr     w5, [x1, #{serviced}]
    str     w4, [x1, #{serviced}]       // changes nothing for a device without a request
    eor     w5, w5, w4
    orr     w3, w3, w5
    add     x1, x1, #{device_stride}
    subs    w2, w2, #1
    b.ne    3b
    cbnz    w3, 6f
4:  ldr     w1, [x22, #{found_nothing}]
    add     w1, w1, #1
    str     w1, [x22, #{found_nothing}]
    b       6f
5:  ldr     w3, [x24, #{edu_status}]    // serve an edu, as edu_handler.rs says
    cbz     w3, 4b
    str     w3, [x24, #{edu_acknowledge}]
    ldr     w3, [x24, #{edu_status}]
    ldr     w4, [x1]
    str     w4, [x1, #{serviced}]
6:  tbz     w20, #{ACKNOWLEDGE}, 7f
    strb    wzr, [x23, #{acknowledge}]
7:  dsb     sy                          // what was stored is seen before the interrupt ends
    tbnz    w20, #{NO_EOI}, 70f
    msr     ICC_EOIR1_EL1, x0           // the priority drop, and in EOImode 0 the deactivation
    isb
70: eret

8:  sub     w1, w0, #1023               // a spurious interrupt needs no EOI
    cbnz    w1, 9f
    ldr     w1, [x22, #{stray}]
    add     w1, w1, #1
    str     w1, [x22, #{stray}]
    eret

9:  strb    wzr, [x23, #{fault}]        // nothing here raises another exception
    b       9b
    .global vmm_ref_gic_program_end
vmm_ref_gic_program_end:
    .popsection
    "#,
    status = const READY,
    variant = const OPTIONS - READY,
    ports = const PORTS,
    bar = const BAR_ADDRESS,
    distributor = const DISTRIBUTOR,
    redistributors = const REDISTRIBUTORS,
    intid = const INTID,
    bit = const 1_u32 << (INTID % 32),
    igroupr = const 0x80 + INTID / 32 * 4,
    icfgr = const 0xc00 + INTID / 16 * 4,
    edge_triggered = const 0b10_u32 << (INTID % 16 * 2),
    ipriorityr = const 0x400 + INTID,
    irouter = const 0x6000 + INTID * 8,
    isenabler = const 0x100 + INTID / 32 * 4,
    ready = const 0,
    handler_runs = const HANDLER_RUNS - READY,
    found_nothing = const FOUND_NOTHING - READY,
    stray = const STRAY - READY,
    raised = const raised(0) - READY,
    serviced = const serviced(0) - raised(0),
    device_stride = const raised(1) - raised(0),
    edu_status = const edu_registers::STATUS,
    edu_acknowledge = const edu_registers::ACKNOWLEDGE,
    acknowledge = const ACKNOWLEDGE_PORT,
    fault = const FAULT_PORT,
    EDU = const EDU,
    ACKNOWLEDGE = const ACKNOWLEDGE,
    NO_EOI = const NO_EOI,
    NO_DEACTIVATION = const NO_DEACTIVATION,
    EDGE = const EDGE,
);

unsafe extern "C" {
    static vmm_ref_gic_program: u8;
    static vmm_ref_gic_program_entry: u8;
    static vmm_ref_gic_program_end: u8;
}

/// The image of a variant of the program. The arguments mean what they mean in
/// [`Program`](super::program::Program).
pub(super) fn image(devices: usize, edu: bool, acknowledge: bool, without: Option<Without>) -> Image {
    let (start, entry, end) = (
        &raw const vmm_ref_gic_program,
        &raw const vmm_ref_gic_program_entry,
        &raw const vmm_ref_gic_program_end,
    );
    // SAFETY: the bytes from `start` to `end` are those of the assembly above, which nothing writes.
    let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
    let options = u32::from(edu) << EDU
        | u32::from(acknowledge) << ACKNOWLEDGE
        | match without {
            None => 0,
            Some(Without::Eoi) => 1 << NO_EOI,
            Some(Without::Deactivation) => 1 << NO_DEACTIVATION,
            Some(Without::Level) => 1 << EDGE,
        };
    // At most MAX_DEVICES.
    let devices = devices as u32;
    Image {
        parts: vec![
            (CODE, code.to_vec()),
            (OPTIONS, [options, devices].map(u32::to_ne_bytes).concat()),
            (PAGE_TABLE, page_table()),
        ],
        entry: CODE + (entry.addr() - start.addr()) as u64,
        stack: STACK,
    }
}

/// The translation table (level 2, 4 KiB pages) of the first GiB: each address is its own, the first 2 MiB are memory,
/// and everything else is registers. Memory has to be cached, because the host caches it too.
fn page_table() -> Vec<u8> {
    const BLOCK: u64 = 0b01;
    const MEMORY: u64 = 1 << 2 | 0b11 << 8; // the second attribute of MAIR_EL1, shareable
    const ACCESSED: u64 = 1 << 10;
    const NEVER_EXECUTED: u64 = 0b11 << 53;
    let entry = |n: u64| {
        let kind = if n == 0 { MEMORY } else { NEVER_EXECUTED };
        n << 21 | kind | ACCESSED | BLOCK
    };
    (0..512).flat_map(|n| entry(n).to_le_bytes()).collect()
}
