// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backends that do what a test tells them.

use std::sync::{Arc, Mutex};

use ioevent::{Backend, Length, Match, Refusal};
use rustix::io::Errno as Code;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

pub fn errno(code: Code) -> Errno {
    Errno::new(code.raw_os_error())
}

/// What a backend was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Assign(Match),
    Deassign(Match),
}

/// A backend without a kernel that keeps KVM's books: `EEXIST` for a collision, `ENOENT` for a stranger.
#[derive(Clone, Debug, Default)]
pub struct Books(Arc<Mutex<Vec<Match>>>);

impl Books {
    pub fn held(&self) -> Vec<Match> {
        self.0.lock().unwrap().clone()
    }

    /// Drops a registration as if somebody else had removed it.
    pub fn lose(&self, at: &Match) {
        self.0.lock().unwrap().retain(|other| other != at);
    }
}

/// KVM's rule, written down a second time.
pub fn kvm_collides(a: &Match, b: &Match) -> bool {
    a.space == b.space
        && a.address == b.address
        && (a.length == Length::Any
            || b.length == Length::Any
            || (a.length == b.length && (a.datamatch.is_none() || b.datamatch.is_none() || a.datamatch == b.datamatch)))
}

impl Backend for Books {
    fn assign(&self, at: &Match, _event: &EventFd) -> Result<(), Refusal> {
        let mut held = self.0.lock().unwrap();
        if held.iter().any(|other| kvm_collides(other, at)) {
            return Err(Refusal::Kernel(errno(Code::EXIST)));
        }
        held.push(*at);
        Ok(())
    }

    fn deassign(&self, at: &Match, _event: &EventFd) -> Result<(), Errno> {
        let mut held = self.0.lock().unwrap();
        let position = held.iter().position(|other| other == at).ok_or(errno(Code::NOENT))?;
        held.remove(position);
        Ok(())
    }
}

type Fault = dyn FnMut(Call) -> Option<Code> + Send;

/// A backend that fails when the test says so, and records what it was asked. A failed call does not reach the backend
/// behind it.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Backend>,
    calls: Arc<Mutex<Vec<Call>>>,
    fault: Arc<Mutex<Box<Fault>>>,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Faulty {
    pub fn new(inner: impl Backend + 'static, fault: impl FnMut(Call) -> Option<Code> + Send + 'static) -> Self {
        Self {
            inner: Arc::new(inner),
            calls: Arc::default(),
            fault: Arc::new(Mutex::new(Box::new(fault))),
        }
    }

    /// Refuses every second assignment, beginning with the first.
    pub fn half(inner: impl Backend + 'static) -> Self {
        let mut refuse = false;
        Self::new(inner, move |call| {
            if let Call::Assign(_) = call {
                refuse = !refuse;
            }
            (matches!(call, Call::Assign(_)) && refuse).then_some(Code::NOSPC)
        })
    }

    pub fn set_fault(&self, fault: impl FnMut(Call) -> Option<Code> + Send + 'static) {
        *self.fault.lock().unwrap() = Box::new(fault);
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn fails(&self, call: Call) -> Option<Errno> {
        self.calls.lock().unwrap().push(call);
        (self.fault.lock().unwrap())(call).map(errno)
    }
}

impl Backend for Faulty {
    fn assign(&self, at: &Match, event: &EventFd) -> Result<(), Refusal> {
        match self.fails(Call::Assign(*at)) {
            Some(errno) => Err(Refusal::Kernel(errno)),
            None => self.inner.assign(at, event),
        }
    }

    fn deassign(&self, at: &Match, event: &EventFd) -> Result<(), Errno> {
        match self.fails(Call::Deassign(*at)) {
            Some(errno) => Err(errno),
            None => self.inner.deassign(at, event),
        }
    }
}
