// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ioeventfds that work with and without the kernel: a guest store that matches a registration signals its eventfd,
//! whether or not the kernel takes part.
//!
//! KVM can turn a guest store into a signal on an eventfd without an exit to the VMM, but it may refuse to, and it
//! accepts some registrations that can never fire. An [`IoeventBus`] keeps one table of registrations and drives both
//! sides from it: it registers with the kernel what the kernel takes, and serves the rest from the exit path, by the
//! same matching rules. A device registers and gets a [`Registration`]. The device need not know which path serves its
//! registration, and can ask ([`Registration::path`]).
//!
//! | file | concept |
//! |---|---|
//! | `matching` | which store matches, which registrations collide, which could not work: [`Match`], [`Rejection`] |
//! | `reserved` | where a registration does harm: [`ReservedRange`] |
//! | `backend`, `kvm` | what takes a store before it exits: [`Backend`], `Kvm`, [`NoBackend`], [`Refusal`] |
//! | `event` | the eventfd: [`eventfd_from_owned`] |
//! | `table`, `published` | the lookup, and how it changes under reading vCPUs |
//! | `ledger` | the owner of what is registered; who serves it: [`Path`] |
//! | `registration` | the guard: [`Registration`] |
//! | `bus` | registering, relocating, dispatching: [`IoeventBus`] |
//! | `doorbell_overlay` | the fallback on a vm-device bus: [`DoorbellOverlay`] |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod bus;
mod doorbell_overlay;
mod error;
mod event;
#[cfg(feature = "kvm")]
mod kvm;
mod ledger;
mod matching;
mod published;
mod registration;
mod reserved;
mod table;

/// The README's examples are compiled and run with the documentation's.
#[cfg(all(doctest, feature = "kvm"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use backend::{Backend, NoBackend, Refusal};
pub use bus::IoeventBus;
pub use doorbell_overlay::{DoorbellOverlay, UnassignedRange};
pub use error::Error;
pub use event::eventfd_from_owned;
#[cfg(feature = "kvm")]
pub use kvm::Kvm;
pub use ledger::Path;
pub use matching::{Length, Match, Rejection, Space};
pub use registration::Registration;
pub use reserved::{Owner, ReservedRange};
