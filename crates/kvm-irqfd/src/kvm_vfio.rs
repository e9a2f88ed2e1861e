// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The KVM-VFIO device: what KVM is told of VFIO, and the forwarding of interrupts by the host that was proposed for it in 2015.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{Consumer, ConsumerInfo, DeviceIrq, ForwardIrq, Path, Producer};
use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use rustix::io::Errno;

use crate::{Error, Result};

/// The numbers of the proposal ("KVM-VFIO IRQ forward control", v4 of 2015). No released kernel has them.
mod proposed {
    /// Group: a VFIO device.
    pub(super) const KVM_DEV_VFIO_DEVICE: u32 = 2;
    pub(super) const FORWARD_IRQ: u64 = 1;
    pub(super) const UNFORWARD_IRQ: u64 = 2;
}

/// What is asked of a KVM device: the boundary to the kernel.
trait Attributes: Send + Sync {
    /// KVM_HAS_DEVICE_ATTR.
    fn has(&self, group: u32, attr: u64) -> io::Result<()>;
    /// KVM_SET_DEVICE_ATTR, with the address of `argument`. The kernel reads as much of it as the attribute says, which is not
    /// more than there is.
    fn set(&self, group: u32, attr: u64, argument: &[u8]) -> io::Result<()>;
}

impl Attributes for DeviceFd {
    fn has(&self, group: u32, attr: u64) -> io::Result<()> {
        let request = kvm_device_attr {
            group,
            attr,
            ..Default::default()
        };
        Ok(self.has_device_attr(&request)?)
    }

    fn set(&self, group: u32, attr: u64, argument: &[u8]) -> io::Result<()> {
        let request = kvm_device_attr {
            group,
            attr,
            addr: argument.as_ptr() as u64,
            flags: 0,
        };
        Ok(self.set_device_attr(&request)?)
    }
}

/// A VM's KVM-VFIO device. There is one for each VM, and a VMM that has one already gives that.
pub struct KvmVfio {
    attributes: Box<dyn Attributes>,
}

impl KvmVfio {
    /// Creates the VM's device.
    ///
    /// # Errors
    /// [`Error::Vm`]: EBUSY when the VM has one, ENODEV when the kernel is built without (CONFIG_KVM_VFIO).
    pub fn new(vm: &VmFd) -> Result<Self> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            // Not KVM_CREATE_DEVICE_TEST: the kernel then returns no fd, and kvm-ioctls 0.25 takes the 0 that stands there for one,
            // which it closes when it is dropped.
            flags: 0,
        };
        let device = vm
            .create_device(&mut device)
            .map_err(|error| Error::vm("KVM_CREATE_DEVICE(KVM_DEV_TYPE_VFIO)", error))?;
        Ok(device.into())
    }

    /// Tells KVM of a VFIO group, or of a VFIO device that was opened by its own file (Linux 6.6): it keeps a reference.
    ///
    /// # Errors
    /// [`Error::Vm`]: EINVAL for a file that is neither, EEXIST for one that it has been told of.
    pub fn add_file(&self, file: impl AsFd) -> Result<()> {
        const OPERATION: &str = "KVM_DEV_VFIO_FILE_ADD";
        self.file(OPERATION, KVM_DEV_VFIO_FILE_ADD, file)
    }

    /// Ends [`add_file`](Self::add_file).
    ///
    /// # Errors
    /// [`Error::Vm`]: ENOENT for a file that it has not been told of.
    pub fn remove_file(&self, file: impl AsFd) -> Result<()> {
        const OPERATION: &str = "KVM_DEV_VFIO_FILE_DEL";
        self.file(OPERATION, KVM_DEV_VFIO_FILE_DEL, file)
    }

    fn file(&self, operation: &'static str, attr: u32, file: impl AsFd) -> Result<()> {
        let fd = file.as_fd().as_raw_fd().to_ne_bytes();
        self.attributes
            .set(KVM_DEV_VFIO_FILE, attr.into(), &fd)
            .map_err(|source| Error::Vm { operation, source })
    }

    /// Whether the kernel forwards interrupts, by KVM_HAS_DEVICE_ATTR.
    ///
    /// # Errors
    /// [`Error::Vm`] with ENXIO: it does not. No kernel to date does.
    pub fn can_forward(&self) -> Result<()> {
        use proposed::{FORWARD_IRQ, KVM_DEV_VFIO_DEVICE, UNFORWARD_IRQ};
        [FORWARD_IRQ, UNFORWARD_IRQ]
            .into_iter()
            .try_for_each(|attr| self.attributes.has(KVM_DEV_VFIO_DEVICE, attr))
            .map_err(|source| Error::Vm {
                operation: "KVM_HAS_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_FORWARD_IRQ)",
                source,
            })
    }

    /// KVM_DEV_VFIO_DEVICE_FORWARD_IRQ: the host's controller hands these interrupts to the guest's lines, and the guest's EOI ends
    /// them there.
    ///
    /// # Errors
    /// [`Error::Request`] for a malformed request. [`Error::Vm`]: ENXIO when the kernel has no such thing, EAGAIN when one of the
    /// interrupts is masked or active, EBADF when the file is no VFIO device's.
    pub fn forward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        const OPERATION: &str = "KVM_SET_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_FORWARD_IRQ)";
        self.device(OPERATION, proposed::FORWARD_IRQ, request)
    }

    /// KVM_DEV_VFIO_DEVICE_UNFORWARD_IRQ. It works at any time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but for EAGAIN.
    pub fn unforward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        const OPERATION: &str = "KVM_SET_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_UNFORWARD_IRQ)";
        self.device(OPERATION, proposed::UNFORWARD_IRQ, request)
    }

    fn device(&self, operation: &'static str, attr: u64, request: &ForwardIrq<'_>) -> Result<()> {
        let argument = encode(request).map_err(|source| Error::Request { operation, source })?;
        self.attributes
            .set(proposed::KVM_DEV_VFIO_DEVICE, attr, &argument)
            .map_err(|source| Error::Vm { operation, source })
    }
}

/// Takes over a device that the VMM has made.
impl From<DeviceFd> for KvmVfio {
    fn from(device: DeviceFd) -> Self {
        Self {
            attributes: Box::new(device),
        }
    }
}

impl fmt::Debug for KvmVfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KVM-VFIO device")
    }
}

/// The request as the proposal lays it out: `__u32 argsz, fd, index, start, count; __u32 gsi[]`. The kernel would read `count` GSIs, so
/// that a request without as many is refused here.
fn encode(request: &ForwardIrq<'_>) -> interrupt_core::forward::Result<Vec<u8>> {
    request.irqs().map(drop)?;
    let header = [
        request.argsz,
        // A file descriptor is never negative, and is the same number with or without a sign.
        request.device as u32,
        request.index,
        request.start,
        request.count,
    ];
    let words = header.into_iter().chain(request.gsis.iter().map(|gsi| gsi.0));
    Ok(words.flat_map(u32::to_ne_bytes).collect())
}

/// A line of a guest that the host may be able to forward to. As any [`GuestLine`] in everything else.
#[derive(Debug)]
pub struct HostForwarded {
    line: GuestLine,
    vfio: Arc<KvmVfio>,
    possible: std::result::Result<(), Arc<str>>,
    forwarded: Mutex<Option<DeviceIrq>>,
}

impl HostForwarded {
    /// The kernel is asked once, now, whether it forwards.
    pub fn new(line: GuestLine, vfio: Arc<KvmVfio>) -> Self {
        let possible = vfio.can_forward().map_err(|error| match error.errno() {
            Some(errno) if errno == Errno::NXIO.raw_os_error() => {
                "this kernel has no KVM_DEV_VFIO_DEVICE_FORWARD_IRQ (ENXIO)".into()
            }
            _ => error.to_string().into(),
        });
        Self {
            line,
            vfio,
            possible,
            forwarded: Mutex::new(None),
        }
    }

    fn forwarded(&self) -> std::sync::MutexGuard<'_, Option<DeviceIrq>> {
        // What is under it is one value, which is whole.
        self.forwarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Consumer for HostForwarded {
    fn line(&self) -> &GuestLine {
        &self.line
    }

    fn info(&self) -> ConsumerInfo {
        ConsumerInfo {
            host_forward: self.possible.clone(),
            ..self.line.info()
        }
    }

    fn stop(&self) -> interrupt_core::Result<()> {
        self.line.stop()
    }

    fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
        const OPERATION: &str = "forward";
        if path != Path::HostForward {
            return self.line.connect(path, producer);
        }
        let gsi = self.line.gsi();
        let Some(irq) = producer.info().irq else {
            let error = Error::vm(OPERATION, Errno::BADF);
            return Err(error.into_core(OPERATION, gsi));
        };
        let forwarded = self
            .vfio
            .forward(&ForwardIrq::new(irq.device, irq.index, irq.sub, &[gsi]));
        forwarded.map_err(|error| error.into_core(OPERATION, gsi))?;
        *self.forwarded() = Some(irq);
        Ok(())
    }

    fn disconnect(&self, path: Path) {
        if path != Path::HostForward {
            return self.line.disconnect(path);
        }
        if let Some(irq) = self.forwarded().take() {
            let gsi = [self.line.gsi()];
            let request = ForwardIrq::new(irq.device, irq.index, irq.sub, &gsi);
            // It works at any time; if it does not, the kernel ends it with the device's file.
            let _ = self.vfio.unforward(&request);
        }
    }

    fn start(&self) -> interrupt_core::Result<()> {
        self.line.start()
    }
}

#[cfg(test)]
mod tests {
    use interrupt_core::forward::{EventfdId, Registry};
    use interrupt_core::testing::{ManualNotifier, RecordingProducer, RecordingSource};
    use interrupt_core::{Delivery, Gsi, LevelSource, SourceKey};
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::{BorrowedFd, OwnedFd};

    use super::*;

    const FORWARD: u64 = 1;
    const UNFORWARD: u64 = 2;
    const ID: EventfdId = EventfdId(1);

    /// A kernel that has the proposal's attributes and writes down what it is asked. As proposed, it refuses to forward what is masked
    /// or active.
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
}
