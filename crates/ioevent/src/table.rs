// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lookup table: from a store to the registration that it matches.
//!
//! A hash table by address, one for each space, because a trapped store is looked up far more often than a registration
//! changes, and nearly every address carries one registration. An address that carries several has a second hash table
//! by value, so that a fan of datamatches costs one more lookup here where it costs KVM a walk.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hasher};

use crate::event::Event;
use crate::matching::{Match, Space, Written};

/// A change to the table.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Insert(Match, Event),
    Remove(Match),
}

/// All registrations, by the address they match. No two of them collide ([`collision`](crate::matching::collision)):
/// the bus sees to it before it inserts.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pio: HashMap<u64, Group, AddressHash>,
    mmio: HashMap<u64, Group, AddressHash>,
}

impl Table {
    pub(crate) fn new() -> Self {
        let hash = AddressHash {
            seed: RandomState::new().hash_one(0),
        };
        Self {
            pio: HashMap::with_hasher(hash),
            mmio: HashMap::with_hasher(hash),
        }
    }

    /// The registration that a store of `data` to `address` matches.
    #[inline]
    pub(crate) fn find(&self, space: Space, address: u64, data: &[u8]) -> Option<&Row> {
        let groups = match space {
            Space::Pio => &self.pio,
            Space::Mmio => &self.mmio,
        };
        groups.get(&address)?.find(data)
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Insert(at, event) => self.insert(Row {
                at: *at,
                event: event.clone(),
            }),
            Change::Remove(at) => self.remove(at),
        }
    }

    fn groups(&mut self, space: Space) -> &mut HashMap<u64, Group, AddressHash> {
        match space {
            Space::Pio => &mut self.pio,
            Space::Mmio => &mut self.mmio,
        }
    }

    fn insert(&mut self, row: Row) {
        match self.groups(row.at.space).entry(row.at.address) {
            Entry::Vacant(vacant) => {
                vacant.insert(Group::One(row));
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().insert(row),
        }
    }

    fn remove(&mut self, at: &Match) {
        if let Entry::Occupied(mut occupied) = self.groups(at.space).entry(at.address) {
            if occupied.get_mut().remove(at) {
                occupied.remove();
            }
        }
    }
}

/// One registration.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) at: Match,
    pub(crate) event: Event,
}

/// The registrations of one address.
#[derive(Clone, Debug)]
enum Group {
    One(Row),
    /// Since the second one came, until the last one goes.
    Several(Box<Fan>),
}

impl Group {
    #[inline]
    fn find(&self, data: &[u8]) -> Option<&Row> {
        match self {
            Self::One(row) => row.at.matches_bytes(data).then_some(row),
            Self::Several(fan) => fan.find(data),
        }
    }

    fn insert(&mut self, row: Row) {
        match self {
            Self::One(first) => {
                let mut fan = Fan::new();
                fan.insert(first.clone());
                fan.insert(row);
                *self = Self::Several(Box::new(fan));
            }
            Self::Several(fan) => fan.insert(row),
        }
    }

    /// Whether nothing is left.
    fn remove(&mut self, at: &Match) -> bool {
        match self {
            Self::One(row) => row.at == *at,
            Self::Several(fan) => fan.remove(at),
        }
    }
}

/// Several registrations of one address. None of them is of any length: that one would collide with the rest.
#[derive(Clone, Debug)]
struct Fan {
    /// By [`Length`](crate::Length).
    lengths: [Values; 5],
    rows: usize,
}

/// The registrations of one address and one length.
#[derive(Clone, Debug)]
enum Values {
    /// The one without datamatch. It collides with those that have one.
    Any(Row),
    /// Those with a datamatch, by its value.
    Each(HashMap<u64, Row, AddressHash>),
}

impl Values {
    fn none() -> Self {
        Self::Each(HashMap::with_hasher(AddressHash::new()))
    }
}

impl Fan {
    fn new() -> Self {
        Self {
            lengths: std::array::from_fn(|_| Values::none()),
            rows: 0,
        }
    }

    fn find(&self, data: &[u8]) -> Option<&Row> {
        let Written { length, value } = Written::new(data)?;
        match &self.lengths[length as usize] {
            Values::Any(row) => Some(row),
            Values::Each(rows) => rows.get(&value),
        }
    }

    fn insert(&mut self, row: Row) {
        self.rows += 1;
        let values = &mut self.lengths[row.at.length as usize];
        match (row.at.datamatch, values) {
            (Some(value), Values::Each(rows)) => {
                rows.insert(value, row);
            }
            (_, values) => *values = Values::Any(row),
        }
    }

    fn remove(&mut self, at: &Match) -> bool {
        self.rows -= 1;
        let values = &mut self.lengths[at.length as usize];
        match (at.datamatch, values) {
            (Some(value), Values::Each(rows)) => {
                rows.remove(&value);
            }
            (_, values) => *values = Values::none(),
        }
        self.rows == 0
    }
}

/// Hashes one address, or one value, by a folded multiplication. The seed is random, because a guest chooses where its BARs lie and
/// could otherwise choose addresses that meet in one bucket.
#[derive(Clone, Copy, Debug)]
struct AddressHash {
    seed: u64,
}

impl AddressHash {
    fn new() -> Self {
        Self {
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl BuildHasher for AddressHash {
    type Hasher = Folded;

    #[inline]
    fn build_hasher(&self) -> Folded {
        Folded(self.seed)
    }
}

struct Folded(u64);

impl Hasher for Folded {
    #[inline]
    fn write_u64(&mut self, address: u64) {
        // The fractional part of the golden ratio: odd, and its bits are spread.
        let product = u128::from(self.0 ^ address) * 0x9e37_79b9_7f4a_7c15;
        // Folded from both halves: the low one alone does not see the high bits of the address, nor the high one the low.
        let folded = (product as u64) ^ ((product >> 64) as u64);
        self.0 = folded;
    }

    fn write(&mut self, bytes: &[u8]) {
        // `HashMap<u64, _>` hashes its keys through `write_u64`; this is only here because the trait asks for it.
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::{Length, collision};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EventFd;

    fn event() -> Event {
        Event::new(Arc::new(EventFd::new(0).unwrap())).unwrap()
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let length = prop::sample::select(&[
            Length::Any,
            Length::Bytes1,
            Length::Bytes2,
            Length::Bytes4,
            Length::Bytes8,
        ]);
        (any::<bool>(), 0u64..4, length, prop::option::of(0u64..4)).prop_map(|(pio, address, length, value)| Match {
            space: if pio { Space::Pio } else { Space::Mmio },
            address,
            length,
            datamatch: value.filter(|_| length != Length::Any),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// The table finds what a walk over all registrations with `Match::matches` finds, after any insertions and
        /// removals.
        #[test]
        fn the_table_agrees_with_a_walk(
            steps in prop::collection::vec((any_match(), any::<bool>()), 1..60),
        ) {
            let event = event();
            let mut table = Table::new();
            let mut registered = BTreeSet::new();
            for (at, insert) in steps {
                if insert && collision(&registered, &at).is_none() {
                    registered.insert(at);
                    table.apply(&Change::Insert(at, event.clone()));
                } else if !insert && registered.remove(&at) {
                    table.apply(&Change::Remove(at));
                }
            }
            for space in [Space::Pio, Space::Mmio] {
                for address in 0..5 {
                    for length in 0..=9 {
                        for value in 0..5u8 {
                            let mut data = [0; 9];
                            data[0] = value;
                            let data = &data[..length];
                            let walk: Vec<_> =
                                registered.iter().filter(|at| at.matches(space, address, data)).collect();
                            prop_assert!(walk.len() <= 1, "two registrations match one store: {walk:?}");
                            let found = table.find(space, address, data).map(|row| row.at);
                            prop_assert_eq!(found, walk.first().copied().copied());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_address_left_empty_is_forgotten() {
        let mut table = Table::new();
        let at = Match::mmio(0x1000, Length::Bytes4);
        for value in 0..3 {
            table.apply(&Change::Insert(at.with_datamatch(value), event()));
        }
        for value in 0..3 {
            assert_eq!(table.mmio.len(), 1);
            table.apply(&Change::Remove(at.with_datamatch(value)));
        }
        assert_eq!(table.mmio.len(), 0);
    }

    #[test]
    fn strided_addresses_spread() {
        // Doorbell pages: what a plain multiplication without folding gets wrong is keys whose low bits are all zero.
        let hash = AddressHash {
            seed: RandomState::new().hash_one(0),
        };
        for stride in [1u64, 4, 4096, 1 << 21, 1 << 40] {
            let buckets: std::collections::HashSet<u64> =
                (0..1024).map(|n| hash.hash_one(n * stride) & 0x3fff).collect();
            assert!(
                buckets.len() > 800,
                "stride {stride:#x}: {} buckets of 1024 addresses",
                buckets.len()
            );
        }
    }
}
