// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model checks: every interleaving of a few threads. They are a module of the library, by `crate::`: the name
//! `interrupt_core` is the dev-dependency, which is built without the model checker.

mod races;
mod sharing;
