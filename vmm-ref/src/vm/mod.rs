// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of both guests' machines: a VM, its interrupt controllers, the threads of its processors, and its end.

pub mod cpu_thread;
pub mod ending;
pub mod exits;
pub mod inject;
pub mod irqchip;
pub mod kvm;
pub mod port;
pub mod stall;
pub mod wake;
