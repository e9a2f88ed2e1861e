// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every shared row catches a backend that is wrong: each is run on the in-kernel irqchip behind a rig that spoils one
//! thing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a trial fails")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use interrupt_core::Delivery;
use testkit::conformance::{Row, cases, ioapic, pic};
use testkit::harness::Suite;
use testkit::kernel_rig::{KernelPicRig, KernelRig};
use testkit::rig::{EdgeLine, LEVEL, MASKED, PicRig, ResampleLine, Rig};

/// What is wrong with the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Nothing: every row passes.
    Nothing,
    /// Sources are never told.
    NeverTold,
    /// Sources are told twice each time.
    ToldTwice,
    /// Sources are told also when nothing happened.
    ToldAlways,
    /// Triggers and pulses do not arrive.
    TriggerLost,
    /// The guest's EOI does nothing.
    EoiLost,
    /// The line is high again after each EOI.
    RaisedAtEoi,
    /// A source that goes leaves its level behind.
    LevelStays,
    /// Unmasking injects instead of asking: the level is delivered before anyone restates it.
    UnmaskInjects,
    /// The mask bit is ignored.
    MaskIgnored,
    /// Masking forgets the level.
    MaskForgets,
    /// A software-disabled LAPIC accepts interrupts.
    DisabledAccepts,
    /// Edge entries are taken for level ones.
    EdgeIsLevel,
    /// Every level put on a plain line is reported as delivered.
    StatusGuessed,
    /// A storm is not throttled.
    NoThrottle,
}

use Wrong::*;

/// Rows, and what they must catch.
const IOAPIC: &[(&str, &[Wrong])] = &[
    ("row_15", &[TriggerLost, LevelStays]),
    (
        "row_27",
        &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost, RaisedAtEoi],
    ),
    (
        "row_28",
        &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost, RaisedAtEoi],
    ),
    (
        "row_29",
        &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost, RaisedAtEoi],
    ),
    ("row_30", &[ToldTwice]),
    ("row_31", &[ToldAlways, TriggerLost, MaskIgnored, MaskForgets]),
    (
        "row_32",
        &[NeverTold, ToldTwice, UnmaskInjects, MaskIgnored, MaskForgets],
    ),
    (
        "row_34",
        &[
            NeverTold,
            ToldTwice,
            ToldAlways,
            EoiLost,
            UnmaskInjects,
            MaskIgnored,
            MaskForgets,
        ],
    ),
    ("row_35", &[NeverTold, ToldTwice, ToldAlways, EoiLost]),
    ("row_36", &[NeverTold, ToldTwice, ToldAlways, EoiLost, RaisedAtEoi]),
    ("row_37", &[NeverTold, ToldTwice, TriggerLost, DisabledAccepts]),
    (
        "row_38",
        &[NeverTold, ToldTwice, ToldAlways, EoiLost, UnmaskInjects, EdgeIsLevel],
    ),
    ("row_40", &[ToldAlways, TriggerLost, MaskForgets]),
    ("row_41", &[NeverTold, ToldTwice, ToldAlways, EoiLost, RaisedAtEoi]),
    ("row_42", &[TriggerLost, EoiLost]),
    ("row_44", &[TriggerLost, EoiLost, EdgeIsLevel]),
    ("row_45", &[TriggerLost, EoiLost, DisabledAccepts]),
    ("row_46", &[NeverTold, ToldTwice, ToldAlways, EoiLost, RaisedAtEoi]),
    ("row_47", &[EoiLost, NoThrottle]),
    ("row_50", &[EoiLost, MaskIgnored, EdgeIsLevel, StatusGuessed]),
    ("row_57", &[NeverTold, ToldTwice, ToldAlways, EoiLost, RaisedAtEoi]),
    ("row_58", &[NeverTold, ToldTwice, TriggerLost, EoiLost, RaisedAtEoi]),
    ("row_61", &[NeverTold, ToldTwice, EoiLost, RaisedAtEoi]),
    ("row_62", &[NeverTold, TriggerLost, EoiLost, MaskIgnored]),
    ("row_73", &[TriggerLost, EoiLost, LevelStays, MaskForgets]),
    ("row_74", &[NeverTold, ToldTwice, EoiLost, RaisedAtEoi]),
];

const CASES: &[(&str, &[Wrong])] = &[
    ("case_l1", &[EoiLost, RaisedAtEoi]),
    ("case_l2", &[EoiLost, RaisedAtEoi]),
    ("case_l4", &[EoiLost, RaisedAtEoi, StatusGuessed]),
    ("case_l5", &[EoiLost, RaisedAtEoi, StatusGuessed]),
    ("case_l6_l7", &[EoiLost]),
    ("case_l8", &[EoiLost, MaskIgnored, StatusGuessed]),
    ("case_l9", &[EoiLost, StatusGuessed]),
    ("case_l11", &[EoiLost]),
    ("case_l13", &[MaskIgnored, MaskForgets]),
    ("case_l14", &[EoiLost, EdgeIsLevel]),
    ("case_l15", &[EoiLost, RaisedAtEoi]),
    ("case_l18", &[RaisedAtEoi]),
    ("case_e6", &[EoiLost, MaskIgnored]),
    ("case_d1", &[EdgeIsLevel, StatusGuessed]),
    ("case_d2", &[EoiLost, EdgeIsLevel]),
    ("case_d3", &[EdgeIsLevel, StatusGuessed]),
    ("case_d4", &[MaskIgnored, StatusGuessed]),
    ("case_d6", &[MaskIgnored, StatusGuessed]),
    (
        "case_n1_n2",
        &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost, RaisedAtEoi],
    ),
    ("case_n3", &[NeverTold, ToldTwice, TriggerLost, EoiLost, RaisedAtEoi]),
    ("case_n4", &[NeverTold, ToldTwice, ToldAlways, EoiLost]),
    ("case_n7", &[NeverTold, ToldTwice, TriggerLost, EoiLost, RaisedAtEoi]),
    ("case_n8", &[NeverTold, ToldTwice, TriggerLost, EoiLost]),
];

const PIC: &[(&str, &[Wrong])] = &[
    ("row_52", &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost]),
    ("row_53", &[NeverTold, ToldTwice, ToldAlways, TriggerLost]),
    ("row_54", &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost]),
    (
        "row_55",
        &[NeverTold, ToldTwice, ToldAlways, TriggerLost, EoiLost, MaskIgnored],
    ),
];

fn main() -> ExitCode {
    // Panics are what these trials want; those that they do not want reach the report through the harness.
    std::panic::set_hook(Box::new(|_| {}));
    let suite = Suite::new("rows_can_fail");
    let suite = add(suite, "ioapic", ioapic::ROWS, IOAPIC, KernelRig::NEEDS, |wrong| {
        Box::new(Spoiled::new(KernelRig::new(), wrong))
    });
    let suite = add(suite, "ioapic", cases::ROWS, CASES, KernelRig::NEEDS, |wrong| {
        Box::new(Spoiled::new(KernelRig::new(), wrong))
    });
    let suite = add(suite, "pic", pic::ROWS, PIC, KernelPicRig::NEEDS, |wrong| {
        Box::new(SpoiledPic {
            inner: KernelPicRig::new(),
            wrong,
        })
    });
    suite.run()
}

fn add<R: ?Sized>(
    suite: Suite,
    backend: &str,
    rows: &'static [Row<R>],
    wrongs: &'static [(&str, &[Wrong])],
    needs: &[testkit::need::Need],
    rig: fn(Wrong) -> Box<R>,
) -> Suite {
    rows.iter().fold(suite, |suite, row| {
        let needs = [needs, row.kernel_needs].concat();
        suite.test_within(row.limit, format!("{backend}::{}", row.name), &needs, move || {
            let names = |key: &str| row.name.strip_prefix(key).is_some_and(|rest| rest.starts_with('_'));
            let wrongs = wrongs.iter().find(|(key, _)| names(key)).map(|(_, wrongs)| *wrongs);
            let wrongs = wrongs.unwrap_or_else(|| panic!("nothing is listed that {} must catch", row.name));
            let run = |wrong| catch_unwind(AssertUnwindSafe(|| (row.body)(&mut rig(wrong))));
            if let Err(panic) = run(Nothing) {
                resume_unwind(panic);
            }
            for &wrong in wrongs {
                // Where time is measured, a busy host may hide what is wrong; not three times in a row.
                let noticed = (0..3).any(|_| run(wrong).is_err());
                assert!(noticed, "{} does not notice {wrong:?}", row.name);
            }
        })
    })
}

struct Spoiled {
    inner: KernelRig,
    wrong: Wrong,
    /// Lines that must not go although the test dropped them.
    kept: Vec<Arc<dyn ResampleLine>>,
    plain_high: Vec<u32>,
}

impl Spoiled {
    fn new(inner: KernelRig, wrong: Wrong) -> Self {
        Spoiled {
            inner,
            wrong,
            kept: Vec::new(),
            plain_high: Vec::new(),
        }
    }
}

struct SpoiledLine {
    inner: Arc<dyn ResampleLine>,
    wrong: Wrong,
}

impl ResampleLine for SpoiledLine {
    fn trigger(&self) {
        if self.wrong != TriggerLost {
            self.inner.trigger();
        }
    }

    fn n(&self) -> u64 {
        let n = self.inner.n();
        match self.wrong {
            NeverTold => 0,
            ToldTwice => n * 2,
            ToldAlways => n.max(1),
            _ => n,
        }
    }
}

struct SpoiledEdge {
    inner: Box<dyn EdgeLine>,
    wrong: Wrong,
}

impl EdgeLine for SpoiledEdge {
    fn pulse(&self) {
        if self.wrong != TriggerLost {
            self.inner.pulse();
        }
    }
}

impl Rig for Spoiled {
    fn bind_resample(&mut self, gsi: u32) -> Box<dyn ResampleLine> {
        let inner: Arc<dyn ResampleLine> = self.inner.bind_resample(gsi).into();
        if matches!(self.wrong, LevelStays | RaisedAtEoi | UnmaskInjects) {
            self.kept.push(inner.clone());
        }
        Box::new(SpoiledLine {
            inner,
            wrong: self.wrong,
        })
    }

    fn bind_edge(&mut self, gsi: u32) -> Box<dyn EdgeLine> {
        Box::new(SpoiledEdge {
            inner: self.inner.bind_edge(gsi),
            wrong: self.wrong,
        })
    }

    fn set_line(&mut self, gsi: u32, high: bool) -> Delivery {
        if high {
            self.plain_high.push(gsi);
        }
        match (self.wrong, self.inner.set_line(gsi, high)) {
            (StatusGuessed, _) => Delivery::Delivered(1),
            (_, status) => status,
        }
    }

    fn send_msi(&mut self, vector: u8) {
        self.inner.send_msi(vector);
    }

    fn write_rte_low(&mut self, pin: u32, value: u32) {
        let mut value = value;
        let masks = value & MASKED as u32 != 0;
        match self.wrong {
            MaskIgnored => value &= !(MASKED as u32),
            EdgeIsLevel => value |= LEVEL as u32,
            _ => {}
        }
        let unmasks = !masks && self.inner.rte(pin) & MASKED != 0;
        let high = self.inner.irr(pin);
        self.inner.write_rte_low(pin, value);
        if self.wrong == UnmaskInjects && unmasks && high {
            self.kept.iter().for_each(|line| line.trigger());
        }
    }

    fn write_rte_high(&mut self, pin: u32, value: u32) {
        self.inner.write_rte_high(pin, value);
    }

    fn rte(&mut self, pin: u32) -> u64 {
        self.inner.rte(pin)
    }

    fn irr(&mut self, pin: u32) -> bool {
        let forgets = self.wrong == MaskForgets && self.inner.rte(pin) & MASKED != 0;
        self.inner.irr(pin) && !forgets
    }

    fn accept(&mut self) -> Option<u8> {
        self.inner.accept()
    }

    fn eoi(&mut self) {
        match self.wrong {
            EoiLost => {}
            RaisedAtEoi => {
                self.inner.eoi();
                self.kept.iter().for_each(|line| line.trigger());
                for gsi in &self.plain_high {
                    self.inner.set_line(*gsi, true);
                }
            }
            NoThrottle => {
                // For the controller each round is the first of its storm.
                for gsi in &self.plain_high {
                    self.inner.set_line(*gsi, false);
                }
                self.inner.eoi();
                for gsi in &self.plain_high {
                    self.inner.set_line(*gsi, true);
                }
            }
            _ => self.inner.eoi(),
        }
    }

    fn set_lapic_enabled(&mut self, enabled: bool) {
        self.inner.set_lapic_enabled(enabled || self.wrong == DisabledAccepts);
    }

    fn settle(&mut self) {
        self.inner.settle();
    }
}

struct SpoiledPic {
    inner: KernelPicRig,
    wrong: Wrong,
}

impl PicRig for SpoiledPic {
    fn bind_resample(&mut self, irq: u32) -> Box<dyn ResampleLine> {
        Box::new(SpoiledLine {
            inner: self.inner.bind_resample(irq).into(),
            wrong: self.wrong,
        })
    }

    fn outb(&mut self, port: u16, value: u8) {
        let mut value = value;
        let ocw2 = matches!(port, 0x20 | 0xa0) && value & 0x18 == 0;
        match self.wrong {
            EoiLost if ocw2 => return,
            MaskIgnored if port & 1 != 0 && value == 0xff => value = !(1 << 5),
            _ => {}
        }
        self.inner.outb(port, value);
    }

    fn inb(&mut self, port: u16) -> u8 {
        self.inner.inb(port)
    }

    fn inta(&mut self) -> Option<u8> {
        self.inner.inta()
    }

    fn settle(&mut self) {
        self.inner.settle();
    }
}
