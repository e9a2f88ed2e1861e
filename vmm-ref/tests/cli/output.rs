// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is printed where nobody watches.

use std::io::Read as _;
use std::process::Stdio;

use crate::program::{command, run};

pub fn json_fields() {
    let ended = run("run --count 20 --json");
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(
        ended.stdout.matches('\n').count(),
        1,
        "one object on one line: {}",
        ended.stdout
    );
    let fields = [
        "host",
        "irqchip",
        "controller",
        "source",
        "eoi",
        "forward",
        "device",
        "sharers",
        "wait",
        "eoi_observable",
        "count",
        "asserted",
        "serviced",
        "resampled",
        "lost",
        "spurious",
        "latency_us",
        "elapsed_s",
        "outcome",
        "machine",
    ];
    let object: serde_json::Map<_, _> = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(object.len(), fields.len(), "{}", ended.stdout);
    let at = fields.map(|field| {
        ended
            .stdout
            .find(&format!("\"{field}\":"))
            .unwrap_or_else(|| panic!("no {field}"))
    });
    assert!(at.is_sorted(), "{}", ended.stdout);
    let latency: Vec<_> = object["latency_us"].as_object().unwrap().keys().collect();
    assert_eq!(latency.len(), 5, "{latency:?}");
}

pub fn text_lines() {
    let ended = run("run --count 200");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!ended.stdout.contains('\x1b'), "{}", ended.stdout.escape_debug());
    let mut lines = ended.stdout.lines();
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    for (start, contains) in [
        ("host ", release.as_str()),
        ("EOI ", "LAPIC: "),
        ("EOI ", "8259: "),
        ("composed ", "source resample, eoi resamplefd, sharers 1, wait block"),
        ("path ", "none to choose: the embedded device holds its line itself"),
        ("trace #1 ", "handler "),
        ("trace #2 ", "handler "),
        ("trace #3 ", "handler "),
        ("trace #4 ", "handler "),
        ("trace #5 ", "resample +"),
        (
            "counts ",
            "asserted 200, serviced 200, resampled 200, lost 0, spurious 0",
        ),
        ("guest ", "200"),
        ("latency ", "p50 "),
        ("elapsed ", " s"),
        ("all well: ", "200 of 200"),
    ] {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no line {start}: {}", ended.stdout));
        assert!(line.starts_with(start) && line.contains(contains), "{start}: {line}");
    }
    assert_eq!(lines.next(), None);
}

/// As `vmm-ref | head -1`.
pub fn broken_pipe() {
    let mut child = command("run --count 20")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((stderr.as_str(), child.wait().unwrap().code()), ("", Some(1)));
}

pub fn help() {
    for (arguments, contains) in [
        ("--help", "Examples:"),
        ("run --help", "vmm-ref run --no-guest-eoi"),
        ("probe --help", "vmm-ref probe --json"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let ended = run(arguments);
        assert_eq!(
            (ended.status, ended.stderr.as_str()),
            (Some(0), ""),
            "{arguments}: {ended:?}"
        );
        assert!(ended.stdout.contains(contains), "{arguments}: {}", ended.stdout);
        assert!(
            !ended.stdout.contains('\x1b'),
            "{arguments}: {}",
            ended.stdout.escape_debug()
        );
    }
}
