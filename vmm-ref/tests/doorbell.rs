// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's stores to its device's doorbell: through the program as its users meet it, and on buses that the program
//! does not offer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use interrupt_core::Irqchip;
use ioevent::{Backend, IoeventBus, Kvm, Match, Refusal, Space};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use serde_json::{Value, json};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::fds;
use vmm_ref::composition::options::{Composition, Controller, DoorbellPath, MachineKind};
use vmm_ref::roundtrip::doorbell::{Doorbell, DoorbellSummary};
use vmm_ref::roundtrip::guest::layout::{BATCH_MAX, DOORBELL_ADDRESS};
use vmm_ref::roundtrip::guest::program::{Idle, Program};
use vmm_ref::roundtrip::machine::Machine;
use vmm_ref::roundtrip::run::run;
use vmm_ref::roundtrip::summary::{Options, Outcome};
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn main() -> ExitCode {
    let pic = [Need::GenuinePicEoi];
    let kvm = [Need::FullIrqchip];
    Suite::new("vmm-ref::doorbell")
        .serial()
        .test("an_ioeventfd_signals_each_store_without_an_exit", &pic, || {
            program_counts("ioeventfd", 0, &Value::Null)
        })
        .test("a_trapped_store_exits_and_is_dispatched_once", &pic, || {
            program_counts("trap", COUNT, &json!("there is no kernel backend"))
        })
        .test("json_is_what_it_was_with_one_object_after_it", &pic, json_is_appended)
        .test("text_names_path_counts_and_cost", &pic, text_lines)
        .test("what_cannot_be_gets_one_line_and_status_2", &[], refused)
        .test("the_kernel_refuses_half_of_the_set", &kvm, half_refused)
        .test("a_store_that_is_stolen_is_no_success", &kvm, stolen)
        .test("any_number_of_stores_is_made_exactly", &kvm, batches)
        .test("without_an_irqchip_in_the_kernel", &[Need::Kvm], without_irqchip)
        .test("with_a_split_irqchip", &[Need::SplitIrqchip], split_irqchip)
        .test("ctrl_c_ends_the_ringing_with_the_batch", &pic, interrupted)
        .test("a_run_leaves_no_fd_behind", &pic, leaves_no_fd)
        .run()
}

/// More than two batches, and not a multiple of one.
const COUNT: u64 = 2500;

fn program(arguments: &str) -> (Option<i32>, String, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

fn program_json(arguments: &str) -> Value {
    let (status, stdout, stderr) = program(&format!("{arguments} --json"));
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn program_counts(path: &str, exits: u64, why: &Value) {
    let object = program_json(&format!("run --doorbell {path} --count {COUNT}"));
    // The round trips are made as ever.
    assert_eq!(object["outcome"], "ok", "{object}");
    for (field, expected) in [("serviced", COUNT), ("resampled", COUNT), ("lost", 0), ("spurious", 0)] {
        assert_eq!(object[field], expected, "{field}: {object}");
    }
    let clock = object["doorbell"]["clock_p50_ns"].as_u64().unwrap();
    for space in ["pio", "mmio"] {
        let rung = &object["doorbell"][space];
        assert_eq!(rung["path"], path, "{space}: {object}");
        assert_eq!(&rung["why"], why, "{space}: {object}");
        for (field, expected) in [("stores", COUNT), ("signals", COUNT), ("exits", exits)] {
            assert_eq!(rung[field], expected, "{space}: {field}: {object}");
        }
        // A store takes the CPU out of the guest, which reading the clock does not do even where that is emulated.
        assert!(rung["p50_ns"].as_u64().unwrap() > clock, "{space}: {object}");
    }
}

/// The text of the fields' names, in order. serde_json's map would sort them.
fn fields(line: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("\":") {
        names.push(line[..at].rsplit('"').next().unwrap());
    }
    names
}

fn json_is_appended() {
    let (_, without, _) = program("run --count 20 --json");
    let (_, with, _) = program("run --count 20 --json --doorbell trap");
    let (without, with) = (fields(&without), fields(&with));
    assert!(!without.contains(&"doorbell"));
    let rung = ["path", "why", "stores", "signals", "exits", "p50_ns"];
    let doorbell = [&["doorbell", "pio"][..], &rung, &["mmio"], &rung, &["clock_p50_ns"]].concat();
    assert_eq!(with, [without, doorbell].concat());
}

fn text_lines() {
    for (path, exits, why) in [
        ("ioeventfd", 0, ""),
        ("trap", 20, " (trapped: there is no kernel backend)"),
    ] {
        let (status, stdout, stderr) = program(&format!("run --count 20 --doorbell {path}"));
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{stdout}");
        let lines: Vec<_> = stdout.lines().collect();
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("composed") && line.ends_with(&format!(", doorbell {path}"))),
            "{stdout}"
        );
        for space in ["PIO", "MMIO"] {
            let start = format!("doorbell  {space} by {path}: 20 stores, 20 signals, {exits} exits, p50 ");
            let end = format!(" ns each{why}");
            let found = lines
                .iter()
                .any(|line| line.starts_with(&start) && line.ends_with(&end));
            assert!(found, "no {start:?} .. {end:?}: {stdout}");
        }
    }
    let (_, stdout, _) = program("run --count 20");
    assert!(!stdout.contains("doorbell"), "{stdout}");
}

fn refused() {
    for (arguments, cause) in [
        ("run --doorbell wire", "[possible values: ioeventfd, trap]"),
        (
            "run --doorbell trap --machine soft",
            "no guest that stores; use --machine kvm",
        ),
    ] {
        let (status, stdout, stderr) = program(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(cause), "{stderr}");
    }
}

/// Runs a guest that rings, with the doorbell on the bus that `bus` makes.
fn ring(irqchip: Irqchip, bus: impl FnOnce(&Machine) -> IoeventBus, stores: u64) -> DoorbellSummary {
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let program = Program {
        controller: MachineKind::Kvm.controllers(irqchip)[0],
        devices: 1,
        edu: false,
        acknowledge: false,
        without: None,
        idle: Idle::Spin,
    };
    let mut machine = Machine::new(&kvm, &program.assemble().unwrap(), irqchip).unwrap();
    let controllers = machine.controllers().unwrap();
    let bus = bus(&machine);
    let doorbell = Doorbell::new(&mut machine, bus, stores).unwrap();
    let running = machine
        .start(&controllers, || panic!("nothing is acknowledged"))
        .unwrap();
    doorbell.wait(&running, &AtomicBool::new(false)).unwrap();
    running.stop().unwrap();
    doorbell.summary().unwrap()
}

/// KVM, which refuses one space.
#[derive(Debug)]
struct Half {
    kvm: Kvm,
    refused: Space,
}

impl Backend for Half {
    fn assign(&self, at: &Match, event: &EventFd) -> Result<(), Refusal> {
        if at.space == self.refused {
            return Err(Refusal::Kernel(Errno::new(libc::ENOSPC)));
        }
        self.kvm.assign(at, event)
    }

    fn deassign(&self, at: &Match, event: &EventFd) -> Result<(), Errno> {
        assert_ne!(at.space, self.refused, "it was never assigned");
        self.kvm.deassign(at, event)
    }
}

fn half_refused() {
    for refused in [Space::Pio, Space::Mmio] {
        let half = |machine: &Machine| {
            let kvm = Kvm::new(Arc::clone(machine.vm()));
            IoeventBus::new(Half { kvm, refused })
        };
        let account = ring(Irqchip::Kernel, half, COUNT);
        let (trapped, kernels) = match refused {
            Space::Pio => (&account.pio, &account.mmio),
            Space::Mmio => (&account.mmio, &account.pio),
        };
        assert_eq!(trapped.path, DoorbellPath::Trap);
        assert!(
            trapped.why.as_ref().unwrap().starts_with("the kernel refused: "),
            "{account:?}"
        );
        assert_eq!((trapped.stores, trapped.signals, trapped.exits), (COUNT, COUNT, COUNT));
        assert_eq!((kernels.path, &kernels.why), (DoorbellPath::Ioeventfd, &None));
        assert_eq!((kernels.stores, kernels.signals, kernels.exits), (COUNT, COUNT, 0));
        assert!(account.is_exact(), "{account:?}");
    }
}

/// An ioeventfd that was registered past the bus takes the stores before they exit.
fn stolen() {
    let thief = EventFd::new(EFD_NONBLOCK).unwrap();
    let account = ring(
        Irqchip::Kernel,
        |machine| {
            machine
                .vm()
                .register_ioevent(&thief, &IoEventAddress::Mmio(DOORBELL_ADDRESS), NoDatamatch)
                .unwrap();
            DoorbellPath::Ioeventfd.bus(machine)
        },
        COUNT,
    );
    assert_eq!(thief.read().unwrap(), COUNT);
    assert_eq!(
        (
            account.mmio.path,
            account.mmio.stores,
            account.mmio.signals,
            account.mmio.exits
        ),
        (DoorbellPath::Trap, COUNT, 0, 0)
    );
    assert_eq!((account.pio.stores, account.pio.signals), (COUNT, COUNT));
    assert!(!account.is_exact(), "{account:?}");
}

fn batches() {
    let batch = u64::from(BATCH_MAX);
    for path in [DoorbellPath::Ioeventfd, DoorbellPath::Trap] {
        for stores in [0, 1, batch - 1, batch, batch + 1] {
            made_exactly(Irqchip::Kernel, path, stores);
        }
    }
}

/// An ioeventfd needs no irqchip in the kernel.
fn without_irqchip() {
    for path in [DoorbellPath::Ioeventfd, DoorbellPath::Trap] {
        made_exactly(Irqchip::User, path, COUNT);
    }
}

fn split_irqchip() {
    for path in [DoorbellPath::Ioeventfd, DoorbellPath::Trap] {
        made_exactly(Irqchip::Split, path, COUNT);
    }
}

fn made_exactly(irqchip: Irqchip, path: DoorbellPath, stores: u64) {
    let account = ring(irqchip, |machine| path.bus(machine), stores);
    assert!(account.made(stores) && account.is_exact(), "{stores}: {account:?}");
    let exits = match path {
        DoorbellPath::Ioeventfd => 0,
        DoorbellPath::Trap => stores,
    };
    for rung in [&account.pio, &account.mmio] {
        assert_eq!(
            (rung.path, rung.signals, rung.exits),
            (path, stores, exits),
            "{account:?}"
        );
    }
    assert_eq!(account.clock_p50_ns.is_some(), stores > 0, "{account:?}");
}

fn options(doorbell: DoorbellPath, count: u64) -> Options {
    Options {
        composition: Composition {
            doorbell: Some(doorbell),
            ..Composition::in_kernel(Controller::Pic)
        },
        count,
        without: None,
        swap_every: None,
    }
}

fn interrupted() {
    const MANY: u64 = 1_000_000_000;
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let options = options(DoorbellPath::Trap, MANY);
    let summary = run(Some(&kvm), &options, &AtomicBool::new(true), &mut |_| {}).unwrap();
    assert_eq!(summary.outcome, Outcome::Interrupted);
    let account = summary.doorbell.unwrap();
    assert!(account.is_exact(), "{account:?}");
    assert!(account.pio.stores < MANY / 1000, "{account:?}");
    assert_eq!(account.pio.stores % u64::from(BATCH_MAX), 0, "{account:?}");
}

fn leaves_no_fd() {
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let once = |path| {
        let summary = run(Some(&kvm), &options(path, 50), &AtomicBool::new(false), &mut |_| {}).unwrap();
        assert_eq!(summary.outcome, Outcome::Ok);
    };
    // What is made once for a process is made by now.
    once(DoorbellPath::Trap);
    let before = fds();
    once(DoorbellPath::Ioeventfd);
    once(DoorbellPath::Trap);
    assert_eq!(fds(), before);
}
