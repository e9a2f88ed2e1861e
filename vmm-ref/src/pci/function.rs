// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the host or of a server as a function of the guest's bus: its configuration space.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vfio_intx::Intx;

use super::bar::{BARS, Bars, Space};
use super::config_space::{BAR0, COMMAND, ConfigSpace, HEADER_TYPE, ID, SIZE};
use super::device::{CONFIG_REGION, PciDevice};
use super::msix::{Capability, Msix};
use super::view::{ResetBit, View};
use super::windows::Windows;
use crate::error::Error;
use crate::vm::ending::Ending;

/// The bits of the command register (PCI Local Bus Specification 3.0, 6.2.2).
const IO_SPACE: u16 = 1 << 0;
const MEMORY_SPACE: u16 = 1 << 1;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// The power state; 0 is D0, in which alone a function decodes its BARs.
const POWER_STATE: u16 = 0b11;

/// The type of a header that is a device's and not a bridge's.
const TYPE: u8 = 0x7f;

/// A device that has been read, and is not on the bus yet.
#[derive(Debug)]
pub struct Identity {
    /// Vendor and device ID, as lspci writes them.
    pub id: String,
    /// The interrupt pin, 1; 0 for a function that has none.
    pub pin: u8,
    view: View,
    bars: Bars,
}

impl Identity {
    /// The number of bytes of memory that all BARs decode together.
    pub fn memory(&self) -> u64 {
        let memory = self.bars.iter().filter(|bar| bar.space == Space::Memory);
        memory.fold(0, |sum: u64, bar| sum.saturating_add(bar.size))
    }

    /// MSI-X of the device, if the guest sees it.
    pub fn msix(&self) -> Option<Capability> {
        self.view.msix
    }

    /// Reads the configuration space and the sizes of the BARs. With `messages` the guest sees MSI-X.
    ///
    /// # Errors
    /// One line: the device's error, or why it cannot be a function of this bus.
    pub fn read(device: &dyn PciDevice, messages: bool) -> Result<Self, String> {
        let mut space = [0; SIZE];
        for (offset, bytes) in (0..).step_by(4).zip(space.chunks_exact_mut(4)) {
            let read = device.read(CONFIG_REGION, offset, bytes);
            read.map_err(|error| format!("its configuration space: {error}"))?;
        }
        let at = |register: u8| usize::from(register);
        let word = |register: u8| u16::from_le_bytes([space[at(register)], space[at(register) + 1]]);
        if space[at(HEADER_TYPE)] & TYPE != 0 {
            return Err("it is a bridge, and this machine has one bus; use the devices behind it".to_owned());
        }
        let mut registers = [0; BARS];
        for (register, bytes) in registers.iter_mut().zip(space[at(BAR0)..].chunks_exact(4)) {
            *register = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let mut sizes = [0; BARS];
        for (bar, size) in sizes.iter_mut().enumerate() {
            *size = device
                .bar_size(bar as u8)
                .map_err(|error| format!("BAR {bar}: {error}"))?;
        }
        let view = View::new(&space, messages);
        Ok(Self {
            id: format!("{:04x}:{:04x}", word(ID), word(ID + 2)),
            pin: view.pin,
            bars: Bars::new(registers, sizes).map_err(|error| error.to_string())?,
            view,
        })
    }
}

/// A function of the bus.
pub struct Function {
    /// The device number.
    number: u8,
    device: Arc<dyn PciDevice>,
    view: View,
    windows: Arc<Windows>,
    /// The forwarder's, which ends INTx.
    intx: Weak<Intx>,
    msix: Option<Arc<Msix>>,
    ending: Arc<Ending>,
    state: Mutex<State>,
}

/// What the guest has set.
#[derive(Debug)]
struct State {
    bars: Bars,
    /// The command register, as the device has it.
    command: u16,
    /// Whether the device is in power state D0.
    is_on: bool,
    /// Whether INTx follows an Interrupt Disable that is set.
    disintx: bool,
}

impl State {
    fn decodes(&self, space: Space) -> bool {
        let bit = match space {
            Space::Memory => MEMORY_SPACE,
            Space::Io => IO_SPACE,
        };
        self.is_on && self.command & bit != 0
    }
}

impl Function {
    /// Puts a device on the bus as `number`. The device has to be reset, and its INTx enabled.
    ///
    /// # Errors
    /// One line: the device refuses to be written.
    pub fn new(
        number: u8,
        device: Arc<dyn PciDevice>,
        identity: Identity,
        windows: Arc<Windows>,
        intx: Weak<Intx>,
        msix: Option<Arc<Msix>>,
        ending: Arc<Ending>,
    ) -> Result<Self, String> {
        // As after a reset, which not every device can do.
        let cleared = device.write(CONFIG_REGION, COMMAND.into(), &[0, 0]);
        cleared.map_err(|error| format!("its command register: {error}"))?;
        Ok(Self {
            number,
            device,
            view: identity.view,
            windows,
            intx,
            msix,
            ending,
            state: Mutex::new(State {
                bars: identity.bars,
                command: 0,
                is_on: true,
                disintx: false,
            }),
        })
    }

    /// Writes registers of the device, and follows what the device makes of the write.
    fn write_registers(&self, state: &mut State, offset: u8, data: &[u8]) {
        let written = |register: u8| data.get(usize::from(register.checked_sub(offset)?)).copied();
        let (command, power) = (written(COMMAND), self.view.power_state.and_then(written));
        let followed = command.is_some() || power.is_some();
        let before = (state.command, state.is_on);
        if followed {
            // What the write turns off goes first: the host has nothing mapped where the device does not decode.
            state.command &= u16::from(command.unwrap_or(0xff)) | 0xff00;
            state.is_on &= power.is_none_or(|state| u16::from(state) & POWER_STATE == 0);
            self.decode(state);
        }
        for (offset, bytes) in self.view.writable(offset, data) {
            let written = self.device.write(CONFIG_REGION, offset.into(), bytes);
            if written.is_err() {
                (state.command, state.is_on) = before;
            }
            self.check(written);
        }
        if followed || written(COMMAND + 1).is_some() {
            self.follow(state);
        }
    }

    /// Reads the registers that this process follows, and follows them. One that the device does not read stays.
    fn follow(&self, state: &mut State) {
        let read = |register: u8| {
            let mut data = [0; 2];
            let read = self.device.read(CONFIG_REGION, register.into(), &mut data);
            let value = read.is_ok().then_some(u16::from_le_bytes(data));
            self.check(read);
            value
        };
        if let Some(command) = read(COMMAND) {
            state.command = command;
        }
        if let Some(power) = self.view.power_state.and_then(read) {
            state.is_on = power & POWER_STATE == 0;
        }
        self.decode(state);
        let disable = state.command & INTERRUPT_DISABLE != 0;
        if disable != state.disintx {
            state.disintx = disable;
            if let Some(Err(error)) = self.intx.upgrade().map(|intx| intx.set_disintx(disable)) {
                self.ending.fail(Error::Intx(error));
            }
        }
    }

    /// Resets the function, as its guest asks for.
    fn reset(&self, state: &mut State) {
        state.command = 0;
        state.bars.reset();
        self.decode(state);
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        // After the reset of a device of VFIO its command register is what it was before.
        self.check(self.device.write(CONFIG_REGION, COMMAND.into(), &[0, 0]));
        match self.intx.upgrade().map(|intx| intx.reset(|| self.device.reset())) {
            // The guest would go on with a device that is not reset.
            Some(Ok(Err(source))) => {
                let step = "the reset of its device that the guest asked for";
                self.ending.fail(Error::System { step, source });
            }
            Some(Err(error)) => self.ending.fail(Error::Intx(error)),
            // Without INTx the machine ends.
            Some(Ok(Ok(()))) | None => {}
        }
        self.follow(state);
    }

    fn decode(&self, state: &State) {
        let bars = state.bars.iter().filter(|bar| state.decodes(bar.space));
        self.windows.decode(self.number, &self.device, bars);
    }

    /// An access that the device refuses has no effect, as on hardware. A device that is gone ends the machine.
    fn check(&self, outcome: io::Result<()>) {
        if let Err(source) = outcome {
            if self.device.is_gone(&source) {
                let step = "the guest's access to its device";
                self.ending.fail(Error::System { step, source });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The base address register that the byte at `offset` belongs to, and the byte's place in it.
fn base_address(offset: u8) -> Option<(usize, usize)> {
    let place = usize::from(offset.checked_sub(BAR0)?);
    (place < BARS * 4).then_some((place / 4, place % 4))
}

impl ConfigSpace for Function {
    fn read(&self, offset: u8, data: &mut [u8]) {
        if let Some((register, byte)) = base_address(offset) {
            let value = self.lock().bars.read(register).to_le_bytes();
            // An aligned access stays within its register.
            data.iter_mut().zip(&value[byte..]).for_each(|(to, from)| *to = *from);
            return;
        }
        let read = self.device.read(CONFIG_REGION, offset.into(), data);
        if read.is_err() {
            data.fill(0xff);
            return self.check(read);
        }
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = match &self.msix {
                Some(msix) if at == usize::from(msix.register()) => msix.control() as u8,
                Some(msix) if at == usize::from(msix.register()) + 1 => (msix.control() >> 8) as u8,
                _ => self.view.byte(at, *byte),
            };
        }
    }

    fn write(&self, offset: u8, data: &[u8]) {
        let mut state = self.lock();
        if let Some((register, byte)) = base_address(offset) {
            let mut value = state.bars.read(register).to_le_bytes();
            value[byte..].iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            state.bars.write(register, u32::from_le_bytes(value));
            return self.decode(&state);
        }
        let asks = |bit: &ResetBit| {
            let byte = bit.offset.checked_sub(offset).and_then(|at| data.get(usize::from(at)));
            byte.is_some_and(|byte| byte & bit.mask != 0)
        };
        if self.view.resets.iter().any(asks) {
            return self.reset(&mut state);
        }
        if let Some(msix) = &self.msix {
            let written = |register: u8| data.get(usize::from(register.checked_sub(offset)?)).copied();
            // The bits that a guest can write are in the upper byte.
            if let Some(upper) = written(msix.register() + 1) {
                msix.set_control(u16::from(upper) << 8);
            }
        }
        self.write_registers(&mut state, offset, data);
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at 00:{:02x}.0", self.device.label(), self.number)
    }
}
