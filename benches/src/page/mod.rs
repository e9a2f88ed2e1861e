// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The results as one HTML page without external resources.

mod chart;

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::Result;
use crate::digits::number;
use crate::nic::table::FIGURES;
use crate::results::{Figures, Group, Nic, NicFigures, Results, Series, Target};

/// The page.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn page(results: &Results) -> Result<String> {
    let groups = results.groups.iter().map(group).collect::<Result<Vec<_>>>()?;
    let scaling = results.scaling.iter().map(scaling).collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "EOI round trips" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { "Round trips of level interrupts" }
                p {
                    "From a device's assertion to the moment it is told of the EOI, through every composition of the workspace "
                    "that works on this host, each beside its floor: the same round trip in bare ioctls and eventfds, in the same "
                    "process and in turns. Microseconds, unless it says otherwise."
                }
                (host(results))
                h2 { "Targets" }
                (targets(&results.targets))
                @for group in &groups { (group) }
                @if let Some(nic) = &results.nic {
                    h2 { "A network card under Linux, beside QEMU" }
                    (network(nic))
                }
                @if let Some(waiting) = &results.waiting {
                    h2 { "Adaptive waiting" }
                    table {
                        @for (neighbour, of) in [("idle neighbour", &waiting.idle), ("every processor busy", &waiting.busy)] {
                            tr { th { "over bare polling, p50, " (neighbour) } td { (of.over_polling) } }
                            tr { th { "over bare blocking, p50, " (neighbour) } td { (of.over_blocking) } }
                        }
                        tr { th { "part of a second without an interrupt on a processor" } td { (number(waiting.second_per_mille)) " ‰" } }
                    }
                }
                @if !scaling.is_empty() {
                    h2 { "What grows with the number of lines, sharers and routes" }
                    div.charts { @for chart in &scaling { (chart) } }
                }
                @if !results.operations_ns.is_empty() || !results.instructions.is_empty() {
                    h2 { "Single operations" }
                    (operations(results))
                }
                @if !results.left_out.is_empty() {
                    h2 { "Left out" }
                    ul { @for left_out in &results.left_out { li { b { (left_out.what) } ": " (left_out.why) } } }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn host(results: &Results) -> Markup {
    let host = &results.host;
    html! {
        table {
            tr { th { "host" } td { (host.summary) } }
            tr { th { "processor" } td { (host.processor) } }
            tr { th { "load average" } td { (number(host.load_before)) " before, " (number(host.load_after)) " after" } }
            tr { th { "version" } td { (results.version) } }
            tr { th { "set" } td {
                @if results.full { "full" } @else { "short" } ", " (results.seconds) " s, begun " (humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(results.started)))
            } }
        }
    }
}

fn targets(targets: &[Target]) -> Markup {
    html! {
        table {
            thead { tr { th { "what" } th { "target" } th { "measured" } th { "" } } }
            @for target in targets {
                tr {
                    td { (target.what) }
                    td.number { "≤ " (number(target.limit)) " " (target.unit) }
                    @match &target.measured {
                        Ok(measured) => { td.number { (measured) " " (target.unit) } }
                        Err(why) => { td { (why) } }
                    }
                    @match target.is_met() {
                        Some(true) => { td.met { "met" } }
                        Some(false) => { td.missed { "missed" } }
                        None => { td { "no figure" } }
                    }
                }
            }
        }
    }
}

fn group(group: &Group) -> Result<Markup> {
    let chart = chart::latencies(&group.ways)?;
    Ok(html! {
        h2 { (group.control.group) }
        p {
            b { "Negative control: " } (group.control.finding) ". "
            @if !group.control.eoi {
                span.missed { "These are no EOI round trips: " }
                "from the assertion to the end of the interrupt at its injection."
            }
        }
        table {
            thead { tr {
                th { "way" } th { "waits" } th { "min" } th { "p50" } th { "p90" } th { "p99" } th { "max" }
                th { "p50 of the turns" } th { "p50 over floor" } th { "system calls" } th { "context switches" } th { "allocations" }
            } }
            @for way in &group.ways { (row(way)) }
        }
        (chart)
    })
}

fn row(way: &Figures) -> Markup {
    let (latency, per) = (&way.latency_us, &way.per_round_trip);
    html! {
        tr.floor[way.floor.is_none()] {
            td { @if way.floor.is_none() { "floor: " } (way.name) }
            td { (way.wait) }
            @for value in [latency.min, latency.p50, latency.p90, latency.p99, latency.max] { td.number { (number(value)) } }
            td.number { (way.p50_us) }
            td.number { @if let Some(ratio) = &way.over_floor { (ratio) } }
            td.number { (per.system_calls.map_or_else(|| "not counted".to_owned(), number)) }
            td.number { (per.context_switches.map_or_else(|| "not counted".to_owned(), number)) }
            td.number { (number(per.allocations)) }
        }
    }
}

fn network(nic: &Nic) -> Markup {
    let over = |vmm: &NicFigures, of: fn(&NicFigures) -> f64| nic.peer(vmm).map(|peer| number(of(vmm) / of(peer)));
    html! {
        p {
            "The same kernel, initrd and memory, one processor, and one e1000 given by VFIO, which pings a neighbour on its link. "
            "Medians of " (nic.rounds) " boots of each VMM, in turns; " (nic.pings) " pings in each. The columns from exits on are for "
            "each ping. In brackets: over the QEMU above."
        }
        table {
            thead { tr { th { "VMM" } @for (name, _) in FIGURES { th { (name) } } th { "exits of a ping by reason" } } }
            @for vmm in &nic.vmms {
                tr.floor[vmm.compared_with.is_none()] {
                    td { (vmm.name) }
                    @for (_, of) in FIGURES {
                        td.number { (number(of(vmm))) @if let Some(ratio) = over(vmm, of) { " (" (ratio) ")" } }
                    }
                    td {
                        @for (reason, count) in vmm.exits_per_ping.iter().filter(|(_, count)| **count >= 0.005) {
                            (reason) " " (number(*count)) "; "
                        }
                    }
                }
            }
        }
    }
}

fn scaling(series: &Series) -> Result<Markup> {
    Ok(html! {
        figure {
            figcaption {
                (series.what) " over " (series.of)
                @if !series.unit.is_empty() { ", " (series.unit) }
            }
            (chart::growth(series)?)
        }
    })
}

fn operations(results: &Results) -> Markup {
    let names: std::collections::BTreeSet<_> = results
        .operations_ns
        .keys()
        .chain(results.instructions.keys())
        .collect();
    html! {
        table {
            thead { tr { th { "operation" } th { "ns, median" } th { "95 % between" } th { "instructions" } } }
            @for name in names {
                tr {
                    td { (name) }
                    @match results.operations_ns.get(name) {
                        Some([low, median, high]) => {
                            td.number { (number(*median)) }
                            td.number { (number(*low)) " and " (number(*high)) }
                        }
                        None => { td {} td {} }
                    }
                    td.number { @if let Some(count) = results.instructions.get(name) { (number(*count)) } }
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::{Adaptive, Control, FORMAT, Host, LeftOut, PerRoundTrip, Quantiles, Spread, Waiting};

    pub(crate) fn results() -> Results {
        let way = |name: &str, floor| Figures {
            name: name.to_owned(),
            wait: "block".to_owned(),
            floor,
            round_trips: 100,
            latency_us: Quantiles {
                min: 4.0,
                p50: 5.0,
                p90: 6.0,
                p99: 50.0,
                max: 1234.5,
            },
            p50_us: Spread::of(&[5.0, 5.1]),
            over_floor: floor.map(|_| Spread::of(&[0.99, 1.01, 1.02])),
            per_round_trip: PerRoundTrip {
                system_calls: Some(4.0),
                context_switches: None,
                allocations: 0.0,
            },
            buckets: vec![(4.0, 10), (5.0, 80), (50.0, 10)],
        };
        let vmm = |name: &str, compared_with: Option<&str>, ping| NicFigures {
            name: name.to_owned(),
            compared_with: compared_with.map(str::to_owned),
            ping_us: Spread::of(&[ping]),
            boot_s: Spread::of(&[5.0]),
            receive_mib_s: Spread::of(&[10.0]),
            send_mib_s: Spread::of(&[8.0]),
            exits_per_ping: [("HLT".to_owned(), 2.0), ("port".to_owned(), 0.0)].into(),
            card_interrupts_per_ping: 2.0,
            host_interrupts_per_ping: 7.5,
            context_switches_per_ping: 12.0,
        };
        let adaptive = Adaptive {
            over_polling: Spread::of(&[1.02]),
            over_blocking: Spread::of(&[0.3]),
        };
        Results {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            started: 0,
            seconds: 1,
            full: false,
            host: Host {
                summary: "Linux 6.18, kvm_amd, 2 CPUs".to_owned(),
                processor: "a <processor>".to_owned(),
                load_before: 0.1,
                load_after: 1.5,
            },
            groups: vec![Group {
                control: Control {
                    group: "kernel irqchip, 8259".to_owned(),
                    finding: "found".to_owned(),
                    eoi: false,
                },
                ways: vec![way("bare", None), way("resample", Some(0))],
            }],
            nic: Some(Nic {
                rounds: 2,
                pings: 300,
                vmms: vec![vmm("QEMU <on>", None, 1000.0), vmm("ours", Some("QEMU <on>"), 900.0)],
            }),
            waiting: Some(Waiting {
                idle: adaptive,
                busy: adaptive,
                second_per_mille: 0.04,
            }),
            scaling: vec![Series {
                of: "lines".to_owned(),
                what: "time".to_owned(),
                unit: "ns".to_owned(),
                points: vec![(1, 100.0), (1024, 110.0)],
            }],
            operations_ns: [("ioapic/x".to_owned(), [1.0, 2.0, 3.0])].into(),
            instructions: [("ioapic/x".to_owned(), 1234.0)].into(),
            left_out: vec![LeftOut::new("split", "no KVM")],
            targets: vec![Target {
                what: "x".to_owned(),
                limit: 1.0,
                unit: String::new(),
                measured: Err("no KVM".to_owned()),
            }],
        }
    }

    #[test]
    fn a_page_needs_nothing_else_and_says_all() {
        let results = results();
        let page = page(&results).unwrap();
        for said in [
            "a &lt;processor&gt;",
            "no EOI round trips",
            "floor: bare",
            "1.01 (0.990 to 1.02)",
            "5.10 (5.00 to 5.10)",
            "not counted",
            "<b>split</b>: no KVM",
            "no figure",
            "QEMU &lt;on&gt;",
            "900 (0.900)",
            "HLT 2.00; <",
        ] {
            assert!(page.contains(said), "{said}");
        }
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(
            !page.contains("http")
                || page.matches("http").count() == page.matches("http://www.w3.org/2000/svg").count()
        );
    }

    #[test]
    fn json_is_read_as_it_was_written() {
        let results = results();
        let json = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert!(crate::compare::changes(&results, &read).is_empty());
    }
}
