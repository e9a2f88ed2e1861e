// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The forwarding that was proposed, on a kernel that has it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use interrupt_core::forward::{DeviceIrq, EventfdId, GuestLine, Path, Registry};
use interrupt_core::testing::{ManualNotifier, RecordingProducer, RecordingSource};
use interrupt_core::{Delivery, Gsi, LevelSource, SourceKey};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::host_forward::HostForwarded;
use super::*;

const FORWARD: u64 = 1;
const UNFORWARD: u64 = 2;
const ID: EventfdId = EventfdId(1);

/// A kernel that has the proposal's attributes and writes down what it is asked. As proposed, it refuses to forward
/// what is masked or active.
#[derive(Default)]
struct FakeKernel {
    asked: Mutex<Vec<(u32, u64, Vec<u8>)>>,
    forwarded: Mutex<Vec<[u32; 4]>>,
    busy: Mutex<bool>,
}

impl Attributes for Arc<FakeKernel> {
    fn has(&self, group: u32, attr: u64) -> io::Result<()> {
        match (group, attr) {
            (2, FORWARD | UNFORWARD) => Ok(()),
            _ => Err(Errno::NXIO.into()),
        }
    }

    fn set(&self, group: u32, attr: u64, argument: &[u8]) -> io::Result<()> {
        self.asked.lock().unwrap().push((group, attr, argument.to_vec()));
        let word = |n: usize| u32::from_ne_bytes(argument[4 * n..][..4].try_into().unwrap());
        assert_eq!(word(0) as usize, argument.len(), "argsz");
        let (fd, index, start, count) = (word(1), word(2), word(3), word(4));
        let irqs = (0..count).map(|n| [fd, index, start + n, word(5 + n as usize)]);
        let mut forwarded = self.forwarded.lock().unwrap();
        match attr {
            FORWARD if *self.busy.lock().unwrap() => Err(Errno::AGAIN.into()),
            FORWARD => {
                forwarded.extend(irqs);
                Ok(())
            }
            UNFORWARD => {
                let gone: Vec<_> = irqs.collect();
                forwarded.retain(|irq| !gone.contains(irq));
                Ok(())
            }
            _ => Err(Errno::NXIO.into()),
        }
    }
}

/// A source with a trigger eventfd, as an irqfd has.
#[derive(Debug)]
struct Triggered(RecordingSource, OwnedFd);

impl LevelSource for Triggered {
    fn key(&self) -> SourceKey {
        self.0.key()
    }
    fn label(&self) -> &str {
        "triggered"
    }
    fn assert(&self) -> interrupt_core::Result<Delivery> {
        self.0.assert()
    }
    fn deassert(&self) -> interrupt_core::Result<()> {
        self.0.deassert()
    }
    fn force_deassert(&self) -> interrupt_core::Result<()> {
        self.0.force_deassert()
    }
    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

fn line() -> GuestLine {
    let trigger = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let source = Triggered(RecordingSource::new(Gsi(11)), trigger);
    GuestLine::kernel(Arc::new(source), Arc::new(ManualNotifier::default()))
}

fn vfio(kernel: &Arc<FakeKernel>) -> Arc<KvmVfio> {
    Arc::new(KvmVfio {
        attributes: Box::new(Arc::clone(kernel)),
    })
}

fn device() -> Arc<RecordingProducer> {
    let device = RecordingProducer::new("device");
    device.set_info(|info| {
        info.irq = Some(DeviceIrq {
            device: 7,
            index: 0,
            sub: 0,
        });
    });
    Arc::new(device)
}

#[test]
fn requests_are_laid_out_as_proposed() {
    let kernel = Arc::new(FakeKernel::default());
    let vfio = vfio(&kernel);
    vfio.can_forward().unwrap();
    let gsis = [Gsi(40), Gsi(0x0102_0304)];
    let request = ForwardIrq::new(9, 2, 3, &gsis);
    vfio.forward(&request).unwrap();
    vfio.unforward(&request).unwrap();
    let words = |argument: &[u8]| -> Vec<u32> {
        let words = argument.chunks(4);
        words.map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
    };
    let asked = kernel.asked.lock().unwrap();
    let seen: Vec<_> = asked
        .iter()
        .map(|(group, attr, argument)| (*group, *attr, words(argument)))
        .collect();
    // argsz, fd, index, start, count, gsi[0], gsi[1]
    let expected = vec![28, 9, 2, 3, 2, 40, 0x0102_0304];
    assert_eq!(seen, [(2, FORWARD, expected.clone()), (2, UNFORWARD, expected)]);
}

#[test]
fn what_the_kernel_would_read_beyond_is_refused() {
    let kernel = Arc::new(FakeKernel::default());
    let vfio = vfio(&kernel);
    let gsis = [Gsi(40)];
    let good = ForwardIrq::new(9, 0, 0, &gsis);
    for bad in [
        ForwardIrq { count: 2, ..good },
        ForwardIrq { argsz: 23, ..good },
        ForwardIrq { count: 0, ..good },
        ForwardIrq {
            start: u32::MAX,
            ..good
        },
    ] {
        let error = vfio.forward(&bad).unwrap_err();
        assert_eq!(error.errno(), Some(22), "{bad:?}: {error}");
    }
    assert!(kernel.asked.lock().unwrap().is_empty());
}

#[test]
fn a_registry_takes_the_host_where_it_forwards() {
    let kernel = Arc::new(FakeKernel::default());
    let registry = Registry::default();
    let consumer = Arc::new(HostForwarded::new(line(), vfio(&kernel)));
    let line = registry.add_consumer(ID, consumer).unwrap();
    let device = registry.add_producer(ID, device()).unwrap();
    assert_eq!(registry.connection(ID).unwrap().path(), Some(Path::HostForward));
    assert_eq!(*kernel.forwarded.lock().unwrap(), [[7, 0, 0, 11]]);
    // Any change of path ends it, and so does the end of either side.
    registry
        .connection(ID)
        .unwrap()
        .restrict(Some(Path::KernelLoop))
        .unwrap();
    assert!(kernel.forwarded.lock().unwrap().is_empty());
    registry.connection(ID).unwrap().restrict(None).unwrap();
    assert_eq!(kernel.forwarded.lock().unwrap().len(), 1);
    drop(device);
    assert!(kernel.forwarded.lock().unwrap().is_empty());
    drop(line);
}

#[test]
fn an_interrupt_that_is_masked_or_active_takes_the_next_path_and_the_host_later() {
    let kernel = Arc::new(FakeKernel::default());
    *kernel.busy.lock().unwrap() = true;
    let registry = Registry::default();
    let producer = device();
    let _line = registry
        .add_consumer(ID, Arc::new(HostForwarded::new(line(), vfio(&kernel))))
        .unwrap();
    let _device = registry.add_producer(ID, producer.clone()).unwrap();
    assert_eq!(registry.connection(ID).unwrap().path(), Some(Path::KernelLoop));
    assert!(!producer.is_stopped());
    let said = registry.explain()[0].to_string();
    assert!(
        said.contains("not host forward: it failed") && said.contains("os error 11"),
        "{said}"
    );
    *kernel.busy.lock().unwrap() = false;
    assert_eq!(
        registry.connection(ID).unwrap().changed().unwrap(),
        Some(Path::HostForward)
    );
}

#[test]
fn a_device_that_the_host_has_no_name_for_is_not_forwarded_by_it() {
    let kernel = Arc::new(FakeKernel::default());
    let registry = Registry::default();
    let _line = registry
        .add_consumer(ID, Arc::new(HostForwarded::new(line(), vfio(&kernel))))
        .unwrap();
    let _device = registry
        .add_producer(ID, Arc::new(RecordingProducer::new("model")))
        .unwrap();
    assert_eq!(registry.connection(ID).unwrap().path(), Some(Path::KernelLoop));
    assert!(kernel.asked.lock().unwrap().is_empty());
}
