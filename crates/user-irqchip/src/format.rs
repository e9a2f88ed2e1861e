// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saved states as serde reads and writes them: a format number, and then the state in that format.
//!
//! The reader looks at the number before the state. So a state of an unknown format is refused by its number, whatever
//! its shape, and a state of an older format is read in the shape of that format.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::StateError;

const FIELDS: [&str; 2] = ["format", "state"];

/// A saved state whose format may change.
pub(crate) trait Versioned: Sized {
    /// The oldest format that can be read.
    const OLDEST: u32;
    /// The format that is written.
    const FORMAT: u32;

    /// Reads a state of a format from `OLDEST` to `FORMAT`.
    fn read<'de, B: Body<'de>>(format: u32, body: B) -> Result<Self, B::Error>;
}

/// Reads the state, which follows the format number.
pub(crate) trait Body<'de> {
    type Error;

    fn take<T: Deserialize<'de>>(self) -> Result<T, Self::Error>;
}

struct InMap<'a, A>(&'a mut A);
struct InSequence<'a, A>(&'a mut A);

impl<'de, A: MapAccess<'de>> Body<'de> for InMap<'_, A> {
    type Error = A::Error;

    fn take<T: Deserialize<'de>>(self) -> Result<T, A::Error> {
        self.0.next_value()
    }
}

impl<'de, A: SeqAccess<'de>> Body<'de> for InSequence<'_, A> {
    type Error = A::Error;

    fn take<T: Deserialize<'de>>(self) -> Result<T, A::Error> {
        self.0.next_element()?.ok_or_else(|| A::Error::missing_field(FIELDS[1]))
    }
}

pub(crate) fn write<S: Serializer>(format: u32, state: &impl Serialize, serializer: S) -> Result<S::Ok, S::Error> {
    let mut fields = serializer.serialize_struct("State", FIELDS.len())?;
    fields.serialize_field(FIELDS[0], &format)?;
    fields.serialize_field(FIELDS[1], state)?;
    fields.end()
}

pub(crate) fn read<'de, T: Versioned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_struct("State", &FIELDS, StateVisitor(PhantomData))
}

struct StateVisitor<T>(PhantomData<T>);

impl<T: Versioned> StateVisitor<T> {
    fn state<'de, B: Body<'de>>(format: u32, body: B) -> Result<T, B::Error>
    where
        B::Error: serde::de::Error,
    {
        if !(T::OLDEST..=T::FORMAT).contains(&format) {
            return Err(B::Error::custom(StateError::Format {
                found: format,
                oldest: T::OLDEST,
                newest: T::FORMAT,
            }));
        }
        T::read(format, body)
    }
}

impl<'de, T: Versioned> Visitor<'de> for StateVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a format, and the state in that format")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let expect = |map: &mut A, field: &'static str| match map.next_key::<String>()? {
            Some(key) if key == field => Ok(()),
            Some(key) => Err(A::Error::custom(format_args!("`{key}` where `{field}` has to be"))),
            None => Err(A::Error::missing_field(field)),
        };
        expect(&mut map, FIELDS[0])?;
        let format = map.next_value()?;
        expect(&mut map, FIELDS[1])?;
        let state = Self::state(format, InMap(&mut map))?;
        match map.next_key::<String>()? {
            None => Ok(state),
            Some(key) => Err(A::Error::unknown_field(&key, &FIELDS)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<T, A::Error> {
        let format = sequence.next_element()?;
        let format = format.ok_or_else(|| A::Error::missing_field(FIELDS[0]))?;
        Self::state(format, InSequence(&mut sequence))
    }
}
