//! `capstead alarms`: shows the alarms of an object, those that failed too often included, or
//! cancels one.

use std::fmt::Write;

use clap::Args;

use super::grants::{Object, check_there, parse_object_of, plural, time, with};
use super::operator::{self, Data, Failure};
use crate::host::Class;
use crate::schema::admin_capnp::{alarm, host_admin};
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
An OBJECT is CLASS/NAME, or the 32 digits of an object's id. This works while the server serves or not. A dead \
alarm failed ten times, and is not tried again until its object sets it again. Cancel an alarm that takes the \
server down each time while the server is stopped.

  capstead alarms Counter/visits
  capstead alarms Counter/visits --cancel reset";

/// The object, and the alarm to cancel, if any.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, or an object's id
    #[arg(value_parser = parse_object_of("alarms"))]
    object: Object,
    /// Cancel the alarm with this name instead of showing all
    #[arg(long, value_name = "NAME")]
    cancel: Option<String>,
}

/// Returns once they are shown, or it is cancelled durably.
pub(super) fn run(options: &Options, classes: &[Class]) -> u8 {
    let object = &options.object;
    let access = if options.cancel.is_some() { Access::Full } else { Access::Read };
    let done = with(&options.data, access, classes, object, async |host| match &options.cancel {
        Some(name) => cancel(&host, object, name).await,
        None => show(&host, object).await,
    });
    operator::end(done, None)
}

async fn show(host: &host_admin::Client, object: &Object) -> Result<String, Failure> {
    let mut request = host.alarms_request();
    request.get().set_target(object.id.as_bytes());
    let reply = request.send().promise.await?;
    let alarms = reply.get()?.get_alarms()?;
    if alarms.is_empty() {
        check_there(host, object).await?;
    }
    let mut text = format!("{}: {}", object.said, plural(alarms.len().into(), "alarm"));
    for alarm in alarms {
        let _ = write!(text, "\n  {}", said(alarm)?);
    }
    Ok(text)
}

async fn cancel(host: &host_admin::Client, object: &Object, name: &str) -> Result<String, Failure> {
    let mut request = host.cancel_alarm_request();
    request.get().set_target(object.id.as_bytes());
    request.get().set_name(name);
    let reply = request.send().promise.await?;
    if reply.get()?.get_cancelled() {
        return Ok(format!("{}: cancelled {name:?}", object.said));
    }
    check_there(host, object).await?;
    Ok(format!("{}: no alarm {name:?}", object.said))
}

fn said(alarm: alarm::Reader<'_>) -> Result<String, Failure> {
    let name = alarm.get_name()?.to_string().map_err(capnp::Error::from)?;
    let mut text = format!("{name:?}, set for {}", time(alarm.get_set_for()));
    let (failed, is_dead) = (alarm.get_failed(), alarm.get_is_dead());
    if failed > 0 {
        let error = alarm.get_error()?.to_string().map_err(capnp::Error::from)?;
        let _ = write!(text, ", failed {}: {error:?}", plural(failed.into(), "time"));
    }
    if is_dead {
        text.push_str("; dead");
    } else if alarm.get_next() != alarm.get_set_for() {
        let _ = write!(text, "; next {}", time(alarm.get_next()));
    }
    Ok(text)
}
