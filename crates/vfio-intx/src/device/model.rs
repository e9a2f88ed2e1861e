// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device with an INTx that needs no hardware: the VFIO side as the kernel's `vfio-pci` behaves (Linux 6.9 and later,
//! `drivers/vfio/pci/vfio_pci_intrs.c`, `drivers/vfio/vfio_main.c`), and a device side of three registers.
//!
//! The model has no thread. So a test calls [`ModelIntx::poll_unmask`] or [`ModelIntx::wait_unmask`] in place of the
//! kernel, which watches the unmask eventfd. Every other effect happens within the call that causes it.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Error, Result};

use super::irq_set::{Data, INTX, IrqInfo, IrqSet, MSI, flags};
use crate::eventfd;

const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

/// The number of `vfio-pci`'s interrupt indices: INTx, MSI, MSI-X, error, request.
const INDICES: u32 = 5;
/// The number of requests that [`ModelIntx::recent_requests`] remembers.
const REMEMBERED: usize = 32;

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A device whose INTx line is high while its status register is not 0, and its VFIO interrupt interface.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::forward::DeviceInterrupt;
/// use rustix::event::{EventfdFlags, eventfd};
/// use std::os::fd::AsFd;
/// use vfio_intx::ModelIntx;
///
/// let device = ModelIntx::new("model");
/// let trigger = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
/// device.set_trigger(Some(trigger.as_fd()))?;
/// device.raise(1);
/// assert!(device.is_masked(), "it masks itself when it signals");
/// device.unmask()?;
/// assert_eq!(device.signals(), 2, "its line is still high");
/// device.acknowledge(1);
/// device.unmask()?;
/// assert!(!device.is_masked());
/// # Ok::<(), interrupt_core::Error>(())
/// ```
pub struct ModelIntx {
    label: String,
    info: IrqInfo,
    state: Mutex<State>,
}

struct State {
    /// The device's status register. The device's line is high while the register is not 0.
    status: u32,
    /// Interrupt Disable in the command register; the kernel's `virq_disabled`.
    disintx: bool,
    mode: Mode,
    gone: bool,
    refusal: Refusal,
    refused: usize,
    requests: VecDeque<&'static str>,
    signals: u64,
    msi_signals: u64,
}

enum Mode {
    /// The kernel's `VFIO_PCI_NUM_IRQS`: no interrupt is set up.
    None,
    Intx(Intx),
    Msi(Option<OwnedFd>),
}

struct Intx {
    trigger: Option<OwnedFd>,
    unmask: Option<OwnedFd>,
    masked: bool,
}

#[derive(Default)]
struct Refusal {
    skip: usize,
    times: usize,
    errno: i32,
}

impl ModelIntx {
    /// A device as `vfio-pci` shows one: EVENTFD, MASKABLE and AUTOMASKED, one interrupt.
    pub fn new(label: impl Into<String>) -> Self {
        let flags = flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED;
        Self::with_info(label, IrqInfo { flags, count: 1 })
    }

    /// A device as libvfio-user shows one: EVENTFD alone. Each [`raise`](Self::raise) is one signal; mask, unmask and
    /// the unmask eventfd are accepted and do nothing.
    pub fn pulse(label: impl Into<String>) -> Self {
        let flags = flags::INFO_EVENTFD;
        Self::with_info(label, IrqInfo { flags, count: 1 })
    }

    /// A device that answers `VFIO_DEVICE_GET_IRQ_INFO` with `info`.
    pub fn with_info(label: impl Into<String>, info: IrqInfo) -> Self {
        Self {
            label: label.into(),
            info,
            state: Mutex::new(State {
                status: 0,
                disintx: false,
                mode: Mode::None,
                gone: false,
                refusal: Refusal::default(),
                refused: 0,
                requests: VecDeque::with_capacity(REMEMBERED),
                signals: 0,
                msi_signals: 0,
            }),
        }
    }

    // ---- the device side ----

    /// Sets bits of the status register. With MSI enabled each call is one message.
    pub fn raise(&self, bits: u32) {
        let mut state = self.state();
        state.status |= bits;
        if let Mode::Msi(vector) = &state.mode {
            let told = vector.as_ref().is_some_and(|fd| eventfd::signal(fd).is_ok());
            state.msi_signals += u64::from(told);
        } else if self.automasked() {
            state.evaluate();
        } else {
            state.signal();
        }
    }

    /// Clears bits of the status register, as the guest's handler does.
    pub fn acknowledge(&self, bits: u32) {
        self.state().status &= !bits;
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.state().status
    }

    /// The guest's write of Interrupt Disable in the command register.
    pub fn set_disintx(&self, disable: bool) {
        let mut state = self.state();
        let was = std::mem::replace(&mut state.disintx, disable);
        match (was, disable) {
            (false, true) => state.mask(),
            (true, false) => state.unmask(),
            _ => {}
        }
    }

    /// `VFIO_DEVICE_RESET`: the status is 0 afterwards. `vfio-pci` saves and restores the command register, so
    /// Interrupt Disable keeps its value, and the interrupt stays set up.
    pub fn reset(&self) {
        self.state().status = 0;
    }

    /// Removes the device, as at a surprise removal: every later request gets ENODEV.
    pub fn vanish(&self) {
        let mut state = self.state();
        state.gone = true;
        state.mode = Mode::None;
    }

    // ---- the kernel's part ----

    /// Reads the unmask eventfd once, as the kernel does after a write: drains the eventfd and unmasks INTx. Returns
    /// whether the eventfd was signalled.
    pub fn poll_unmask(&self) -> bool {
        self.state().poll_unmask()
    }

    /// Waits for the unmask eventfd for at most `timeout`, and then calls [`poll_unmask`](Self::poll_unmask). Without
    /// an unmask eventfd the call returns false at once.
    ///
    /// The call waits on a duplicate of the eventfd, without a lock.
    pub fn wait_unmask(&self, timeout: Duration) -> bool {
        let unmask = match &self.state().mode {
            Mode::Intx(Intx { unmask: Some(fd), .. }) => fd.try_clone(),
            _ => return false,
        };
        // The state decides: after a wait that fails or ends early, the look at the eventfd is only too early.
        drop(unmask.and_then(|fd| eventfd::wait(fd, Some(timeout))));
        self.poll_unmask()
    }

    /// One `VFIO_DEVICE_SET_IRQS`, with the kernel's checks in the kernel's order.
    ///
    /// The model keeps a duplicate of an eventfd. So the model, unlike the kernel, does not notice when the caller
    /// closes the eventfd.
    ///
    /// # Errors
    /// * ENODEV: the device was removed. Also the errno that [`refuse`](Self::refuse) was given.
    /// * EINVAL: `argsz` below the header or without room for the data; an index that does not exist; `start` and
    ///   `count` beyond the index; unknown flags; not exactly one data type; a file that is no eventfd; mask, unmask or
    ///   signal while INTx is not enabled; INTx while MSI is enabled and the reverse; disabling an interrupt that is
    ///   not enabled.
    /// * ENOTTY: not exactly one action; mask by eventfd; an action that the index does not have.
    /// * EBUSY: an unmask eventfd while one is set.
    pub fn set_irqs(&self, request: &IrqSet<'_>) -> io::Result<()> {
        let mut state = self.state();
        if state.requests.len() == REMEMBERED {
            state.requests.pop_front();
        }
        state.requests.push_back(request.operation());
        if state.gone {
            return Err(errno(ENODEV));
        }
        state.refused()?;
        let available = match request.index {
            INTX => self.info.count,
            MSI => 1,
            _ => 0,
        };
        validate(request, available)?;
        match (request.index, request.flags & flags::ACTIONS) {
            (INTX, flags::ACTION_MASK) if !self.automasked() => Ok(()),
            (INTX, flags::ACTION_UNMASK) if !self.automasked() => Ok(()),
            (INTX, flags::ACTION_MASK) => state.intx_mask(request),
            (INTX, flags::ACTION_UNMASK) => state.intx_unmask(request),
            (INTX, flags::ACTION_TRIGGER) => state.intx_trigger(request, self.automasked()),
            (MSI, flags::ACTION_TRIGGER) => state.msi_trigger(request),
            _ => Err(errno(ENOTTY)),
        }
    }

    /// Makes `times` requests of any kind fail with `errno`, after `skip` further requests. VFIO_DEVICE_GET_IRQ_INFO is
    /// a request too. A refused request changes nothing.
    pub fn refuse(&self, skip: usize, times: usize, errno: i32) {
        self.state().refusal = Refusal { skip, times, errno };
    }

    /// The number of refused requests.
    pub fn refused(&self) -> usize {
        self.state().refused
    }

    // ---- for tests to look at ----

    /// Whether INTx is enabled and masked: by itself, by a request or by Interrupt Disable.
    pub fn is_masked(&self) -> bool {
        matches!(&self.state().mode, Mode::Intx(intx) if intx.masked)
    }

    /// Whether INTx is enabled.
    pub fn is_enabled(&self) -> bool {
        matches!(self.state().mode, Mode::Intx(_))
    }

    /// Whether INTx has an unmask eventfd.
    pub fn has_unmask_eventfd(&self) -> bool {
        matches!(&self.state().mode, Mode::Intx(intx) if intx.unmask.is_some())
    }

    /// How often INTx has signalled a trigger.
    pub fn signals(&self) -> u64 {
        self.state().signals
    }

    /// How often MSI has signalled its eventfd.
    pub fn msi_signals(&self) -> u64 {
        self.state().msi_signals
    }

    /// The last requests, including refused requests, oldest first; at most 32.
    pub fn recent_requests(&self) -> Vec<&'static str> {
        self.state().requests.iter().copied().collect()
    }

    fn automasked(&self) -> bool {
        self.info.flags & flags::INFO_AUTOMASKED != 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, request: &IrqSet<'_>) -> Result<()> {
        request.outcome(&self.label, self.set_irqs(request))
    }
}

/// The checks of every request, for any index (`vfio_set_irqs_validate_and_prepare`).
fn validate(request: &IrqSet<'_>, available: u32) -> io::Result<()> {
    let known = flags::DATA_TYPES | flags::ACTIONS;
    let size = match request.flags & flags::DATA_TYPES {
        flags::DATA_NONE => 0,
        flags::DATA_BOOL => 1,
        flags::DATA_EVENTFD => 4,
        _ => return Err(errno(EINVAL)),
    };
    let end = request.start.checked_add(request.count).filter(|end| *end < u32::MAX);
    let good = request.argsz >= IrqSet::HEADER
        && request.index < INDICES
        && request.flags & !known == 0
        && end.is_some_and(|end| request.start < available && end <= available)
        && u64::from(request.argsz - IrqSet::HEADER) >= u64::from(request.count) * size;
    if good { Ok(()) } else { Err(errno(EINVAL)) }
}

/// Duplicates `fd`, as the kernel takes a reference to the eventfd.
fn keep(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(errno(EINVAL));
    }
    fd.try_clone_to_owned()
}

impl State {
    fn refused(&mut self) -> io::Result<()> {
        let refusal = &mut self.refusal;
        if refusal.times == 0 {
            return Ok(());
        }
        if refusal.skip > 0 {
            refusal.skip -= 1;
            return Ok(());
        }
        refusal.times -= 1;
        self.refused += 1;
        Err(errno(refusal.errno))
    }

    /// The interrupt handler: masks and then signals, if the line is high and INTx is neither masked nor disabled. Only
    /// this function and the unmask turn a level into a signal.
    fn evaluate(&mut self) {
        match &mut self.mode {
            Mode::Intx(intx) if self.status != 0 && !intx.masked && !self.disintx => intx.masked = true,
            _ => return,
        }
        self.signal();
    }

    fn signal(&mut self) {
        let Mode::Intx(Intx {
            trigger: Some(trigger), ..
        }) = &self.mode
        else {
            return;
        };
        // A trigger that is full or closed gets no signal, as in the kernel.
        if !self.disintx && eventfd::signal(trigger).is_ok() {
            self.signals += 1;
        }
    }

    fn mask(&mut self) {
        if let Mode::Intx(intx) = &mut self.mode {
            intx.masked = true;
        }
    }

    /// If the line is high, INTx signals again and stays masked.
    fn unmask(&mut self) {
        let Mode::Intx(intx) = &mut self.mode else { return };
        if !intx.masked || self.disintx {
            return;
        }
        if self.status == 0 {
            intx.masked = false;
        } else {
            self.signal();
        }
    }

    fn poll_unmask(&mut self) -> bool {
        let Mode::Intx(Intx {
            unmask: Some(unmask), ..
        }) = &self.mode
        else {
            return false;
        };
        // Poll first: the caller's eventfd may be blocking.
        let signalled = eventfd::wait(unmask, Some(Duration::ZERO)).is_ok_and(|ready| ready)
            && eventfd::drain(unmask).is_ok_and(|drained| drained);
        if signalled {
            self.unmask();
        }
        signalled
    }

    fn intx(&mut self) -> io::Result<&mut Intx> {
        match &mut self.mode {
            Mode::Intx(intx) => Ok(intx),
            _ => Err(errno(EINVAL)),
        }
    }

    /// INTx has one interrupt, so each request that changes anything is for one interrupt.
    fn one(request: &IrqSet<'_>) -> io::Result<()> {
        match (request.start, request.count) {
            (0, 1) => Ok(()),
            _ => Err(errno(EINVAL)),
        }
    }

    fn intx_mask(&mut self, request: &IrqSet<'_>) -> io::Result<()> {
        self.intx()?;
        Self::one(request)?;
        match request.data {
            Data::None | Data::Bool(1..) => self.mask(),
            Data::Bool(0) => {}
            Data::Eventfd(_) => return Err(errno(ENOTTY)),
        }
        Ok(())
    }

    fn intx_unmask(&mut self, request: &IrqSet<'_>) -> io::Result<()> {
        let intx = self.intx()?;
        Self::one(request)?;
        match request.data {
            Data::None | Data::Bool(1..) => self.unmask(),
            Data::Bool(0) => {}
            Data::Eventfd(None) => intx.unmask = None,
            Data::Eventfd(Some(fd)) => {
                let fd = keep(fd)?;
                if intx.unmask.is_some() {
                    return Err(errno(EBUSY));
                }
                intx.unmask = Some(fd);
                // A count that waits in the eventfd unmasks at once. The kernel leaves the count there until the next
                // signal. The model drains it, because a later read could not tell the old count from a new signal.
                self.poll_unmask();
            }
        }
        Ok(())
    }

    fn intx_trigger(&mut self, request: &IrqSet<'_>, automasked: bool) -> io::Result<()> {
        let enabled = matches!(self.mode, Mode::Intx(_));
        if enabled && request.count == 0 && request.flags & flags::DATA_NONE != 0 {
            self.mode = Mode::None;
            return Ok(());
        }
        if matches!(self.mode, Mode::Msi(_)) {
            return Err(errno(EINVAL));
        }
        Self::one(request)?;
        match request.data {
            Data::Eventfd(fd) => {
                let trigger = fd.map(keep).transpose()?;
                match &mut self.mode {
                    Mode::Intx(intx) => intx.trigger = trigger,
                    _ => {
                        self.mode = Mode::Intx(Intx {
                            trigger,
                            unmask: None,
                            masked: self.disintx,
                        });
                        if automasked {
                            self.evaluate();
                        }
                    }
                }
                Ok(())
            }
            _ if !enabled => Err(errno(EINVAL)),
            Data::Bool(0) => Ok(()),
            Data::None | Data::Bool(1..) => {
                self.signal();
                Ok(())
            }
        }
    }

    fn msi_trigger(&mut self, request: &IrqSet<'_>) -> io::Result<()> {
        if matches!(self.mode, Mode::Intx(_)) {
            return Err(errno(EINVAL));
        }
        let enabled = matches!(self.mode, Mode::Msi(_));
        match request.data {
            Data::None if enabled && request.count == 0 => self.mode = Mode::None,
            Data::Eventfd(fd) => self.mode = Mode::Msi(fd.map(keep).transpose()?),
            _ => return Err(errno(EINVAL)),
        }
        Ok(())
    }
}

impl DeviceInterrupt for ModelIntx {
    fn label(&self) -> &str {
        &self.label
    }

    fn info(&self) -> Result<InterruptInfo> {
        let asked = {
            let mut state = self.state();
            if state.gone {
                Err(errno(ENODEV))
            } else {
                state.refused()
            }
        };
        asked.map_err(|source| Error::Device {
            operation: "VFIO_DEVICE_GET_IRQ_INFO(INTx)",
            device: self.label.clone(),
            source,
        })?;
        self.info.interrupt(&self.label)
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.request(&IrqSet::set_trigger(fd))
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.request(&IrqSet::unmask_eventfd(fd))
    }

    fn mask(&self) -> Result<()> {
        self.request(&IrqSet::mask())
    }

    fn unmask(&self) -> Result<()> {
        self.request(&IrqSet::unmask())
    }
}

impl fmt::Debug for ModelIntx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "{}: status {:#x}, ", self.label, state.status)?;
        match &state.mode {
            _ if state.gone => f.write_str("gone"),
            Mode::None => f.write_str("no interrupt set up"),
            Mode::Msi(_) => f.write_str("MSI"),
            Mode::Intx(intx) => {
                let mask = if intx.masked { "masked" } else { "unmasked" };
                let trigger = intx.trigger.as_ref().map_or("no trigger", |_| "trigger");
                let unmask = intx.unmask.as_ref().map_or("no unmask eventfd", |_| "unmask eventfd");
                write!(f, "INTx {mask}, {trigger}, {unmask}")
            }
        }
    }
}
