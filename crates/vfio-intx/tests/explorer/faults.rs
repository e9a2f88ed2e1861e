// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device, a line's source and its notifier whose every request can be made to fail.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use interrupt_core::forward::{Consumer, ConsumerInfo, DeviceInterrupt, GuestLine, InterruptInfo, Path, Producer};
use interrupt_core::{Delivery, EoiGuard, EoiNotifier, EoiScope, Error, LevelSource, Listener, Result, SourceKey};
use vfio_intx::ModelIntx;

const ENOMEM: i32 = 12;

/// Which request fails: `skip` further ones do not, then `times` do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub skip: usize,
    pub times: usize,
}

/// Counts the requests of an operation, and fails those that a [`Fault`] names.
#[derive(Debug, Default)]
pub struct Faults {
    seen: AtomicUsize,
    armed: Mutex<Option<Fault>>,
    failed: Mutex<Vec<&'static str>>,
}

impl Faults {
    /// Starts counting anew.
    pub fn arm(&self, fault: Option<Fault>) {
        self.seen.store(0, Ordering::Relaxed);
        *self.armed.lock().unwrap() = fault;
    }

    /// Nothing fails any more.
    pub fn disarm(&self) {
        *self.armed.lock().unwrap() = None;
    }

    /// How many requests there were since.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// The requests that have failed so far.
    pub fn failed(&self) -> Vec<&'static str> {
        self.failed.lock().unwrap().clone()
    }

    /// Something has failed that is no request.
    pub fn note(&self, name: &'static str) {
        self.failed.lock().unwrap().push(name);
    }

    pub fn any(&self) -> bool {
        !self.failed.lock().unwrap().is_empty()
    }

    pub fn request(&self, name: &'static str) -> io::Result<()> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        match &mut *self.armed.lock().unwrap() {
            Some(Fault { skip: 0, times: 0 }) | None => return Ok(()),
            Some(Fault { skip: 0, times }) => *times -= 1,
            Some(Fault { skip, .. }) => {
                *skip -= 1;
                return Ok(());
            }
        }
        self.failed.lock().unwrap().push(name);
        Err(io::Error::from_raw_os_error(ENOMEM))
    }
}

/// A device that may refuse.
#[derive(Debug)]
pub struct FaultyDevice {
    pub model: Arc<ModelIntx>,
    pub faults: Arc<Faults>,
}

impl FaultyDevice {
    fn request(&self, name: &'static str) -> Result<()> {
        self.faults.request(name).map_err(|source| Error::Device {
            operation: name,
            device: self.model.label().to_owned(),
            source,
        })
    }
}

impl DeviceInterrupt for FaultyDevice {
    fn label(&self) -> &str {
        self.model.label()
    }

    fn info(&self) -> Result<InterruptInfo> {
        self.model.info()
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let name = if fd.is_some() { "set the trigger" } else { "disable" };
        self.request(name).and_then(|()| self.model.set_trigger(fd))
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let name = if fd.is_some() {
            "set the unmask eventfd"
        } else {
            "clear the unmask eventfd"
        };
        self.request(name).and_then(|()| self.model.set_unmask(fd))
    }

    fn mask(&self) -> Result<()> {
        self.request("mask").and_then(|()| self.model.mask())
    }

    fn unmask(&self) -> Result<()> {
        self.request("unmask").and_then(|()| self.model.unmask())
    }
}

/// A source that may refuse.
pub struct FaultySource<S> {
    pub source: S,
    pub faults: Arc<Faults>,
}

impl<S: LevelSource> FaultySource<S> {
    fn request(&self, name: &'static str) -> Result<()> {
        self.faults.request(name).map_err(|source| Error::Os {
            operation: name,
            gsi: self.source.gsi(),
            source,
        })
    }
}

impl<S: LevelSource> LevelSource for FaultySource<S> {
    fn key(&self) -> SourceKey {
        self.source.key()
    }

    fn label(&self) -> &str {
        self.source.label()
    }

    fn assert(&self) -> Result<Delivery> {
        self.request("assert").and_then(|()| self.source.assert())
    }

    fn deassert(&self) -> Result<()> {
        self.request("deassert").and_then(|()| self.source.deassert())
    }

    fn force_deassert(&self) -> Result<()> {
        self.request("force_deassert")
            .and_then(|()| self.source.force_deassert())
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        self.source.trigger()
    }
}

impl<S: LevelSource> fmt::Debug for FaultySource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// A notifier that may refuse.
#[derive(Debug)]
pub struct FaultyNotifier {
    pub notifier: Arc<dyn EoiNotifier>,
    pub faults: Arc<Faults>,
}

impl EoiNotifier for FaultyNotifier {
    fn subscribe(&self, scope: EoiScope, listener: Listener) -> Result<EoiGuard> {
        let refused = self.faults.request("subscribe").map_err(|source| Error::Os {
            operation: "subscribe",
            gsi: scope.gsi(),
            source,
        });
        refused.and_then(|()| self.notifier.subscribe(scope, listener))
    }
}

/// A guest's line that may refuse to be stopped, connected and started.
#[derive(Debug)]
pub struct FaultyLine {
    pub line: GuestLine,
    pub faults: Arc<Faults>,
}

impl FaultyLine {
    fn request(&self, name: &'static str) -> Result<()> {
        self.faults.request(name).map_err(|source| Error::Os {
            operation: name,
            gsi: self.line.gsi(),
            source,
        })
    }
}

impl Consumer for FaultyLine {
    fn line(&self) -> &GuestLine {
        &self.line
    }

    fn info(&self) -> ConsumerInfo {
        self.line.info()
    }

    fn stop(&self) -> Result<()> {
        self.request("stop the line").and_then(|()| self.line.stop())
    }

    fn connect(&self, path: Path, producer: &dyn Producer) -> Result<()> {
        self.request("connect the line")
            .and_then(|()| self.line.connect(path, producer))
    }

    fn disconnect(&self, path: Path) {
        self.line.disconnect(path);
    }

    fn start(&self) -> Result<()> {
        self.request("start the line").and_then(|()| self.line.start())
    }
}
