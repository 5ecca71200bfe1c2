//! An object's alarms as its class sees them.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::error::Result;
use crate::host::base::alarm::{Alarm, AlarmRecord};
use crate::host::engine::alarms;
use crate::host::state::instance::Instance;

/// The object's durable timers: any number of names, up to 1,000, each with a time at which
/// [`Object::alarm`](crate::Object::alarm) is called with it.
///
/// An alarm is written in the present turn, so it is there exactly if the other writes of the turn
/// are, and it survives restarts. It fires **at least once**: the turn that ends the method removes
/// it together with the method's last writes, unless the method set it again or cancelled it. If
/// the method fails, panics or is cut short by a crash, it is called again.
///
/// ```
/// use std::time::Duration;
///
/// use capstead::{Context, Result};
///
/// /// Has the order cancelled in an hour, unless it is paid before.
/// fn order(ctx: &Context) -> Result<()> {
///     ctx.storage().put("state", "ordered")?;
///     ctx.alarms().set_after("cancel", Duration::from_secs(3_600))
/// }
///
/// fn pay(ctx: &Context) -> Result<()> {
///     ctx.storage().put("state", "paid")?;
///     ctx.alarms().cancel("cancel").map(drop)
/// }
/// ```
///
/// Times are those of the host's clock. `docs/alarms.md` says how exact they are, what happens when
/// the clock is set, and when an alarm that fails is tried again.
#[derive(Clone)]
pub struct Alarms(Rc<Instance>);

impl Alarms {
    pub(in crate::host) fn new(instance: Rc<Instance>) -> Self {
        Self(instance)
    }

    /// Sets the alarm for a time in milliseconds since 1970, in the place of the one with that
    /// name. A time that has passed means as soon as possible. In the alarm's own method this keeps
    /// it: it fires again when the method has ended.
    ///
    /// # Errors
    /// Nothing was set then: `key-length:` when the name is empty or has more than 256 bytes;
    /// `over-quota:` when the object would have more than 1,000 alarms; `batch-size:` when the turn
    /// would write too much; `low-space:` when the disk is nearly full; `outside-turn:`; or when
    /// the instance ended.
    pub fn set(&self, name: &str, at_ms: u64) -> Result<()> {
        alarms::set(&self.0, name, at_ms)
    }

    /// Sets the alarm for the time at which so long will have passed, by the clock of the host.
    ///
    /// # Errors
    /// As [`Alarms::set`].
    pub fn set_after(&self, name: &str, after: Duration) -> Result<()> {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.set(name, self.0.vat.clock.now_ms().saturating_add(after))
    }

    /// The alarm with that name, until it has fired without an error.
    ///
    /// # Errors
    /// `key-length:`, `damaged:`, or that the storage can't be read.
    pub fn get(&self, name: &str) -> Result<Option<Alarm>> {
        Ok(alarms::get(&self.0, name)?.map(|record| record.alarm))
    }

    /// All alarms in the order of their names, dead ones too.
    ///
    /// # Errors
    /// `damaged:`, or that the storage can't be read.
    pub fn list(&self) -> Result<Vec<Alarm>> {
        let shown = |record: AlarmRecord| record.alarm;
        Ok(alarms::list(&self.0)?.into_iter().map(shown).collect())
    }

    /// Removes the alarm; whether there was one. A method that runs for it goes on.
    ///
    /// # Errors
    /// `key-length:`, `outside-turn:`, or when the instance ended: nothing was removed.
    pub fn cancel(&self, name: &str) -> Result<bool> {
        alarms::cancel(&self.0, name)
    }
}

impl fmt::Debug for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarms").field("class", &self.0.spec.class.name).finish_non_exhaustive()
    }
}
