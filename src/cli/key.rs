//! `capstead key`: lists the keys that sign references, makes a new one, and revokes one.
//!
//! It prints only ids, which every reference shows anyway; never a key.

use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::operator::{self, Data, Failure};
use crate::error::failed;
use crate::schema::admin_capnp::{admin, key};
use crate::server::OpenedData;
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
Rotate as a habit: what older keys signed stays good, and new references are signed by the new key. Revoke \
in an emergency, when somebody may have the key: whatever it signed is refused from then on, also what you \
gave out yourself. Capabilities that live go on until their connection ends or the server is restarted.

  capstead key rotate
  capstead key list
  capstead key revoke 8619477e3771c981";

/// The operation on the keys.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Show the ids of the keys, the oldest first; the last one signs
    List(Data),
    /// Make a new key, which signs from now on; references signed by the others stay valid
    Rotate(Data),
    /// Refuse from now on all references that a key signed, on every host
    Revoke {
        /// The key's id: 16 hexadecimal digits
        #[arg(value_parser = parse_id)]
        id: Id,
        #[command(flatten)]
        data: Data,
    },
}

/// The id as references contain it.
type Id = u64;

fn parse_id(text: &str) -> Result<Id, String> {
    let is_one = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let id = Id::from_str_radix(text, 16).ok().filter(|_| is_one);
    id.ok_or_else(|| {
        "a key's id has 16 hexadecimal digits; `capstead key list` has them".to_owned()
    })
}

/// Returns once it is done, and durable.
pub(super) fn run(options: &Options) -> u8 {
    let done = operator::block_on(async {
        match &options.what {
            What::List(data) => {
                with(data, Access::Read, async |opened| list(opened.admin()).await).await
            }
            What::Rotate(data) => with(data, Access::Full, rotate).await,
            What::Revoke { id, data } => {
                with(data, Access::Full, async |opened| revoke(opened, *id).await).await
            }
        }
    });
    operator::end(done, None)
}

async fn with(
    data: &Data,
    access: Access,
    work: impl AsyncFnOnce(&OpenedData) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let opened = data.open(access).await?;
    let done = work(&opened).await;
    opened.close().await?;
    done
}

async fn list(admin: &admin::Client) -> Result<String, Failure> {
    let reply = admin.keys_request().send().promise.await?;
    let keys = reply.get()?.get_keys()?;
    let mut lines = vec!["key               made".to_owned()];
    for (at, key) in (1..).zip(keys) {
        let signs = if at == keys.len() { "  signs" } else { "" };
        lines.push(format!("{}  {}{signs}", id(key)?, made(key.get_created())));
    }
    Ok(lines.join("\n"))
}

async fn rotate(opened: &OpenedData) -> Result<String, Failure> {
    let reply = opened.admin().rotate_key_request().send().promise.await?;
    let id = id(reply.get()?.get_key()?)?;
    Ok(format!(
        "{id} signs from now on, and what older keys signed stays good; the next start of the server \
         prints references that it signed"
    ))
}

async fn revoke(opened: &OpenedData, id: Id) -> Result<String, Failure> {
    let admin = opened.admin();
    let mut request = admin.revoke_key_request();
    request.get().set_id(&id.to_be_bytes());
    request.send().promise.await?;
    let then = if opened.is_served() {
        "restart the server: capabilities that live go on until then, and it prints the references of classes \
         that the last key below signed"
    } else {
        "the next start of the server prints the references of classes that the last key below signed"
    };
    Ok(format!("what {id:016x} signed is refused from now on; {then}\n\n{}", list(admin).await?))
}

fn id(key: key::Reader<'_>) -> capnp::Result<String> {
    let id = key.get_id()?.try_into().map(Id::from_be_bytes);
    Ok(format!("{:016x}", id.map_err(|_| failed("a key's id has 8 bytes"))?))
}

fn made(created_ms: u64) -> String {
    let made = UNIX_EPOCH.checked_add(Duration::from_millis(created_ms));
    match made.filter(|_| created_ms > 0) {
        Some(made) => humantime::format_rfc3339_seconds(made).to_string(),
        None => "unknown".to_owned(),
    }
}
