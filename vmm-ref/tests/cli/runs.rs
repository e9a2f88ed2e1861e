// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is composed, and what comes of it.

use serde_json::Value;
use testkit::need::Need;

use crate::program::{run, run_json};

pub fn without_arguments() {
    let ended = run("");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let closing = ended.stdout.lines().last().unwrap();
    assert_eq!(
        closing,
        "all well: 10000 of 10000 round trips, nothing lost, nothing spurious"
    );
}

const COUNT: u64 = 200;

/// The paths of an irqchip in the kernel.
const KERNEL: [&str; 3] = [
    "--irqchip kernel --source resample --eoi resamplefd",
    "--irqchip kernel --source resample --eoi gsi",
    "--irqchip kernel --source line --eoi gsi",
];
const SPLIT: [&str; 3] = [
    "--irqchip split --source pin --eoi key",
    "--irqchip split --source pin --eoi gsi",
    "--irqchip split --source irqfd --eoi gsi",
];
const USER: [&str; 2] = [
    "--irqchip user --source pin --eoi key",
    "--irqchip user --source pin --eoi gsi",
];
const SOFT: [&str; 2] = [
    "--machine soft --irqchip user --source pin --eoi key",
    "--machine soft --irqchip user --source pin --eoi gsi",
];

/// Every composition of these paths on one controller: each with each way to wait and with each number of sharers.
fn compositions(controller: &str, paths: &[&str]) -> Vec<String> {
    let waits_and_sharers = [
        ("block", 1),
        ("spin", 1),
        ("adaptive", 1),
        ("block", 2),
        ("adaptive", 8),
    ];
    let all = paths.iter().flat_map(|path| {
        waits_and_sharers.map(|(wait, sharers)| {
            format!("run --controller {controller} {path} --wait {wait} --sharers {sharers} --count {COUNT}")
        })
    });
    all.collect()
}

fn assert_exact(arguments: &str, status: i32, object: &Value) {
    assert_eq!(object["outcome"], "ok", "{arguments}: {object}");
    assert_eq!(status, 0, "{arguments}: {object}");
    for (field, expected) in [
        ("count", COUNT),
        ("asserted", COUNT),
        ("serviced", COUNT),
        ("resampled", COUNT),
        ("lost", 0),
        ("spurious", 0),
    ] {
        assert_eq!(object[field], expected, "{arguments}: {field}: {object}");
    }
    assert_eq!(object["eoi_observable"], true, "{arguments}: {object}");
    // What was asked for is what was composed.
    let mut words = arguments.split(' ').skip(1);
    while let (Some(option), Some(value)) = (words.next(), words.next()) {
        let field = &object[option.trim_start_matches("--")];
        assert_eq!(field.to_string().trim_matches('"'), value, "{arguments}: {object}");
    }
    let latency = |field| object["latency_us"][field].as_f64().unwrap();
    let sorted = ["min", "p50", "p90", "p99", "max"].map(latency);
    assert!(sorted[0] > 0.0 && sorted.is_sorted(), "{arguments}: {object}");
}

pub fn on_the_pic() {
    for arguments in compositions("pic", &[KERNEL.as_slice(), &USER].concat()) {
        let (status, object) = run_json(&arguments);
        assert_exact(&arguments, status, &object);
    }
}

pub fn on_the_ioapic() {
    for arguments in compositions("ioapic", &[KERNEL.as_slice(), &SPLIT].concat()) {
        let (status, object) = run_json(&arguments);
        assert_exact(&arguments, status, &object);
    }
}

pub fn on_the_soft_machine() {
    for controller in ["pic", "ioapic"] {
        for arguments in compositions(controller, &SOFT) {
            let (status, object) = run_json(&arguments);
            assert_exact(&arguments, status, &object);
        }
    }
}

/// On a host that ends interrupts at injection a device is told before the handler has run, and states its level again:
/// there are more interrupts than requests, but every request is served.
pub fn on_the_ioapic_of_any_host() {
    let genuine = Need::GenuineLapicEoi.probe().is_ok();
    for path in [KERNEL[0], KERNEL[2], SPLIT[0], SPLIT[1], SPLIT[2]] {
        let arguments = format!("run --controller ioapic {path} --count {COUNT}");
        let (_, object) = run_json(&arguments);
        assert_eq!(object["eoi_observable"], genuine, "{arguments}: {object}");
        assert_eq!(
            (&object["lost"], &object["serviced"]),
            (&0.into(), &COUNT.into()),
            "{arguments}: {object}"
        );
        assert!(object["asserted"].as_u64().unwrap() >= COUNT, "{arguments}: {object}");
        assert!(object["resampled"].as_u64().unwrap() >= COUNT, "{arguments}: {object}");
    }
}

pub fn default_controller() {
    let (_, object) = run_json("run --count 10");
    let controller = if Need::GenuineLapicEoi.probe().is_ok() {
        "ioapic"
    } else if Need::GenuinePicEoi.probe().is_ok() {
        "pic"
    } else {
        "ioapic"
    };
    assert_eq!(object["controller"], controller, "{object}");
}

pub fn control_on_the_pic() {
    for path in KERNEL.iter().chain(&USER).chain(&SOFT) {
        let arguments = format!("run --controller pic --no-guest-eoi {path}");
        let (status, object) = run_json(&arguments);
        assert_eq!(
            (status, &object["outcome"]),
            (0, &"no-eoi".into()),
            "{arguments}: {object}"
        );
        for (field, expected) in [
            ("asserted", 1),
            ("serviced", 1),
            ("resampled", 0),
            ("lost", 0),
            ("spurious", 0),
        ] {
            assert_eq!(object[field], expected, "{arguments}: {field}: {object}");
        }
        assert!(object["latency_us"].is_null(), "{arguments}: {object}");
        assert!(object["elapsed_s"].as_f64().unwrap() < 10.0, "{arguments}: {object}");
    }
    let ended = run("run --controller pic --no-guest-eoi");
    assert!(ended.stdout.contains("no EOI seen, as expected"), "{ended:?}");
}

pub fn control_on_the_ioapic() {
    let (status, object) = run_json("run --controller ioapic --no-guest-eoi --count 100");
    if Need::GenuineLapicEoi.probe().is_ok() {
        assert_eq!((status, &object["outcome"]), (0, &"no-eoi".into()), "{object}");
        assert_eq!(object["resampled"], 0, "{object}");
    } else {
        assert_eq!((status, &object["outcome"]), (1, &"ended-by-host".into()), "{object}");
        assert!(object["resampled"].as_u64().unwrap() >= 100, "{object}");
    }
}
