// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lookup table: from a store to the registration that it matches.
//!
//! A hash table by address for each space, because nearly every address carries one registration. The registrations of
//! one address are one sorted [`Bucket`], which finds the match of a store and the collision of a new registration by
//! binary search: 12 comparisons among 4,096 datamatches, where KVM compares one by one.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::{Entry as Place, RandomState};
use std::hash::{BuildHasher, Hasher};

use crate::error::Error;
use crate::event::Event;
use crate::matching::{Match, Space, Written};

/// One registration: the stores that match, and the eventfd that they signal.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Match,
    pub(crate) event: Event,
}

/// One step of a change to the table. Each step is the other's inverse.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Insert(Entry),
    Remove(Entry),
}

/// All registrations. No two of them collide.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// By [`Space`], then by address.
    buckets: [HashMap<u64, Bucket, AddressHash>; 2],
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            buckets: [AddressHash::new(); 2].map(HashMap::with_hasher),
        }
    }

    /// The registration that a store of `data` to `address` matches.
    #[inline]
    pub(crate) fn find(&self, space: Space, address: u64, data: &[u8]) -> Option<&Entry> {
        self.buckets[space as usize].get(&address)?.find(data)
    }

    /// All registrations, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets
            .iter()
            .flat_map(HashMap::values)
            .flat_map(|bucket| &bucket.0)
    }

    /// How many registrations share the address of `at`.
    pub(crate) fn sharing(&self, at: &Match) -> usize {
        self.buckets[at.space as usize]
            .get(&at.address)
            .map_or(0, |bucket| bucket.0.len())
    }

    /// Makes one step.
    ///
    /// # Errors
    /// [`Error::Collision`] for an insertion, which is not made then. A removal does not fail.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), Error> {
        match change {
            Change::Insert(entry) => self.insert(entry),
            Change::Remove(entry) => {
                self.remove(&entry.at);
                Ok(())
            }
        }
    }

    /// Takes back a step that [`Table::apply`] made.
    pub(crate) fn undo(&mut self, change: &Change) {
        match change {
            Change::Insert(entry) => self.remove(&entry.at),
            // The place was free after the removal, so this cannot collide.
            Change::Remove(entry) => drop(self.insert(entry)),
        }
    }

    fn insert(&mut self, entry: &Entry) -> Result<(), Error> {
        let at = entry.at;
        // A new bucket is never empty: nothing collides with the first entry.
        self.buckets[at.space as usize]
            .entry(at.address)
            .or_default()
            .insert(entry)
            .map_err(|with| Error::Collision { at, with })
    }

    fn remove(&mut self, at: &Match) {
        if let Place::Occupied(mut bucket) = self.buckets[at.space as usize].entry(at.address) {
            bucket.get_mut().0.retain(|entry| entry.at != *at);
            if bucket.get().0.is_empty() {
                bucket.remove();
            }
        }
    }
}

/// The registrations of one address, sorted by length and then by datamatch, no datamatch first.
#[derive(Clone, Debug, Default)]
struct Bucket(Vec<Entry>);

impl Bucket {
    #[inline]
    fn find(&self, data: &[u8]) -> Option<&Entry> {
        if let [lone] = &self.0[..] {
            return Some(lone).filter(|entry| entry.at.matches_bytes(data));
        }
        // A registration of any value sorts before all values of its length, and is the only one of its length. So the
        // last entry up to the value is the only one that can match. One of any length would be alone.
        let written = Written::new(data)?;
        let end = self
            .0
            .partition_point(|Entry { at, .. }| match at.length.cmp(&written.length) {
                Ordering::Equal => at.datamatch.is_none_or(|value| value <= written.value),
                other => other.is_lt(),
            });
        self.0[..end].last().filter(|entry| entry.at.matches_bytes(data))
    }

    /// # Errors
    /// The registration that collides with `new`.
    fn insert(&mut self, new: &Entry) -> Result<(), Match> {
        let place = self.0.partition_point(|entry| entry.at < new.at);
        // As in `find`, and the other way round: whatever collides is a neighbour of the place.
        let mut neighbours = self.0[place.saturating_sub(1)..].iter().take(2);
        if let Some(other) = neighbours.find(|other| other.at.collides(&new.at)) {
            return Err(other.at);
        }
        self.0.insert(place, new.clone());
        Ok(())
    }
}

/// Hashes an address by a folded multiplication. The seed is random, because the guest chooses where its BARs lie and
/// could otherwise choose addresses that meet in one slot of the hash table.
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
        // The low half does not see the high bits of the address, nor the high half the low bits: take both.
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        // The trait asks for this method; `u64` keys are hashed through `write_u64`.
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
    use crate::matching::Length;
    use proptest::prelude::*;
    use std::collections::HashSet;
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

        /// After any steps, some taken back, the table finds what a walk over all registrations finds, and refuses what
        /// collides with one of them.
        #[test]
        fn the_table_agrees_with_a_walk(
            steps in prop::collection::vec((any_match(), any::<bool>(), any::<bool>()), 1..60),
        ) {
            let event = event();
            let mut table = Table::new();
            let mut registered = HashSet::new();
            for (at, insert, keep) in steps {
                let entry = Entry { at, event: event.clone() };
                if insert {
                    let collides = |other: &&Match| other.collides(&at);
                    let with: Vec<_> = registered.iter().filter(collides).copied().collect();
                    let step = Change::Insert(entry);
                    match table.apply(&step) {
                        Ok(()) => {
                            prop_assert_eq!(with, []);
                            if keep { registered.insert(at); } else { table.undo(&step); }
                        }
                        Err(Error::Collision { with: found, .. }) => prop_assert!(with.contains(&found)),
                        Err(other) => panic!("{other}"),
                    }
                } else if registered.contains(&at) {
                    let step = Change::Remove(entry);
                    table.apply(&step).unwrap();
                    if keep { registered.remove(&at); } else { table.undo(&step); }
                }
            }
            prop_assert_eq!(&table.entries().map(|entry| entry.at).collect::<HashSet<_>>(), &registered);
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
                            let found = table.find(space, address, data).map(|entry| entry.at);
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
        let entries = [0, 1, 2].map(|value| Entry {
            at: Match::mmio(0x1000, Length::Bytes4).with_datamatch(value),
            event: event(),
        });
        for entry in &entries {
            table.apply(&Change::Insert(entry.clone())).unwrap();
        }
        for (entry, left) in entries.iter().zip([3, 2, 1]) {
            assert_eq!(
                (table.sharing(&entry.at), table.buckets[Space::Mmio as usize].len()),
                (left, 1)
            );
            table.apply(&Change::Remove(entry.clone())).unwrap();
        }
        assert_eq!(table.buckets[Space::Mmio as usize].len(), 0);
    }

    #[test]
    fn strided_addresses_spread() {
        // Doorbell pages: a plain multiplication without folding fails on keys whose low bits are all zero.
        let hash = AddressHash::new();
        for stride in [1u64, 4, 4096, 1 << 21, 1 << 40] {
            let slots: HashSet<u64> = (0..1024).map(|n| hash.hash_one(n * stride) & 0x3fff).collect();
            assert!(
                slots.len() > 800,
                "stride {stride:#x}: {} slots of 1024 addresses",
                slots.len()
            );
        }
    }
}
