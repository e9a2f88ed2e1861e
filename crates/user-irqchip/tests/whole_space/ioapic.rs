// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC pin's decisions over their whole state space, against rules written down here a second time.
//!
//! The rules are those of the 82093AA datasheet, section 3.2.4, and of Linux where the datasheet is silent. A pin is taken
//! apart into named fields, a rule says what each field becomes, and the pin has to become that. Every combination of the bits
//! that a decision reads is tried: the entry's bits 16:8, the line, and the seven private bits. Vectors and counters are
//! compared and counted, so that values around each boundary stand for the others; the first test tries all vectors.

use super::*;

/// A pin, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    vector: u8,
    delivery_mode: u8,
    level_bit: bool,
    masked: bool,
    /// The entry's other bits below 17: destination mode, delivery status, polarity.
    rest: u64,
    remote_irr: bool,
    line: bool,
    edge: bool,
    stale: bool,
    routed: bool,
    moved: bool,
    delayed: bool,
    eois: u64,
    sent: u16,
}

impl Fields {
    fn of(state: PinState) -> Self {
        let word = state.bits();
        let bit = |n: u32| word >> n & 1 == 1;
        Self {
            vector: (word & 0xff) as u8,
            delivery_mode: (word >> 8 & 7) as u8,
            level_bit: bit(15),
            masked: bit(16),
            rest: word & 0x3800,
            remote_irr: bit(14),
            line: bit(17),
            edge: bit(18),
            stale: bit(19),
            routed: bit(20),
            moved: bit(21),
            delayed: bit(22),
            eois: word >> 32 & 0x3fff,
            sent: (word >> 48) as u16,
        }
    }

    /// Only fixed and lowest-priority interrupts can be levels; the datasheet has all others treated as edges.
    fn is_level(&self) -> bool {
        self.delivery_mode <= 1 && self.level_bit
    }

    /// The rule of sending: an unmasked pin with a message that the output knows sends while its level stands and no earlier
    /// one waits for its EOI, or when its line has risen.
    fn sends(&self) -> bool {
        let has_cause = match self.is_level() {
            true => self.line && !self.remote_irr,
            false => self.edge,
        };
        !self.masked && !self.stale && self.routed && has_cause
    }

    /// The pin after its decision. A level in service has remote IRR set. An edge is used up by being sent, and lost when the pin
    /// is masked, is a level pin, or has no message; it waits for the output alone.
    fn decided(mut self) -> (Self, Option<u16>) {
        let sends = self.sends();
        if sends {
            self.sent = self.sent.wrapping_add(1);
            self.remote_irr = self.is_level();
            self.delayed = false;
        }
        self.edge &= self.stale && !self.masked;
        (self, sends.then_some(self.sent))
    }
}

const VECTORS: [u64; 3] = [0x00, 0x31, 0xff];
/// EOIs in a row, and messages sent.
const COUNTS: [(u64, u64); 3] = [(0, 0xffff), (EOIS_BEFORE_DELAY - 2, 0), (EOIS_BEFORE_DELAY - 1, 1)];

/// Every state: all values of bits 22:8, and the vectors and counts above.
fn states() -> impl Iterator<Item = PinState> {
    (0..1u64 << 15).flat_map(|bits| {
        VECTORS.into_iter().flat_map(move |vector| {
            let state = move |(eois, sent)| PinState::from_bits(bits << 8 | vector | eois << 32 | sent << 48);
            COUNTS.into_iter().map(state)
        })
    })
}

/// Tries `step` on every state, against `rule`.
fn holds<R: PartialEq + fmt::Debug>(step: impl Fn(PinState) -> (PinState, R), rule: impl Fn(Fields) -> (Fields, R)) {
    holds_on(states(), step, rule);
}

fn holds_on<R: PartialEq + fmt::Debug>(
    states: impl Iterator<Item = PinState>,
    step: impl Fn(PinState) -> (PinState, R),
    rule: impl Fn(Fields) -> (Fields, R),
) {
    for state in states {
        let (next, result) = step(state);
        let fields = Fields::of(state);
        assert_eq!((Fields::of(next), result), rule(fields), "from {fields:?}");
    }
}

/// All 2^23 combinations of the bits 22:0, every vector among them.
#[test]
fn a_pin_sends_exactly_when_the_rules_say_so() {
    for word in 0..1 << 23 {
        let state = PinState::from_bits(word);
        let fields = Fields::of(state);
        let (next, sent) = state.evaluate();
        let (expected, expected_sent) = fields.decided();
        assert!(
            sent == expected_sent && Fields::of(next) == expected,
            "{fields:?}: {next:?}, {sent:?}"
        );
    }
}

#[test]
fn a_level_is_taken_over_and_an_edge_is_a_rise() {
    holds(
        |state| state.drive(Level::High),
        |mut pin| {
            if !pin.is_level() && pin.line {
                return (pin, Driven::Nothing(Delivery::Coalesced));
            }
            pin.edge |= !pin.is_level();
            pin.line = true;
            let (pin, sent) = pin.decided();
            let driven = match sent {
                Some(sent) => Driven::Send(sent),
                None if pin.stale && !pin.masked => Driven::Tell,
                None => Driven::Nothing(Delivery::Pending),
            };
            (pin, driven)
        },
    );
    holds(
        |state| state.drive(Level::Low),
        |pin| (Fields { line: false, ..pin }, Driven::Nothing(Delivery::Coalesced)),
    );
}

/// Section 3.2.4: remote IRR is reset when an EOI of the entry's vector comes, and a line that is still high is sent again.
#[test]
fn an_eoi_ends_the_level_of_its_vector() {
    for (vector, delays) in [(0x31, false), (0x31, true), (0xff, true), (0x77, true)] {
        holds(
            |state| state.end(vector, delays),
            |mut pin| {
                if pin.vector != vector || !pin.is_level() {
                    return (pin, AfterEoi::Nothing);
                }
                pin.remote_irr = false;
                if pin.moved {
                    return (pin, AfterEoi::Program);
                }
                if pin.masked || !pin.line {
                    pin.eois = 0;
                    return (pin, AfterEoi::Nothing);
                }
                pin.eois += 1;
                if pin.eois == 10_000 {
                    pin.eois = 0;
                    if delays {
                        pin.delayed = true;
                        return (pin, AfterEoi::Delay);
                    }
                }
                let (pin, sent) = pin.decided();
                (pin, sent.map_or(AfterEoi::Nothing, AfterEoi::Send))
            },
        );
    }
}

#[test]
fn a_delay_ends_with_what_is_high() {
    holds(PinState::delay_over, |mut pin| {
        if !std::mem::take(&mut pin.delayed) {
            return (pin, None);
        }
        pin.decided()
    });
}

/// A message that nobody took is not in service and does not count; one that was sent since is and does.
#[test]
fn a_refused_message_is_not_in_service() {
    for refused in [0, 0xffff] {
        holds(
            |state| (state.refused(refused), ()),
            |pin| {
                if pin.sent != refused {
                    return (pin, ());
                }
                let (remote_irr, sent) = (false, refused.wrapping_sub(1));
                (
                    Fields {
                        remote_irr,
                        sent,
                        ..pin
                    },
                    (),
                )
            },
        );
    }
}

/// Linux since 6.3: a waiting level is asked for before it is sent. The listeners of the GSI are told of an entry that has
/// changed, because a signal may have gone past this chip.
#[test]
fn a_write_asks_before_it_sends() {
    for changed in [false, true] {
        holds(
            |state| state.after_write(changed),
            |pin| {
                let open = pin.is_level() && !pin.masked && !pin.remote_irr;
                if open && pin.line {
                    return (pin, AfterWrite::Resample);
                }
                let (pin, sent) = pin.decided();
                let asks = if open && changed {
                    AfterWrite::ResampleGsi
                } else {
                    AfterWrite::Nothing
                };
                (pin, sent.map_or(asks, AfterWrite::Send))
            },
        );
    }
}

/// The guest writes the low half: it sets all bits but remote IRR, which only a level pin keeps. An output that knows another
/// mask or another message is told, but not of a destination while an interrupt is in service.
#[test]
fn a_write_sets_the_entry_and_tells_what_differs() {
    for entry in [0x0_0031, 0x0_8031, 0x1_8031, 0x0_8231, 0x0_c931, 0x1_0000] {
        for bits in 0..8 {
            let output = Output {
                mask: bits & 1 != 0,
                message: bits & 2 != 0,
                destination: bits & 4 != 0,
            };
            // A write copies the counts: the first of them stands for all.
            holds_on(
                states().step_by(COUNTS.len()),
                |state| (state.written(RedirectionEntry::from_bits(entry), output), ()),
                |pin| {
                    let written = Fields::of(PinState::from_bits(entry));
                    let remote_irr = pin.remote_irr && written.is_level();
                    let later = remote_irr && output.destination;
                    let next = Fields {
                        vector: written.vector,
                        delivery_mode: written.delivery_mode,
                        level_bit: written.level_bit,
                        masked: written.masked,
                        rest: written.rest,
                        remote_irr,
                        moved: later && output.message,
                        stale: pin.stale || (output.mask && !written.masked) || (output.message && !later),
                        edge: pin.edge && !written.masked,
                        ..pin
                    };
                    (next, ())
                },
            );
        }
    }
}
