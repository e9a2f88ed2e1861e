// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is to hold after every sequence, with nothing asked of INTx in between: the world runs on, and that is all.

use interrupt_core::forward::Path;
use vfio_intx::State;

use crate::world::{Gone, LineKind, Op, World};

/// What is broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// The world does not come to rest.
    Storm,
    /// The device's cause is never served.
    Lost,
    /// The device is masked, and nobody will unmask it.
    MaskedForEver,
    /// A line is high for nobody.
    High,
    /// The handler ran twice for one cause.
    Doubled,
    /// INTx is not where what was asked for puts it.
    Astray(String),
    /// The status says one thing, and the wires another.
    StatusLies(String),
    /// A file is left over.
    Leak,
}

/// Where INTx has to be, when no request has failed.
fn expected(world: &World) -> State {
    let asked = &world.asked;
    let (true, false, true, Some(kind)) = (asked.enabled, asked.msi, asked.device, asked.line) else {
        return State::Disabled;
    };
    let direct = match kind {
        LineKind::Kernel | LineKind::Other => Some(Path::KernelLoop),
        LineKind::Split => Some(Path::SplitKick),
        LineKind::Plain => None,
    };
    let wanted = direct.filter(|_| !world.pulses);
    let wanted = wanted.filter(|direct| asked.only.is_none_or(|only| only == *direct));
    let path = wanted.or(world.wires.has_relay().then_some(Path::Relay));
    match path {
        _ if asked.masked || asked.disintx => State::Masked,
        Some(path) => State::Carried(path),
        None => State::Disabled,
    }
}

pub fn check(world: &mut World) -> Result<(), Broken> {
    if !world.settle() {
        return Err(Broken::Storm);
    }
    rests(world)?;
    if let State::Carried(path) = world.wires.state() {
        // The relay may wait for the end of an interrupt to hand over.
        let path = match path {
            Path::Relay => world.wires.path().unwrap_or(path),
            _ => path,
        };
        if !world.disintx_refused {
            carries(world, path)?;
        }
        if world.wires.path() != Some(path) {
            return Err(Broken::StatusLies(format!(
                "{path:?}, and the registry says {:?}",
                world.wires.path()
            )));
        }
    }
    // A pulse is said twice when the guest may not have seen it.
    if world.spurious > world.excused && !world.pulses {
        return Err(Broken::Doubled);
    }
    let expected = expected(world);
    let state = world.wires.state();
    // A failure may cost the direct path, or INTx altogether, and the status says so; it does not leave it held back.
    let follows = match (state, expected) {
        // Only a relay is possible, and there is none.
        (State::Disabled, State::Masked) if !world.wires.has_relay() => true,
        (State::Disabled, _) if world.refused => true,
        _ if !world.faults.any() => state == expected,
        (State::Masked, expected) => expected == State::Masked,
        (State::Carried(_), expected) => expected != State::Masked || world.disintx_refused,
        (State::Disabled, _) => true,
    };
    if !follows {
        return Err(Broken::Astray(format!("{state:?} and not {expected:?}")));
    }
    Ok(())
}

/// What holds of a world at rest.
fn rests(world: &World) -> Result<(), Broken> {
    let state = world.wires.state();
    if world.lines.iter().any(|line| line.is_high()) {
        return Err(Broken::High);
    }
    match state {
        // The guest has set Interrupt Disable in the register, which INTx would not follow. It undoes that itself.
        State::Carried(_) if world.disintx_refused => {}
        State::Carried(path) => {
            if world.model.status() != 0 {
                return Err(Broken::Lost);
            }
            if world.model.is_masked() {
                return Err(Broken::MaskedForEver);
            }
            let direct = world.model.has_unmask_eventfd();
            // A device that would not give up its unmask eventfd may have one on the relay too.
            let wired = direct == (path != Path::Relay) || direct && world.faults.any();
            if !world.model.is_enabled() || !wired {
                return Err(Broken::StatusLies(format!("{state:?}, and the wires are not so")));
            }
        }
        State::Masked => {
            if !world.asked.masked && !world.asked.disintx {
                return Err(Broken::MaskedForEver);
            }
        }
        State::Disabled => {
            if world.model.is_enabled() && !world.faults.any() {
                return Err(Broken::StatusLies("disabled, and the device is enabled".to_owned()));
            }
        }
    }
    Ok(())
}

/// One more interrupt is carried, once.
fn carries(world: &mut World, path: Path) -> Result<(), Broken> {
    let (served, spurious) = (world.served, world.spurious);
    world.act_now(Op::Raise);
    if !world.settle() {
        return Err(Broken::Storm);
    }
    rests(world)?;
    if world.served != served + 1 {
        return Err(Broken::Lost);
    }
    if world.spurious != spurious && !world.pulses {
        return Err(Broken::Doubled);
    }
    match world.wires.state() {
        State::Carried(after) if after == path => Ok(()),
        after => Err(Broken::Astray(format!("{after:?} by itself, from {path:?}"))),
    }
}

/// After everything but the device and the guest has gone.
pub fn check_gone(world: &Gone) -> Result<(), Broken> {
    if world.lines.iter().any(|line| line.is_high()) {
        return Err(Broken::High);
    }
    if world.model.is_enabled() && !world.faults.any() {
        return Err(Broken::StatusLies("dropped, and the device is enabled".to_owned()));
    }
    Ok(())
}
