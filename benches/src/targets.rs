// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The targets of this workspace, and what the figures say to them.

use crate::results::{Figures, Group, NicFigures, Results, Spread, Target};
use crate::ways::INTX;

/// All targets, with what was measured, or why nothing was.
pub fn judge(results: &Results) -> Vec<Target> {
    let mut targets = vec![
        target(
            "in-kernel round trip over its floor, worst source, p50",
            1.03,
            "",
            in_kernel(results),
        ),
        target(
            "adaptive wait over the better of polling and blocking, p50, idle neighbour",
            1.05,
            "",
            waiting(results, |of| of.idle.over_better()),
        ),
        target(
            "adaptive wait over the better of polling and blocking, p50, busy neighbour",
            1.1,
            "",
            waiting(results, |of| of.busy.over_better()),
        ),
        target(
            "adaptive wait: part of a second without an interrupt on a processor",
            1.0,
            "‰",
            waiting(results, |of| Spread::one(of.second_per_mille)),
        ),
        target("split over in-kernel IOAPIC, blocking, p50", 1.6, "", split(results)),
        target(
            "INTx, kernel loop over its floor, p50",
            1.05,
            "",
            intx(results, "kernel").and_then(|kernel| Ok(kernel.over(intx_floor(results)?))),
        ),
        target(
            "INTx, relay over kernel loop, p50",
            2.2,
            "",
            intx(results, "relay").and_then(|relay| Ok(relay.over(intx(results, "kernel")?))),
        ),
        target(
            "INTx, split kick over relay, p50",
            1.0,
            "",
            intx(results, "split-kick").and_then(|kick| Ok(kick.over(intx(results, "relay")?))),
        ),
    ];
    for (what, limit, of) in NETWORK {
        for (ours, limit) in PATHS.iter().zip(limit) {
            targets.push(target(
                &format!("{ours}: {what}"),
                limit,
                "",
                network(results, ours, of),
            ));
        }
    }
    let model = |forward: &str| model(results, forward);
    let relayed = model("relay").and_then(|relay| Ok(relay.over(model("kernel")?)));
    targets.push(target("model device, relay over kernel loop, p50", 1.8, "", relayed));
    for (name, limit) in [
        ("ioapic/assert, EOI, listener", 1000.0),
        ("ioapic/EOI of an unrelated vector", 45.0),
        // A pair.
        ("ioapic/mask, unmask", 650.0),
    ] {
        targets.push(target(name, limit, "instructions", instructions(results, name)));
    }
    let over = |of: &str, other: &str| Ok(operation(results, of)?.over(operation(results, other)?));
    targets.push(target(
        "find at 4096 registrations over the write of an eventfd",
        0.1,
        "",
        over("find/4096", "eventfd write"),
    ));
    targets.push(target(
        "find at 4096 registrations over 16",
        1.5,
        "",
        over("find/4096", "find/16"),
    ));
    let pairs = series(results, "pairs", "a pair").map(|points| Spread::one(last(points) / first(points)));
    targets.push(target("register a pair beside 4096 over beside one", 1.5, "", pairs));
    let lines = |what: &str| series(results, "lines", what);
    let time = lines("time of a round trip").map(|points| Spread::one(last(points) / first(points)));
    targets.push(target("1024 lines over one, time of a round trip", 1.1, "", time));
    targets.push(target(
        "descriptors of a line",
        2.0,
        "",
        lines("descriptors").map(last).map(Spread::one),
    ));
    for irqchip in ["userspace IOAPIC", "KVM split irqchip"] {
        let heap = lines(&format!("heap of a line, {irqchip}")).map(last).map(Spread::one);
        targets.push(target(&format!("heap of an idle line, {irqchip}"), 512.0, "B", heap));
    }
    targets
}

fn target(what: &str, limit: f64, unit: &str, measured: Result<Spread, String>) -> Target {
    Target {
        what: what.to_owned(),
        limit,
        unit: unit.to_owned(),
        measured,
    }
}

/// The paths of a network card's INTx to a Linux guest: in the kernel, split, and relayed twice.
const PATHS: [&str; 4] = [
    "vmm-ref, kernel, kernel",
    "vmm-ref, split, split-kick",
    "vmm-ref, kernel, relay",
    "vmm-ref, split, relay",
];

/// What is compared with QEMU: the figure, and the greatest ratio for each of [`PATHS`].
type Comparison = (&'static str, [f64; 4], fn(&NicFigures) -> Spread);

const NETWORK: [Comparison; 3] = [
    ("ping over QEMU's", [1.0, 1.0, 0.75, 0.75], |vmm| vmm.ping_us),
    ("exits of a ping over QEMU's", [1.0; 4], |vmm| {
        Spread::one(vmm.all_exits_per_ping())
    }),
    ("boot to the first answer over QEMU's", [1.0; 4], |vmm| vmm.boot_s),
];

/// A figure of a network card over that of the QEMU with the same path.
fn network(results: &Results, name: &str, of: fn(&NicFigures) -> Spread) -> Result<Spread, String> {
    let nic = results.nic.as_ref();
    let nic = nic.ok_or("cargo xtask bench --lab --only nic measures it")?;
    let ours = nic.of(name).ok_or_else(|| format!("{name} did not run"))?;
    let peer = nic.peer(ours).ok_or("there is no QEMU to compare with")?;
    Ok(of(ours).over(of(peer)))
}

/// The worst ratio, in the groups whose EOI is the guest's own.
fn in_kernel(results: &Results) -> Result<Spread, String> {
    let groups = results.groups.iter();
    let genuine = groups.filter(|group| group.control.eoi && group.control.group.starts_with("kernel"));
    // A model device has one more thread than a device, and a relay two system calls more than a loop in the kernel.
    let ways = genuine
        .flat_map(|group| &group.ways)
        .filter(|way| !way.name.starts_with("model"));
    let ratios = ways.filter_map(|way| way.over_floor);
    ratios
        .max_by(|one, other| one.median.total_cmp(&other.median))
        .ok_or_else(|| "no in-kernel irqchip here whose EOI is the guest's own".to_owned())
}

fn waiting(results: &Results, of: impl Fn(&crate::results::Waiting) -> Spread) -> Result<Spread, String> {
    results.waiting.as_ref().map(of).ok_or_else(|| "no KVM here".to_owned())
}

fn split(results: &Results) -> Result<Spread, String> {
    let p50 = |name: &str| {
        let group = results.groups.iter().find(|group| group.control.group == name);
        let group = group.ok_or_else(|| format!("no {name} here"))?;
        if !group.control.eoi {
            return Err(format!("{name}: {}", group.control.finding));
        }
        best(group, "block").ok_or_else(|| format!("{name}: no blocking wait was measured"))
    };
    Ok(p50("split irqchip, IOAPIC")?.over(p50("kernel irqchip, IOAPIC")?))
}

/// The median of a way of the model device, where the irqchip is in the kernel and the EOI the guest's own.
fn model(results: &Results, forward: &str) -> Result<Spread, String> {
    let groups = results.groups.iter();
    let mut genuine = groups.filter(|group| group.control.eoi && group.control.group.starts_with("kernel"));
    let name = format!("model device, {forward}");
    let way = genuine.find_map(|group| group.ways.iter().find(|way| way.name == name));
    way.map(|way| way.p50_us)
        .ok_or_else(|| "no in-kernel irqchip here whose EOI is the guest's own".to_owned())
}

/// The median of a way of INTx.
fn intx(results: &Results, forward: &str) -> Result<Spread, String> {
    intx_figure(results, |way| way.name.starts_with(&format!("{forward},")))
}

fn intx_floor(results: &Results) -> Result<Spread, String> {
    intx_figure(results, |way| way.floor.is_none())
}

fn intx_figure(results: &Results, is_it: impl Fn(&Figures) -> bool) -> Result<Spread, String> {
    let group = results.groups.iter().find(|group| group.control.group == INTX);
    let way = group.and_then(|group| group.ways.iter().find(|way| is_it(way)));
    way.map(|way| way.p50_us)
        .ok_or_else(|| "no VFIO device with an INTx here; the lab has one".to_owned())
}

fn best(group: &Group, wait: &str) -> Option<Spread> {
    let is_it = |way: &&Figures| way.floor.is_some() && way.wait == wait && !way.name.starts_with("model");
    let medians = group.ways.iter().filter(is_it).map(|way| way.p50_us);
    medians.min_by(|one, other| one.median.total_cmp(&other.median))
}

/// The time of a single operation, between the bounds that criterion gives.
fn operation(results: &Results, name: &str) -> Result<Spread, String> {
    let figures = results.operations_ns.get(name);
    figures
        .map(|&[least, median, most]| Spread { least, median, most })
        .ok_or_else(|| "run cargo bench -p benches before".to_owned())
}

fn instructions(results: &Results, name: &str) -> Result<Spread, String> {
    let count = results.instructions.get(name);
    count
        .map(|&count| Spread::one(count))
        .ok_or_else(|| "valgrind did not count here".to_owned())
}

fn series<'a>(results: &'a Results, of: &str, what: &str) -> Result<&'a [(u64, f64)], String> {
    let found = results
        .scaling
        .iter()
        .find(|series| series.of == of && series.what.starts_with(what));
    match found {
        Some(series) if !series.points.is_empty() => Ok(&series.points),
        _ => Err("not measured here".to_owned()),
    }
}

fn first(points: &[(u64, f64)]) -> f64 {
    points.first().map_or(f64::NAN, |(_, value)| *value)
}

fn last(points: &[(u64, f64)]) -> f64 {
    points.last().map_or(f64::NAN, |(_, value)| *value)
}
