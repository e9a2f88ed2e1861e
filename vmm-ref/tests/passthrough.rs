// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real PCI device behind the kernel's vfio-pci, and its INTx in the embedded guest: QEMU's `edu`, in the lab.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use interrupt_core::Irqchip;
use serde_json::Value;
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::fds;
use vmm_ref::composition::options::{Composition, DeviceKind, Eoi, Forward, GIC, MachineKind, Source};
use vmm_ref::composition::pci_address::PciAddress;
use vmm_ref::passthrough::edu::Edu;
use vmm_ref::passthrough::preflight::check;
use vmm_ref::roundtrip::guest::program::{Idle, Program};
use vmm_ref::roundtrip::guest::status::Status;
use vmm_ref::roundtrip::machine::{Machine, Running};
use vmm_ref::roundtrip::parts::{Parts, Passthrough};
use vmm_ref::roundtrip::traffic::{Progress, Traffic};
use vmm_ref::vm::irqchip::Controllers;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};
use vmm_ref::vm::stall::{INTERVAL, STALL_LIMIT, StallDetector};

/// 5000 round trips of a split irqchip have taken 56 s, on a build machine that was busy.
const LONG: Duration = Duration::from_secs(300);

const ADDRESS: &str = "0000:00:02.0";

fn address() -> PciAddress {
    ADDRESS.parse().unwrap()
}

fn edu() -> Result<(), String> {
    check(address()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let edu = Need::Host("edu", edu);
    let full = [edu, Need::FullIrqchip, GENUINE];
    let traced = [edu, Need::FullIrqchip, Need::Host("strace", has_strace)];
    let mut suite = Suite::new("vmm-ref::passthrough")
        .serial()
        .test_within(LONG, "the_kernel_loop_loses_none_of_5000", &full, || {
            loses_none(Irqchip::Kernel, Forward::Kernel)
        })
        .test_within(LONG, "the_relay_loses_none_of_5000", &full, || {
            loses_none(Irqchip::Kernel, Forward::Relay)
        })
        .test("the_connection_picks_the_path_and_says_why", &full, || {
            picks_a_path("kernel", "kernel loop", &["host forward"])
        })
        .test_within(LONG, "swaps_in_the_kernel_lose_none_of_5000", &full, || {
            swaps(&format!("--irqchip kernel --controller {CONTROLLER}"), 5_000)
        })
        .test("the_program_forwards_in_the_kernel", &full, || {
            let machine = format!("--irqchip kernel --controller {CONTROLLER}");
            program_forwards(&[
                &format!("{machine} --forward kernel"),
                &format!("{machine} --forward relay"),
            ])
        })
        .test("without_the_guests_eoi_it_hangs", &full, || {
            hangs(&["--irqchip kernel --forward kernel", "--irqchip kernel --forward relay"])
        })
        .test("the_relay_takes_at_most_five_system_calls", &traced, relay_calls)
        .test("the_handler_reaches_the_device_without_an_exit", &full, reaches_the_bar)
        .test("a_run_leaves_nothing_of_the_device_behind", &full, leaves_nothing)
        .test("a_device_in_use_is_refused_in_one_line", &full, in_use);
    if !GIC {
        suite = of_a_pc(suite, edu);
    }
    suite.run()
}

/// The best controller of a full irqchip.
const CONTROLLER: &str = if GIC { "gic" } else { "ioapic" };

/// The EOI is the guest's own. That of a GIC is always.
const GENUINE: Need = if GIC { Need::Kvm } else { Need::GenuineLapicEoi };

/// The tests of the controllers that arm64 does not have.
fn of_a_pc(suite: Suite, edu: Need) -> Suite {
    let pic = [edu, Need::FullIrqchip, Need::GenuinePicEoi];
    let split = [edu, Need::SplitIrqchip, Need::GenuineLapicEoi];
    let user = [edu, Need::Kvm];
    suite
        .test_within(LONG, "the_split_kick_loses_none_of_5000", &split, || {
            loses_none(Irqchip::Split, Forward::SplitKick)
        })
        .test("the_connection_picks_the_split_kick", &split, || {
            picks_a_path("split", "split kick", &["host forward", "kernel loop"])
        })
        .test_within(LONG, "swaps_on_a_split_irqchip_lose_none", &split, || {
            swaps("--irqchip split", 1_000)
        })
        .test("the_program_forwards_to_the_8259_in_the_kernel", &pic, || {
            program_forwards(&[
                "--irqchip kernel --controller pic --forward kernel",
                "--irqchip kernel --controller pic --forward relay",
            ])
        })
        .test("the_program_forwards_to_the_ioapic_in_userspace", &split, || {
            program_forwards(&[
                "--irqchip split --forward split-kick",
                "--irqchip split --forward relay --source pin",
                "--irqchip split --forward relay --source irqfd",
            ])
        })
        .test("the_program_forwards_to_the_8259_in_userspace", &user, || {
            program_forwards(&["--irqchip user --forward relay"])
        })
        .test("without_the_guests_eoi_the_split_kick_hangs", &split, || {
            hangs(&["--irqchip split --forward split-kick"])
        })
        .test("without_the_guests_eoi_the_8259_in_userspace_hangs", &user, || {
            hangs(&["--irqchip user --forward relay"])
        })
        .test("a_device_in_use_is_refused_to_linux_too", &[edu], || {
            refused_in_use(&["run --kernel /dev/null"])
        })
        .test("explain_names_the_path_of_any_card", &split, explains_any_card)
}

fn composition(irqchip: Irqchip, forward: Forward) -> Composition {
    let source = Source::default_with(irqchip, forward);
    Composition {
        device: DeviceKind::Vfio(address()),
        forward,
        source,
        eoi: Eoi::default_of(source),
        ..Composition::new(MachineKind::Kvm, irqchip, MachineKind::Kvm.controllers(irqchip)[0])
    }
}

/// A guest that runs with the device, and the parts of the composition. `mapped` says whether it is given the BAR.
fn set_up(composition: &Composition, mapped: bool) -> (Running, Controllers, Status, Parts) {
    let program = Program {
        controller: composition.controller,
        devices: 1,
        edu: true,
        acknowledge: false,
        without: None,
        idle: match composition.irqchip {
            Irqchip::Split => Idle::Spin,
            Irqchip::Kernel | Irqchip::User => Idle::Halt,
        },
    };
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let mut machine = Machine::new(&kvm, &program.assemble().unwrap(), composition.irqchip).unwrap();
    let (controllers, status) = (machine.controllers().unwrap(), machine.status().unwrap());
    let parts = Parts::compose(&controllers, &status, composition).unwrap();
    if mapped {
        machine.map_bar(Arc::clone(passthrough(&parts).edu.bar())).unwrap();
    }
    let running = machine.start(&controllers, || Ok(())).unwrap();
    (running, controllers, status, parts)
}

fn passthrough(parts: &Parts) -> &Passthrough {
    parts.passthrough.as_ref().unwrap()
}

/// How often the host's kernel has handled the device's INTx, by /proc/interrupts, which shows this while INTx is set
/// up. On arm64 the count goes on from the last time.
fn host_interrupts() -> u64 {
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap();
    let name = format!("vfio-intx({ADDRESS})");
    let lines = interrupts.lines().filter(|line| line.contains(&name));
    lines
        .flat_map(|line| line.split_whitespace().skip(1))
        .map_while(|word| word.parse::<u64>().ok())
        .sum()
}

/// Guest, host and device agree on how many interrupts there were.
fn loses_none(irqchip: Irqchip, forward: Forward) {
    const COUNT: u64 = 5_000;
    let (running, _controllers, status, mut parts) = set_up(&composition(irqchip, forward), true);
    let before = host_interrupts();
    let mut traffic = Traffic::new(Arc::clone(&parts.devices), COUNT);
    let (progress, stop) = (Progress::default(), parts.eois.stop());
    thread::scope(|scope| {
        let devices = scope.spawn(|| traffic.run(&mut parts.eois, &progress));
        // However slow the host is, it goes on; what does not is a lost interrupt, and the counts below say so.
        let mut stall = StallDetector::new(STALL_LIMIT);
        while !devices.is_finished() && !stall.is_stalled(progress.done()) {
            thread::sleep(INTERVAL);
        }
        stop.stop().unwrap();
        devices.join().unwrap().unwrap();
    });
    // What nobody raised would come now.
    thread::sleep(Duration::from_millis(20));
    let device = &parts.devices[0];
    assert_eq!((traffic.done, traffic.resampled), (COUNT, COUNT));
    assert_eq!(
        (device.raised(), device.asserted(), device.serviced()),
        (COUNT, COUNT, COUNT)
    );
    let runs = (status.handler_runs(), status.found_nothing(), status.stray());
    assert_eq!(runs, (COUNT as u32, 0, 0), "runs of the handler, and those for nothing");
    let passthrough = parts.passthrough.take().unwrap();
    assert_eq!(passthrough.edu.bar().status().unwrap(), 0, "the device asserts nothing");
    // A request that is made before the device is unmasked is found by vfio-pci at the unmask, and is no interrupt of
    // the host's.
    let host = host_interrupts() - before;
    assert!(
        (1..=COUNT).contains(&host),
        "{host} interrupts of the host for {COUNT} requests"
    );
    running.stop().unwrap();
    passthrough.forwarding.stop().unwrap();
    assert_eq!(host_interrupts(), 0, "INTx is not set up any more");
}

/// Runs `vmm-ref run` with the device and `--json`.
fn program(arguments: &str) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(format!("run --device vfio:{ADDRESS} {arguments} --json").split(' '))
        .output()
        .unwrap();
    let object = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), object)
}

fn program_forwards(paths: &[&str]) {
    const COUNT: u64 = 200;
    for path in paths {
        let (status, object) = program(&format!("{path} --count {COUNT}"));
        assert_eq!(
            (status, &object["outcome"]),
            (Some(0), &"ok".into()),
            "{path}: {object}"
        );
        for (field, expected) in [
            ("asserted", COUNT),
            ("serviced", COUNT),
            ("resampled", COUNT),
            ("lost", 0),
            ("spurious", 0),
        ] {
            assert_eq!(object[field], expected, "{path}: {field}: {object}");
        }
        assert_eq!(object["device"], format!("vfio:{ADDRESS}"), "{object}");
        // What was asked for is what was composed.
        let mut words = path.split(' ');
        while let (Some(option), Some(value)) = (words.next(), words.next()) {
            assert_eq!(object[option.trim_start_matches("--")], value, "{path}: {object}");
        }
        assert!(object["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{object}");
    }
}

/// What nobody says, the connection finds, and says why the `better` ones cannot be.
fn picks_a_path(irqchip: &str, path: &str, better: &[&str]) {
    let (status, object) = program(&format!("--irqchip {irqchip} --count 50"));
    assert_eq!((status, &object["outcome"]), (Some(0), &"ok".into()), "{object}");
    let forwarding = &object["forwarding"];
    assert_eq!(
        (&forwarding["path"], &object["forward"]),
        (&path.into(), &"auto".into()),
        "{object}"
    );
    let why_not = forwarding["why_not"].as_array().unwrap();
    let paths: Vec<_> = why_not.iter().map(|why| why["path"].as_str().unwrap()).collect();
    assert_eq!(paths, better, "{object}");
    if irqchip == "kernel" {
        let reason = why_not[0]["reason"].as_str().unwrap();
        assert!(reason.contains("KVM_DEV_VFIO_DEVICE_FORWARD_IRQ"), "{reason}");
    }
}

/// The path changes every 50 interrupts, in the middle of one: each is served once, and the handler never runs for
/// nothing.
fn swaps(machine: &str, count: u64) {
    let (status, object) = program(&format!("{machine} --swap-every 50 --count {count}"));
    assert_eq!((status, &object["outcome"]), (Some(0), &"ok".into()), "{object}");
    for (field, expected) in [("asserted", count), ("serviced", count), ("lost", 0), ("spurious", 0)] {
        assert_eq!(object[field], expected, "{field}: {object}");
    }
    let swaps = object["swaps"]["swaps"].as_u64().unwrap();
    assert!(swaps * 50 * 2 >= count, "{object}");
    println!("{machine}: {swaps} changes of path: {}", object["swaps"]["cost_us"]);
}

/// The negative control: the handler serves the device and does not end the interrupt.
fn hangs(paths: &[&str]) {
    for path in paths {
        let (status, object) = program(&format!("{path} --no-guest-eoi"));
        assert_eq!(
            (status, &object["outcome"]),
            (Some(0), &"no-eoi".into()),
            "{path}: {object}"
        );
        for (field, expected) in [("asserted", 1), ("serviced", 1), ("resampled", 0), ("spurious", 0)] {
            assert_eq!(object[field], expected, "{path}: {field}: {object}");
        }
    }
}

fn has_strace() -> Result<(), String> {
    match Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it cannot trace here: {status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The system calls that the relay's thread makes in a run of so many interrupts.
fn calls_of_the_relay(count: u32) -> Vec<String> {
    let log = std::env::temp_dir().join(format!("vmm-ref-strace-{}", std::process::id()));
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(["run", "--device", &format!("vfio:{ADDRESS}"), "--forward", "relay"])
        .args(["--count", &count.to_string(), "--json"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    // A line is a thread's number and what it does; a call that another thread's interrupts is resumed on a second one.
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let begun: Vec<_> = lines
        .map(|(thread, what)| (thread, what.trim_start()))
        .filter(|(_, what)| !what.starts_with("<..."))
        .filter_map(|(thread, what)| Some((thread, what.split_once('(')?.0)))
        .collect();
    let (relay, _) = begun
        .iter()
        .find(|(_, call)| ["epoll_wait", "epoll_pwait", "epoll_pwait2"].contains(call))
        .unwrap();
    let of_relay = begun.iter().filter(|(thread, _)| thread == relay);
    of_relay.map(|(_, call)| (*call).to_owned()).collect()
}

/// Of the whole thread, from what a long run makes more than a short one.
fn relay_calls() {
    const FEW: u32 = 100;
    const MANY: u32 = 300;
    let (few, many) = (calls_of_the_relay(FEW), calls_of_the_relay(MANY));
    let of = |calls: &[String], name: &str| calls.iter().filter(|call| call.starts_with(name)).count() as f64;
    let a_round = |name: &str| (of(&many, name) - of(&few, name)) / f64::from(MANY - FEW);
    let names: std::collections::BTreeSet<_> = many.iter().collect();
    let table: Vec<_> = names.iter().map(|name| (*name, a_round(name))).collect();
    println!("system calls of a relayed interrupt: {:.2}: {table:?}", a_round(""));
    // A wait that finds the next signal there already saves one.
    assert!(a_round("") > 2.0 && a_round("") <= 5.0, "{table:?}");
    assert_eq!(a_round("epoll_ctl"), 0.0, "{table:?}");
}

/// An access that exits ends the guest, because nobody here emulates the device. Shown by taking the BAR away.
fn reaches_the_bar() {
    let composition = composition(Irqchip::Kernel, Forward::Kernel);
    let (running, _controllers, status, parts) = set_up(&composition, false);
    parts.devices[0].request().unwrap();
    let mut stall = StallDetector::new(STALL_LIMIT);
    while !running.has_ended() {
        assert!(!stall.is_stalled(0), "the guest goes on without the BAR");
        thread::yield_now();
    }
    let error = running.stop().unwrap_err().to_string();
    assert!(error.contains("unexpected exit MmioRead at"), "{error}");
    assert_eq!((status.handler_runs(), parts.devices[0].serviced()), (1, 0));
}

fn leaves_nothing() {
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let once = || {
        let (running, controllers, status, mut parts) = set_up(&composition(Irqchip::Kernel, Forward::Relay), true);
        let mut traffic = Traffic::new(Arc::clone(&parts.devices), 10);
        traffic.run(&mut parts.eois, &Progress::default()).unwrap();
        assert_eq!(traffic.done, 10);
        // Everything is just dropped.
        drop((running, controllers, status, parts));
    };
    // What is made once and stays is made in the first run.
    once();
    let before = (fds(), threads());
    once();
    assert_eq!((fds(), threads()), before);
    // And the group has no user any more.
    check(address()).unwrap();
}

fn in_use() {
    refused_in_use(&["run", "explain"]);
}

fn refused_in_use(commands: &[&str]) {
    let edu = Edu::open(address()).unwrap();
    let device = format!("vfio:{ADDRESS}");
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
            .args(command.split(' '))
            .args(["--device", &device])
            .output()
            .unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), line.matches('\n').count()),
            (Some(2), 1),
            "{command}: {line}"
        );
        assert!(line.contains("is in use by another process"), "{command}: {line}");
    }
    drop(edu);
    check(address()).unwrap();
}

/// Of each PCI device of the lab, whatever it is: its path without a run, and why no better one.
fn explains_any_card() {
    let cards = |(_, error): &(String, Option<String>)| error.is_none();
    let all = fs::read_dir("/sys/bus/pci/drivers/vfio-pci").unwrap().flatten();
    let names = all.map(|entry| entry.file_name().into_string().unwrap());
    let checked =
        names.filter_map(|name| Some((name.clone(), check(name.parse().ok()?).err().map(|no| no.to_string()))));
    let usable: Vec<_> = checked.filter(cards).collect();
    // The edu, and the network and USB cards.
    assert!(usable.len() > 3, "{usable:?}");
    for (name, _) in usable {
        for (irqchip, path) in [("kernel", "kernel loop"), ("split", "split kick")] {
            let output = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
                .args([
                    "explain",
                    "--json",
                    "--irqchip",
                    irqchip,
                    "--device",
                    &format!("vfio:{name}"),
                ])
                .output()
                .unwrap();
            let object: Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
            assert_eq!(
                (&object["path"], &object["device"]),
                (&path.into(), &name.as_str().into()),
                "{object}"
            );
            let better = object["why_not"].as_array().unwrap();
            assert!(
                !better.is_empty() && better.iter().all(|why| why["reason"] != ""),
                "{object}"
            );
            assert!(
                object["possible"].as_array().unwrap().contains(&"relay".into()),
                "{object}"
            );
        }
        check(name.parse().unwrap()).unwrap();
    }
}
