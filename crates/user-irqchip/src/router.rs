// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GSIs that lead to pins of two controllers, or to an MSI.
//!
//! On a PC the first sixteen GSIs are inputs of the 8259 pair and of the IOAPIC at once, and the guest uses one of the
//! two. A machine with one controller takes its sources from that controller and needs no router.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, EveryStep, Gsi, Level, LevelSource, Line, LineInput, Listener,
    LoweredBy, Msi, MsiOutput, Pin, PinMask, Result, SourceKey, WiredOr,
};

use crate::counter::Counter;
use crate::error::{Route, RouteError, StateError};
use crate::ioapic::{self, Ioapic, IoapicPin, IoapicState};
use crate::pic::{self, Pic, PicPin, PicState};
use crate::pulse::{Pulse, PulsingSource};
use crate::sync::lock;

#[derive(Debug)]
struct Controllers {
    ioapic: Option<Arc<Ioapic>>,
    pic: Option<Arc<Pic>>,
    msi: Arc<dyn MsiOutput>,
    listener_errors: Counter,
}

/// The connection of a GSI to a controller's pin: a level source on the pin, and a listener of the pin's EOIs.
struct Input<P: Pin> {
    pin: Gsi,
    source: LineInput<P>,
    _guard: EoiGuard,
}

/// Where a GSI leads.
#[derive(Default)]
struct Targets {
    ioapic: Option<Input<IoapicPin>>,
    pic: Option<Input<PicPin>>,
    msi: Option<Msi>,
}

impl Targets {
    fn routes(&self) -> Vec<Route> {
        let Self { ioapic, pic, msi } = self;
        let ioapic = ioapic.as_ref().map(|input| Route::Ioapic(input.pin));
        let pic = pic.as_ref().map(|input| Route::Pic(input.pin));
        pic.into_iter().chain(ioapic).chain(msi.map(Route::Msi)).collect()
    }

    /// Takes over the routes of `new`, and returns the replaced routes.
    fn replace(&mut self, new: Self) -> Self {
        Self {
            ioapic: new.ioapic.and_then(|input| self.ioapic.replace(input)),
            pic: new.pic.and_then(|input| self.pic.replace(input)),
            msi: new.msi.and_then(|message| self.msi.replace(message)),
        }
    }
}

/// A GSI, as its line drives it: all pins that it leads to.
struct RoutedPin {
    gsi: Gsi,
    controllers: Arc<Controllers>,
    wires: Mutex<Wires>,
}

/// The state of a [`RoutedPin`]: the line's part of it, and the targets of the line.
#[derive(Default)]
struct Wires {
    or: WiredOr,
    targets: Targets,
}

/// The rest of the work after a level was driven, for each pin.
#[derive(Debug)]
struct Outcome {
    ioapic: Option<(Gsi, ioapic::Outcome)>,
    pic: Option<(Gsi, pic::Outcome)>,
    msi: Option<Msi>,
}

impl Pin for RoutedPin {
    type State = Wires;
    type Outcome = Outcome;

    fn lock(&self) -> MutexGuard<'_, Wires> {
        lock(&self.wires)
    }

    fn wired_or<'a>(&self, wires: &'a mut Wires) -> &'a mut WiredOr {
        &mut wires.or
    }

    fn drive(&self, Wires { targets, .. }: &mut Wires, level: Level) -> Result<Outcome> {
        let mut outcome = Outcome {
            ioapic: None,
            pic: None,
            msi: targets.msi.filter(|_| level == Level::High),
        };
        // Neither target refuses a level, so both targets always have the same level.
        if let Some(input) = &targets.ioapic {
            outcome.ioapic = input.source.drive(level)?.map(|outcome| (input.pin, outcome));
        }
        if let Some(input) = &targets.pic {
            outcome.pic = input.source.drive(level)?.map(|outcome| (input.pin, outcome));
        }
        Ok(outcome)
    }

    fn deliver(&self, outcome: Outcome) -> Result<Delivery> {
        let Outcome { ioapic, pic, msi } = outcome;
        let Controllers {
            ioapic: our_ioapic,
            pic: our_pic,
            msi: output,
            listener_errors: _,
        } = &*self.controllers;
        // Every message is delivered, even if another one fails.
        let mut steps = EveryStep::default();
        let deliveries = [
            steps.take(|| {
                let pic = our_pic.as_ref().zip(pic);
                pic.map(|(chip, (pin, outcome))| chip.line(pin)?.pin().deliver(outcome))
            }),
            steps.take(|| {
                let ioapic = our_ioapic.as_ref().zip(ioapic);
                ioapic.map(|(chip, (pin, outcome))| chip.line(pin)?.pin().deliver(outcome))
            }),
            steps.take(|| msi.map(|message| output.send_msi(self.gsi, message))),
        ];
        steps.end();
        deliveries
            .into_iter()
            .flatten()
            .flatten()
            .try_fold(Delivery::Coalesced, |one, other| Ok(both(one, other?)))
    }
}

impl Pulse for RoutedPin {
    fn is_open_edge(&self) -> bool {
        let Some(chip) = &self.controllers.ioapic else {
            return false;
        };
        let wires = self.lock();
        let pin = wires.targets.ioapic.as_ref().map(|input| input.source.line().pin());
        !chip.has_edge_eois() && pin.is_some_and(Pulse::is_open_edge)
    }
}

/// Combines the outcomes of an assertion at two targets.
fn both(one: Delivery, other: Delivery) -> Delivery {
    use Delivery::{Coalesced, Delivered, Pending, Unknown};
    match (one, other) {
        (Delivered(one), Delivered(other)) => Delivered(one.saturating_add(other)),
        (Delivered(n), _) | (_, Delivered(n)) => Delivered(n),
        (Unknown, _) | (_, Unknown) => Unknown,
        (Pending, _) | (_, Pending) => Pending,
        (Coalesced, Coalesced) => Coalesced,
    }
}

impl fmt::Debug for RoutedPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {:?}", self.gsi, self.lock().targets.routes())
    }
}

/// Leads GSIs to pins of an IOAPIC, to IRQs of an 8259 pair, or to MSIs.
///
/// A pin sees a GSI as one of its level sources. A pin may have several GSIs, and sources of its own. An EOI at any pin
/// of a GSI is an EOI of the GSI: it lowers the sources that an EOI lowers, at all pins of the GSI, and tells every
/// listener.
///
/// ```
/// use std::sync::Arc;
/// use interrupt_core::{Gsi, LoweredBy};
/// use user_irqchip::{Ioapic, Pic, Router, testing::LocalApics};
///
/// let apics = LocalApics::new(1);
/// let ioapic = Arc::new(Ioapic::builder().build(apics.clone())?);
/// let pic = Arc::new(Pic::new(|| {}));
/// let router = Router::pc(Some(ioapic.clone()), Some(pic.clone()), apics)?;
///
/// // The guest has not programmed the IOAPIC yet, and takes the interrupt from the 8259.
/// let timer = router.source(Gsi(0), "timer", LoweredBy::Device)?;
/// timer.assert()?;
/// assert!(pic.intr());
/// assert_eq!(ioapic.levels(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Router {
    controllers: Arc<Controllers>,
    lines: Mutex<BTreeMap<Gsi, Arc<Line<RoutedPin>>>>,
}

impl Router {
    /// A router without routes. `msi` sends the messages of GSIs that will lead to an MSI.
    pub fn new(ioapic: Option<Arc<Ioapic>>, pic: Option<Arc<Pic>>, msi: Arc<dyn MsiOutput>) -> Self {
        Self {
            controllers: Arc::new(Controllers {
                ioapic,
                pic,
                msi,
                listener_errors: Counter::default(),
            }),
            lines: Mutex::default(),
        }
    }

    /// A router with a PC's routes: a GSI leads to the IOAPIC's pin and to the IRQ of its number, where these exist.
    ///
    /// # Errors
    /// The errors of [`add`](Self::add), none of which a fresh machine causes.
    pub fn pc(
        ioapic: Option<Arc<Ioapic>>,
        pic: Option<Arc<Pic>>,
        msi: Arc<dyn MsiOutput>,
    ) -> std::result::Result<Self, RouteError> {
        let router = Self::new(ioapic, pic, msi);
        let Controllers { ioapic, pic, .. } = &*router.controllers;
        for gsi in (0..u32::from(Ioapic::MAX_PINS)).map(Gsi) {
            if pic.as_ref().is_some_and(|pic| pic.line(gsi).is_ok()) {
                router.add(gsi, Route::Pic(gsi))?;
            }
            if ioapic.as_ref().is_some_and(|ioapic| ioapic.line(gsi).is_ok()) {
                router.add(gsi, Route::Ioapic(gsi))?;
            }
        }
        Ok(router)
    }

    /// Where a GSI leads: nowhere, to one MSI, or to one pin of each controller.
    pub fn routes(&self, gsi: Gsi) -> Vec<Route> {
        let line = lock(&self.lines).get(&gsi).cloned();
        line.map_or_else(Vec::new, |line| line.pin().lock().targets.routes())
    }

    /// Adds a route to a GSI, in place of its route to the same controller. A level that is high is lowered at the old
    /// pin and driven at the new pin. An MSI is sent when the line rises.
    ///
    /// # Errors
    /// * [`RouteError::NoPin`]: there is no such pin, or no such controller.
    /// * [`RouteError::Mixed`]: a GSI leads to pins or to an MSI, not to both.
    /// * [`RouteError::InUse`]: the route is an MSI, and the GSI has sources or listeners, which may wait for an EOI.
    /// * [`RouteError::Line`]: the output refused the MSI, or refused to send the MSI for a level that is high.
    ///
    /// After an error the routes are unchanged, except if the message was not sent.
    pub fn add(&self, gsi: Gsi, route: Route) -> std::result::Result<(), RouteError> {
        let line = self.line(gsi);
        let mixed = self.routes(gsi).iter().any(|old| is_msi(old) != is_msi(&route));
        if mixed {
            return Err(RouteError::Mixed { gsi });
        }
        let in_use = |wires: &Wires| is_msi(&route) && wires.targets.routes().is_empty() && !wires.or.is_unused();
        if in_use(&line.pin().lock()) {
            return Err(RouteError::InUse { gsi });
        }
        let target = self.target(&line, route)?;
        if let Some(message) = target.msi {
            self.controllers.msi.set_pin(gsi, Some(message), PinMask::Unmasked)?;
        }
        let mut target = Some(target);
        let replaced = line.while_low(|wires| {
            // Another thread may have added a route, a source or a listener since.
            let mixed = wires.targets.routes().iter().any(|old| is_msi(old) != is_msi(&route));
            if in_use(wires) {
                return Err(RouteError::InUse { gsi });
            }
            let target = target.take_if(|_| !mixed).ok_or(RouteError::Mixed { gsi })?;
            Ok(wires.targets.replace(target))
        })?;
        if let Err(error) = replaced {
            if is_msi(&route) {
                self.controllers.msi.set_pin(gsi, None, PinMask::Masked)?;
            }
            return Err(error);
        }
        // The replaced routes are dropped without a lock: the drop of a guard waits for its listener, which may take
        // this line's lock.
        Ok(())
    }

    /// Removes all routes of a GSI. The sources of the GSI keep their levels, which are driven at the next route.
    ///
    /// # Errors
    /// [`RouteError::Line`]: the output refused the removal of the MSI. The routes are removed nevertheless.
    pub fn clear(&self, gsi: Gsi) -> std::result::Result<(), RouteError> {
        let line = self.line(gsi);
        let removed = line.while_low(|wires| std::mem::take(&mut wires.targets))?;
        if removed.msi.is_some() {
            self.controllers.msi.set_pin(gsi, None, PinMask::Masked)?;
        }
        Ok(())
    }

    /// Takes over the saved states of the controllers, in place of their own `restore`, and the levels of the GSIs.
    /// Call this with the routes added, before the sources state their levels and before the guest runs (law 17).
    ///
    /// The sources own their levels. The saved level of a pin holds until each source of the GSI has stated its level,
    /// or until the GSI's next EOI. A controller alone cannot tell a GSI that is low from one whose sources have not
    /// stated their level yet.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed, except after [`StateError::Route`], which is also the error if the output
    /// refused to send the message of a GSI for a level that is high.
    pub fn restore(&self, ioapic: Option<&IoapicState>, pic: Option<&PicState>) -> std::result::Result<(), StateError> {
        let to_ioapic = paired(&self.controllers.ioapic, ioapic)?;
        let to_pic = paired(&self.controllers.pic, pic)?;
        if let Some((_, state)) = to_pic {
            state.check()?;
        }
        let mut told = match to_ioapic.map_or(Ok(()), |(chip, state)| chip.restore(state)) {
            Err(error) if !matches!(error, StateError::Route(_)) => return Err(error),
            told => told,
        };
        told = told.and(to_pic.map_or(Ok(()), |(chip, state)| chip.restore(state)));
        let lines: Vec<_> = lock(&self.lines).values().cloned().collect();
        for line in lines {
            let wires = line.pin().lock();
            let Targets { ioapic, pic, msi: _ } = &wires.targets;
            let at_ioapic = to_ioapic.zip(ioapic.as_ref());
            let at_pic = to_pic.zip(pic.as_ref());
            let levels = [
                at_ioapic.map(|((chip, state), input)| chip.saved_level(state, input.pin)),
                at_pic.map(|((_, state), input)| state.level(input.pin)),
            ];
            drop(wires);
            let level = match levels {
                [None, None] => continue,
                [Some(Level::High), _] | [_, Some(Level::High)] => Level::High,
                _ => Level::Low,
            };
            told = told.and(line.restore(level).map(drop).map_err(StateError::Route));
        }
        told
    }

    /// Adds a level source on a GSI. The source does not assert yet. A GSI without a route keeps its level for the next
    /// route.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: a source that an EOI lowers, on a GSI that leads to an MSI.
    pub fn source(&self, gsi: Gsi, label: impl Into<String>, lowered_by: LoweredBy) -> Result<Arc<dyn LevelSource>> {
        let check = || match lowered_by {
            LoweredBy::Eoi => self.has_eois("level source that an EOI lowers", gsi),
            LoweredBy::Device => Ok(()),
        };
        check()?;
        let line = self.line(gsi);
        let source = line.source(label, lowered_by);
        // From here on an MSI is refused. Another thread may have added one before.
        check()?;
        Ok(match lowered_by {
            LoweredBy::Eoi => Arc::new(PulsingSource { source, line }),
            LoweredBy::Device => Arc::new(source),
        })
    }

    /// The number of notifications that failed, because the listener's eventfd could not be written.
    pub fn listener_errors(&self) -> u64 {
        self.controllers.listener_errors.get()
    }

    fn has_eois(&self, operation: &'static str, gsi: Gsi) -> Result<()> {
        if self.routes(gsi).iter().any(is_msi) {
            return Err(Error::Unsupported {
                operation,
                gsi,
                reason: "it leads to an MSI, whose end nobody learns of; route it to a controller's pin".to_owned(),
            });
        }
        Ok(())
    }

    fn line(&self, gsi: Gsi) -> Arc<Line<RoutedPin>> {
        let mut lines = lock(&self.lines);
        let line = lines.entry(gsi).or_insert_with(|| {
            let pin = RoutedPin {
                gsi,
                controllers: Arc::clone(&self.controllers),
                wires: Mutex::default(),
            };
            Line::new(gsi, pin)
        });
        Arc::clone(line)
    }

    /// Makes the target of a route, without a lock.
    fn target(&self, line: &Arc<Line<RoutedPin>>, route: Route) -> std::result::Result<Targets, RouteError> {
        let Controllers { ioapic, pic, .. } = &*self.controllers;
        let mut targets = Targets::default();
        let no_pin = || RouteError::NoPin { gsi: line.gsi(), route };
        match route {
            Route::Ioapic(pin) => {
                let chip = ioapic.as_ref().ok_or_else(no_pin)?;
                let on = chip.line(pin).map_err(|_| no_pin())?;
                targets.ioapic = Some(self.input(line, on)?);
            }
            Route::Pic(pin) => {
                let chip = pic.as_ref().ok_or_else(no_pin)?;
                let on = chip.line(pin).map_err(|_| no_pin())?;
                targets.pic = Some(self.input(line, on)?);
            }
            Route::Msi(message) => targets.msi = Some(message),
        }
        Ok(targets)
    }

    fn input<P: Pin>(&self, line: &Arc<Line<RoutedPin>>, on: &Arc<Line<P>>) -> Result<Input<P>> {
        // The device is the GSI's line, which its own sources lower.
        let source = on.input(line.gsi().to_string());
        let (line, controllers) = (Arc::downgrade(line), Arc::downgrade(&self.controllers));
        let told = Listener::callback(move |_| {
            if let (Some(line), Some(controllers)) = (line.upgrade(), controllers.upgrade()) {
                controllers.listener_errors.count_error(line.eoi());
            }
        });
        let key = source.key();
        Ok(Input {
            pin: on.gsi(),
            _guard: on.subscribe(key.into(), told)?,
            source,
        })
    }
}

/// A controller and its saved state.
fn paired<'a, C, S>(
    controller: &'a Option<Arc<C>>,
    state: Option<&'a S>,
) -> std::result::Result<Option<(&'a C, &'a S)>, StateError> {
    match (controller, state) {
        (Some(controller), Some(state)) => Ok(Some((controller, state))),
        (None, Some(_)) => Err(StateError::OtherChip {
            what: "a number of such controllers of",
            found: 1,
            here: 0,
        }),
        (_, None) => Ok(None),
    }
}

fn is_msi(route: &Route) -> bool {
    matches!(route, Route::Msi(_))
}

impl EoiNotifier for Router {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        self.has_eois("subscribe", subject.gsi())?;
        let guard = self.line(subject.gsi()).subscribe(subject, listener)?;
        // From here on an MSI is refused. Another thread may have added one before.
        self.has_eois("subscribe", subject.gsi())?;
        Ok(guard)
    }

    fn exchange(&self, key: SourceKey, listener: Listener) -> Result<EoiGuard> {
        self.line(key.gsi()).exchange(key, listener)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.lines).values()).finish()
    }
}
