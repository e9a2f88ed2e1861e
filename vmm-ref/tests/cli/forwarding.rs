// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model device whose path the connection chooses, and storms in which it changes.

use serde_json::Value;
use testkit::need::Need;

use crate::program::{run, run_json};

/// A storm has as many interrupts as is asked for with this variable set, and a part of them without.
const FULL: &str = "IRQ_TEST_STORM";

fn storm(full: u64, part: u64) -> u64 {
    if std::env::var_os(FULL).is_some() { full } else { part }
}

fn exact(arguments: &str, count: u64) -> Value {
    let (status, object) = run_json(arguments);
    assert_eq!((status, &object["outcome"]), (0, &"ok".into()), "{arguments}: {object}");
    for (field, expected) in [("count", count), ("serviced", count), ("lost", 0), ("spurious", 0)] {
        assert_eq!(object[field], expected, "{arguments}: {field}: {object}");
    }
    object
}

fn path_is(object: &Value, path: &str, better: &[&str]) {
    let forwarding = &object["forwarding"];
    assert_eq!(
        (&forwarding["path"], &forwarding["held"]),
        (&path.into(), &Value::Null),
        "{object}"
    );
    let why_not = forwarding["why_not"].as_array().unwrap();
    let paths: Vec<_> = why_not.iter().map(|why| why["path"].as_str().unwrap()).collect();
    assert_eq!(paths, better, "{object}");
    assert!(
        why_not.iter().all(|why| !why["reason"].as_str().unwrap().is_empty()),
        "{object}"
    );
}

/// In the kernel it is the loop; what is better, no kernel has.
pub fn in_the_kernel() {
    let object = exact("run --device model --controller pic --count 500", 500);
    path_is(&object, "kernel loop", &["host forward"]);
    let reason = object["forwarding"]["why_not"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("KVM_DEV_VFIO_DEVICE_FORWARD_IRQ"), "{reason}");
    for (forward, path) in [("kernel", "kernel loop"), ("relay", "relay")] {
        let arguments = format!("run --device model --controller pic --forward {forward} --count 500");
        assert_eq!(exact(&arguments, 500)["forwarding"]["path"], path);
    }
    let text = run("run --device model --controller pic --count 10").stdout;
    assert!(
        text.contains("path      kernel loop, from model to gsi 5 (kernel irqchip)"),
        "{text}"
    );
    assert!(
        text.contains("          no host forward: this kernel has no KVM_DEV_VFIO"),
        "{text}"
    );
}

pub fn in_this_process() {
    for machine in [
        "--machine kvm --irqchip user",
        "--machine soft --controller pic",
        "--machine soft --controller ioapic",
    ] {
        if machine.contains("kvm") && Need::GenuinePicEoi.probe().is_err() {
            continue;
        }
        for (forward, path, better) in [
            ("auto", "split kick", ["host forward", "kernel loop"].as_slice()),
            ("relay", "relay", &["host forward", "kernel loop", "split kick"]),
        ] {
            let object = exact(
                &format!("run --device model {machine} --forward {forward} --count 500"),
                500,
            );
            path_is(&object, path, better);
        }
    }
}

fn swaps(arguments: &str, count: u64) {
    let object = exact(
        &format!("run --device model --swap-every 50 {arguments} --count {count}"),
        count,
    );
    let account = &object["swaps"];
    let swaps = account["swaps"].as_u64().unwrap();
    // One that takes longer than 50 round trips is followed by the one after the next.
    assert!(swaps * 50 <= count && swaps * 50 * 4 >= count, "{object}");
    assert_eq!(account["every"], 50, "{object}");
    let cost = &account["cost_us"];
    assert!(cost["p50"].as_f64().unwrap() > 0.0, "{object}");
    println!(
        "{arguments}: {count} interrupts, {swaps} changes of path: p50 {} us, p99 {} us, max {} us",
        cost["p50"], cost["p99"], cost["max"]
    );
}

pub fn storm_without_kvm() {
    for controller in ["pic", "ioapic"] {
        swaps(
            &format!("--machine soft --controller {controller}"),
            storm(1_000_000, 50_000),
        );
    }
}

pub fn storm_in_the_kernel() {
    swaps("--controller pic", storm(100_000, 20_000));
}

pub fn storm_in_the_kernels_ioapic() {
    swaps("--controller ioapic", storm(100_000, 5_000));
}

pub fn storm_on_a_split_irqchip() {
    swaps("--irqchip split", storm(100_000, 5_000));
}

/// The storm can fail: without the guest's EOI nobody is told, on either path.
pub fn control() {
    for (forward, machine) in [
        ("kernel", "--controller pic"),
        ("relay", "--controller pic"),
        ("auto", "--machine soft"),
    ] {
        let arguments = format!("run --device model {machine} --forward {forward} --no-guest-eoi");
        let (status, object) = run_json(&arguments);
        assert_eq!(
            (status, &object["outcome"]),
            (0, &"no-eoi".into()),
            "{arguments}: {object}"
        );
        assert_eq!(
            (&object["resampled"], &object["serviced"]),
            (&0.into(), &1.into()),
            "{object}"
        );
    }
}

pub fn explains() {
    for (arguments, path, possible) in [
        ("--irqchip kernel", "kernel loop", ["kernel loop", "relay"].as_slice()),
        ("--irqchip split", "split kick", &["split kick", "relay"]),
        ("--irqchip split --source pin", "relay", &["relay"]),
        ("--machine soft", "split kick", &["split kick", "relay"]),
        ("--forward relay", "relay", &["kernel loop", "relay"]),
    ] {
        let (status, object) = run_json(&format!("explain {arguments}"));
        assert_eq!(status, 0, "{object}");
        assert_eq!(
            (&object["path"], &object["device"]),
            (&path.into(), &"model".into()),
            "{object}"
        );
        assert_eq!(object["possible"], Value::from(possible), "{object}");
        let ended = run(&format!("explain {arguments}"));
        let line = format!("possible  {}", possible.join(", "));
        assert!(ended.stdout.lines().any(|said| said == line), "{ended:?}");
        assert!(
            ended.stdout.contains(&format!("path      {path}, from model to gsi")),
            "{ended:?}"
        );
    }
}
