//! `capstead requests`: shows the calls of an object that have a request id, or forgets their ids.

use std::fmt::Write;

use bytesize::ByteSize;
use capstead_client::sturdyref::Method;
use clap::Args;

use super::export::object_id;
use super::grants::{Object, check_there, hex, parse_object_of, plural, time, with};
use super::method_names::MethodNames;
use super::operator::{self, Data, Failure};
use crate::host::Class;
use crate::id::ObjectId;
use crate::schema::admin_capnp::{host_admin, request};
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
An OBJECT is CLASS/NAME, or the 32 digits of an object's id. This works while the server serves or not. Ids \
are forgotten by themselves, a day after their calls began unless --request-retention says otherwise. A call \
that is made again with a forgotten id is applied again, so forget those whose callers don't come back. The \
ids of calls that run stay.

  capstead requests Counter/visits
  capstead requests Counter/visits --clear --grant 3c5f5e31d6b0412a9d4fd6a77d2a5a0e";

/// The calls to show or to forget.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, or an object's id
    #[arg(value_parser = parse_object_of("request ids"))]
    object: Object,
    /// Forget the ids instead of showing them
    #[arg(long)]
    clear: bool,
    /// Only calls that came by this grant, or by one that was made from it
    #[arg(long, value_name = "GRANT", value_parser = object_id)]
    grant: Option<ObjectId>,
    /// Only this request id: 32 to 128 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = parse_id, conflicts_with = "grant")]
    id: Option<Bytes>,
}

/// The bytes of a request id.
#[derive(Clone, Debug)]
struct Bytes(Vec<u8>);

fn parse_id(text: &str) -> Result<Bytes, String> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let is_id = text.bytes().all(|digit| digit.is_ascii_hexdigit())
        && text.len().is_multiple_of(2)
        && (32..=128).contains(&text.len());
    let bytes: Option<Vec<u8>> = is_id.then(|| (0..text.len() / 2).map(byte).collect()).flatten();
    bytes.map(Bytes).ok_or_else(|| "a request id has 32 to 128 hexadecimal digits".to_owned())
}

/// Returns once they are shown, or forgotten durably.
pub(super) fn run(options: &Options, classes: &[Class]) -> u8 {
    let access = if options.clear { Access::Full } else { Access::Read };
    let done = with(&options.data, access, classes, &options.object, async |host| {
        if options.clear { options.clear(&host).await } else { options.show(&host).await }
    });
    operator::end(done, None)
}

impl Options {
    async fn show(&self, host: &host_admin::Client) -> Result<String, Failure> {
        let names = MethodNames::ask(host, self.object.id).await?;
        let (mut text, mut count, mut bytes, mut after) = (String::new(), 0, 0, 0);
        loop {
            let mut request = host.requests_request();
            request.get().set_target(self.object.id.as_bytes());
            request.get().set_after(after);
            let reply = request.send().promise.await?;
            let some = reply.get()?.get_requests()?;
            if some.is_empty() {
                break;
            }
            for call in some {
                after = call.get_number();
                if self.means(call)? {
                    count += 1;
                    bytes += call.get_bytes();
                    let _ = write!(text, "\n  {}", said(call, &names)?);
                }
            }
        }
        if after == 0 {
            check_there(host, &self.object).await?;
        }
        let (count, bytes) = (plural(count, "request id"), ByteSize(bytes));
        Ok(format!("{}: {count}, {bytes}{text}", self.object.said))
    }

    fn means(&self, call: request::Reader<'_>) -> Result<bool, Failure> {
        let mut is_of = true;
        if let Some(grant) = &self.grant {
            is_of = false;
            for found in call.get_grants()? {
                is_of |= found? == grant.as_bytes();
            }
        }
        let is_it = |id: &Bytes| Ok::<_, Failure>(id.0 == call.get_id()?);
        Ok(is_of && self.id.as_ref().map_or(Ok(true), is_it)?)
    }

    async fn clear(&self, host: &host_admin::Client) -> Result<String, Failure> {
        let mut request = host.clear_requests_request();
        request.get().set_target(self.object.id.as_bytes());
        if let Some(id) = &self.id {
            request.get().set_id(&id.0);
        }
        if let Some(grant) = &self.grant {
            request.get().set_grant(grant.as_bytes());
        }
        let reply = request.send().promise.await?;
        let (cleared, running) = (reply.get()?.get_cleared(), reply.get()?.get_running());
        if cleared + running == 0 {
            check_there(host, &self.object).await?;
        }
        let forgotten = format!("{}: forgot {}", self.object.said, plural(cleared, "request id"));
        Ok(match running {
            0 => forgotten,
            running => format!("{forgotten}, and left {running} whose calls run"),
        })
    }
}

fn said(call: request::Reader<'_>, names: &MethodNames) -> Result<String, Failure> {
    let stage = match call.get_stage().map_err(capnp::Error::from)? {
        request::Stage::Runs => "runs",
        request::Stage::CutShort => "was cut short",
        request::Stage::Replied => "replied",
        request::Stage::Failed => "failed",
    };
    let mut text = format!(
        "{}  {}, began {}, {stage}, {}",
        hex(call.get_id()?),
        names.said(Method::new(call.get_interface(), call.get_method())),
        time(call.get_began()),
        ByteSize(call.get_bytes()),
    );
    for (at, grant) in call.get_grants()?.iter().enumerate() {
        let grant = grant?;
        // Zeros stand for all who have no grant.
        let has_none = grant.iter().all(|byte| *byte == 0);
        let _ = match (at, has_none) {
            (0, true) => write!(text, ", without a grant"),
            (_, true) => write!(text, " made by somebody without one"),
            (0, false) => write!(text, ", by grant {}", hex(grant)),
            (_, false) => write!(text, " made from {}", hex(grant)),
        };
    }
    Ok(text)
}
