// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ioeventfds with a promise: a guest store that matches a registration signals its eventfd, whether or not the kernel
//! takes part.
//!
//! KVM can turn a guest store into a signal on an eventfd without an exit to the VMM, but it may refuse to, and it
//! accepts some registrations that can never fire. An [`IoeventBus`] keeps one table of registrations and drives both
//! sides from it: it registers with the kernel what the kernel takes, and serves the rest from the exit path, by the same
//! matching rules. A device registers and gets a [`Registration`]; it needs to know nothing of the two paths, and can
//! ask for the one it is on ([`Registration::path`]).
//!
//! | file | concept |
//! |---|---|
//! | `matching` | which store matches, and which registrations collide: [`Match`], [`Space`], [`Length`] |
//! | `bus` | registering, relocating, dispatching: [`IoeventBus`] |
//! | `registration` | the guard: [`Registration`], [`Path`] |
//! | `backend`, `kvm` | who takes a store before it exits: [`Backend`], `Kvm`, [`NoBackend`], [`Refusal`] |
//! | `table`, `published` | the lookup, and how it changes under reading vCPUs |
//! | `front_end` | the fallback on a vm-device bus: [`FrontEnd`] |
//! | `window` | where a registration does harm: [`Window`] |
//! | `event` | the eventfd: [`adopt`] |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod bus;
mod error;
mod event;
mod front_end;
#[cfg(feature = "kvm")]
mod kvm;
mod matching;
mod published;
mod registration;
mod table;
mod window;

/// The README's examples are compiled and run with the documentation's.
#[cfg(all(doctest, feature = "kvm"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use backend::{Backend, NoBackend, Refusal};
pub use bus::IoeventBus;
pub use error::{Error, NotAnEventFd, Rejection};
pub use event::adopt;
pub use front_end::{FrontEnd, Unclaimed};
#[cfg(feature = "kvm")]
pub use kvm::Kvm;
pub use matching::{InvalidLength, Length, Match, Space};
pub use registration::{Path, Registration};
pub use window::{Owner, Window};
