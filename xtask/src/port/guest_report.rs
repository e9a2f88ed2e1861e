// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest says on its console of its card and of its pings (guest-init.sh).

/// The pings of one guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestReport {
    /// Echo requests that were answered.
    pub answered: u32,
    /// The interrupts of the card's driver from before the first ping to after the last.
    pub interrupts: u64,
    /// The round trips in ms, as busybox's ping measures them.
    pub round_trips: Vec<f64>,
    /// The kernel gave up waiting for the card (NETDEV WATCHDOG).
    pub watchdogs: u32,
}

impl GuestReport {
    pub fn of<'a>(console: impl Iterator<Item = &'a str>) -> Self {
        let mut report = Self::default();
        let mut interrupts = Vec::new();
        for line in console {
            let words: Vec<&str> = line.split_whitespace().collect();
            if line.contains("NETDEV WATCHDOG") {
                report.watchdogs += 1;
            }
            if let Some(ms) = words.iter().find_map(|word| word.strip_prefix("time=")) {
                report.round_trips.extend(ms.parse::<f64>());
            }
            match words.as_slice() {
                // 28:  5  IO-APIC  7-fasteoi  eth0
                [irq, count, .., "eth0"] if irq.ends_with(':') => interrupts.extend(count.parse::<u64>()),
                // More are transmitted than were asked for when an answer comes after the interval.
                [_, "packets", "transmitted,", answered, "packets", "received,", ..] => {
                    report.answered = answered.parse().unwrap_or_default();
                }
                _ => {}
            }
        }
        if let [before, .., after] = interrupts[..] {
            report.interrupts = after.saturating_sub(before);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
 28:          1   IO-APIC   7-fasteoi   eth0
guest: pings on link 1
[   17.298734] e1000 0000:00:02.0 eth0: NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out 5788 ms
guest: pinged on link 1
PING 10.0.1.1 (10.0.1.1): 56 data bytes
64 bytes from 10.0.1.1: seq=0 ttl=64 time=12.5 ms
64 bytes from 10.0.1.1: seq=1 ttl=64 time=2.250 ms

3 packets transmitted, 2 packets received, 33% packet loss
 28:          7   IO-APIC   7-fasteoi   eth0
";

    #[test]
    fn pings_interrupts_and_watchdogs_are_read() {
        let expected = GuestReport {
            answered: 2,
            interrupts: 6,
            round_trips: vec![12.5, 2.25],
            watchdogs: 1,
        };
        assert_eq!(GuestReport::of(CONSOLE.lines()), expected);
    }
}
