//! `capstead grants`, `grant` and `revoke`: who can reach an object, one more who can, and one less.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::struct_list;
use capstead_client::sturdyref::Sturdyref;
use clap::Args;

use super::below;
use super::export::object_id;
use super::operator::{self, Data, Failure};
use super::transfer;
use crate::id::{ObjectId, Pool};
use crate::schema::admin_capnp::host_admin::grant_results;
use crate::schema::admin_capnp::{admin, host_admin};
use crate::schema::facet_capnp::{caveats, grant, methods, terms};
use crate::server::DEFAULT_LISTEN;
use crate::storage::Access;
use crate::supervisor::owner_of;

pub(super) const AFTER_HELP: &str = "\
An OBJECT is CLASS/NAME, the 32 digits of an object's id, or CLASS alone: that is the class's namespace, \
from which all its objects can be reached. This works while the server serves or not. A method's number \
stands behind its @ in the schema. The id of an interface is TYPE_ID of its client in Rust; or \
`capnp compile -I DIR -ocapnp FILE` says it, where DIR/capstead is the folder `schema` of Capstead's sources.
With --below, it is about all that was made from a grant, over all objects and hosts, also what survives it.

  capstead grants Counter
  capstead grants Counter --below 3c5f5e31d6b0412a9d4fd6a77d2a5a0e
  capstead grant Counter/visits --label 'for Ada' --until 30d --method 0xdc0f9593bdd2956b:2
  capstead revoke Counter/visits 3c5f5e31d6b0412a9d4fd6a77d2a5a0e";

/// Whose grants to show.
#[derive(Args, Clone, Debug)]
pub(crate) struct Show {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, an object's id, or CLASS
    #[arg(value_parser = parse_object)]
    object: Object,
    /// Those of all objects that were made from this grant of OBJECT, directly or not
    #[arg(long, value_name = "GRANT", value_parser = object_id)]
    below: Option<ObjectId>,
}

/// The grant to make.
#[derive(Args, Clone, Debug)]
pub(crate) struct Make {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, an object's id, or CLASS
    #[arg(value_parser = parse_object)]
    object: Object,
    /// The one who gets it, or the purpose of it
    #[arg(long, default_value = "")]
    label: String,
    /// The time for which it works: a duration such as 30d, or a time such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<u64>,
    /// A method that may be called, as the interface's id and the method's number, 0xdc0f9593bdd2956b:2;
    /// may be given more than once [default: all]
    #[arg(long = "method", value_name = "ID:NUMBER", value_parser = parse_method)]
    methods: Vec<(u64, u16)>,
    /// An Ed25519 public key, 64 hexadecimal digits: restoring the reference takes a proof by its secret
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    holder: Option<Key>,
    /// Grants that are made from this one may survive it
    #[arg(long)]
    allow_independent: bool,
    /// The host:port in the reference, where its cluster listens, if the server doesn't serve now
    #[arg(long, value_name = "ADDRESS", default_value_t = DEFAULT_LISTEN.to_string())]
    address: String,
    /// That address is spoken to by TLS
    #[arg(long)]
    tls: bool,
}

/// The grant to take back.
#[derive(Args, Clone, Debug)]
pub(crate) struct Revoke {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, an object's id, or CLASS
    #[arg(value_parser = parse_object)]
    object: Object,
    /// The grant's id: 32 hexadecimal digits; `capstead grants` has them
    #[arg(value_parser = object_id)]
    grant: ObjectId,
    /// Also what was made from it and may survive it, over all objects and hosts
    #[arg(long)]
    below: bool,
}

/// The object of which somebody can have a grant.
#[derive(Clone, Debug)]
struct Object {
    said: String,
    id: ObjectId,
    is_namespace: bool,
}

/// A public key.
type Key = [u8; 32];

fn parse_object(text: &str) -> Result<Object, String> {
    let (id, is_namespace) = match (text.split_once('/'), object_id(text)) {
        (_, Ok(id)) => (id, false),
        (Some(("", _) | (_, "")), _) => return Err("an object is CLASS/NAME".to_owned()),
        (Some((class, name)), _) => (ObjectId::named(Pool::default(), class, name), false),
        (None, _) if text.is_empty() => return Err("the class has no name".to_owned()),
        (None, _) => (ObjectId::namespace(Pool::default(), text), true),
    };
    Ok(Object { said: text.to_owned(), id, is_namespace })
}

fn parse_until(text: &str) -> Result<u64, String> {
    let time = match humantime::parse_duration(text) {
        Ok(duration) => crate::clock::Clock::real().now_ms().checked_add(millis(duration)),
        Err(_) => humantime::parse_rfc3339_weak(text)
            .ok()
            .and_then(|time| Some(millis(time.duration_since(UNIX_EPOCH).ok()?))),
    };
    let time = time.ok_or_else(|| {
        "use a duration such as 30d, or a time such as 2030-01-31T12:00:00Z".to_owned()
    })?;
    if time <= crate::clock::Clock::real().now_ms() {
        return Err("that time is over: the reference would never work".to_owned());
    }
    Ok(time)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn parse_method(text: &str) -> Result<(u64, u16), String> {
    let parse = || {
        let (interface, ordinal) = text.split_once(':')?;
        let interface = u64::from_str_radix(interface.strip_prefix("0x")?, 16).ok()?;
        Some((interface, ordinal.parse().ok()?))
    };
    parse().ok_or_else(|| {
        "a method is the id of its interface and its number: 0xdc0f9593bdd2956b:2".to_owned()
    })
}

fn parse_key(text: &str) -> Result<Key, String> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let is_key = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = is_key.then(|| (0..32).map(byte).collect()).flatten();
    let key = bytes.and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| "a public key has 64 hexadecimal digits".to_owned())
}

/// Returns when they are shown.
pub(super) fn show(options: &Show) -> u8 {
    let (data, object) = (&options.data, &options.object);
    if let Some(grant) = options.below {
        let from = (object.id, grant);
        let shown = with_all(data, Access::Read, async |admin, hosts| {
            let found = below::find(admin, hosts, from).await?;
            let lines = found.iter().map(|found| format!("\n  {}", found.said()));
            let count = plural(found.len(), "grant");
            let grant = hex(grant.as_bytes());
            Ok(lines.fold(format!("{count} made from {grant}"), |text, line| text + &line))
        });
        return operator::end(shown, None);
    }
    let shown = with(data, Access::Read, object, async |host| {
        let grants = listed(&host, object).await?;
        if grants.is_empty() {
            check_there(&host, object).await?;
        }
        Ok(tree(object, &grants))
    });
    operator::end(shown, None)
}

async fn listed(host: &host_admin::Client, object: &Object) -> Result<Vec<Shown>, Failure> {
    let (mut grants, mut after) = (Vec::new(), Vec::new());
    loop {
        let mut request = host.grants_request();
        request.get().set_target(object.id.as_bytes());
        request.get().set_after(&after);
        let reply = request.send().promise.await?;
        for grant in reply.get()?.get_grants()? {
            grants.push(Shown::read(grant)?);
        }
        after = reply.get()?.get_next()?.to_vec();
        if after.is_empty() {
            return Ok(grants);
        }
    }
}

/// Checks that there is what has no grants: an object that was never written looks the same as one
/// of a misspelt class.
async fn check_there(host: &host_admin::Client, object: &Object) -> Result<(), Failure> {
    let mut request = host.present_request();
    request.get().init_ids(1).set(0, object.id.as_bytes());
    let reply = request.send().promise.await?;
    if !object.is_namespace && !reply.get()?.get_ids()?.is_empty() {
        return Ok(());
    }
    let what = if object.is_namespace { "class" } else { "object" };
    Err(Failure::Cannot(format!(
        "there is no {what} {} in these data; upper and lower case are as in the program",
        object.said
    )))
}

/// Returns when the grant is durable, and its reference shown.
pub(super) fn make(options: &Make) -> u8 {
    let made = with(&options.data, Access::Full, &options.object, async |host| {
        let mut request = host.grant_request();
        let mut params = request.get();
        params.set_target(options.object.id.as_bytes());
        params.set_is_namespace(options.object.is_namespace);
        options.fill(params.init_terms());
        let reply = request.send().promise.await?;
        let reply = reply.get()?;
        let shown = options.text(reply).and_then(|text| {
            operator::show(&text).map_err(|error| {
                Failure::Cannot(format!(
                    "the reference can't be written to standard output, and was revoked again: {error}"
                ))
            })
        });
        if shown.is_err() {
            // A secret that nobody has is of no use, and may lie in a file that was cut short.
            revoke_one(&host, options.object.id, reply.get_grant()?).await?;
        }
        shown.map(|()| String::new())
    });
    operator::end(made, None)
}

/// Takes one grant back.
pub(super) async fn revoke_one(
    host: &host_admin::Client,
    target: ObjectId,
    grant: &[u8],
) -> Result<(), Failure> {
    let mut request = host.revoke_request();
    request.get().set_target(target.as_bytes());
    request.get().set_grant(grant);
    request.send().promise.await?;
    Ok(())
}

impl Make {
    fn text(&self, reply: grant_results::Reader<'_>) -> Result<String, Failure> {
        if reply.has_text() {
            return Ok(reply.get_text()?.to_string().map_err(capnp::Error::from)?);
        }
        let reference = Sturdyref::from_bytes(reply.get_sturdy_ref()?);
        let expose = if self.tls { Sturdyref::expose_tls_text } else { Sturdyref::expose_text };
        let text = reference.and_then(|reference| expose(&reference, &self.address));
        text.map_err(|_| {
            let reason = "the address must be host:port; the grant was revoked again";
            Failure::Cannot(reason.to_owned())
        })
    }

    fn fill(&self, mut terms: terms::Builder<'_>) {
        terms.set_label(&*self.label);
        terms.set_allow_independent(self.allow_independent);
        let mut caveats = terms.init_caveats();
        if let Some(until) = self.until {
            caveats.set_not_after(until);
        }
        if let Some(holder) = &self.holder {
            caveats.reborrow().init_holders(1).set(0, holder);
        }
        if self.methods.is_empty() {
            return;
        }
        let mut methods = caveats.init_methods(self.methods.len() as u32);
        for (at, (interface, ordinal)) in (0..).zip(&self.methods) {
            let mut one = methods.reborrow().get(at);
            one.set_interface(*interface);
            one.init_ordinals(1).set(0, *ordinal);
        }
    }
}

/// Returns when it is revoked, durably and on every host.
pub(super) fn revoke(options: &Revoke) -> u8 {
    let (data, object, grant) = (&options.data, &options.object, options.grant);
    let said = format!("revoked, with all that depended on it: {}", hex(grant.as_bytes()));
    if options.below {
        let revoked = with_all(data, Access::Full, async |admin, hosts| {
            let found = below::find(admin, hosts, (object.id, grant)).await?;
            let own = transfer::host(admin, owner_of(object.id.home_shard().0, hosts));
            let was_there = still_there(revoke_one(&own, object.id, grant.as_bytes()).await)?;
            if !was_there && found.is_empty() {
                check_there(&own, object).await?;
                return Err(Failure::Cannot(
                    "there is no grant of this id, and none that was made from it".to_owned(),
                ));
            }
            let count = below::revoke(admin, hosts, &found).await?;
            Ok(format!("{said}; and {} made from it that may survive it", plural(count, "grant")))
        });
        return operator::end(revoked, None);
    }
    let revoked = with(data, Access::Full, object, async |host| {
        if let Err(error) = revoke_one(&host, object.id, grant.as_bytes()).await {
            if listed(&host, object).await?.is_empty() {
                check_there(&host, object).await?;
            }
            return Err(error);
        }
        Ok(said)
    });
    operator::end(revoked, None)
}

/// Tells whether a grant was there to be revoked: it may have ended with another one before.
pub(super) fn still_there(revoked: Result<(), Failure>) -> Result<bool, Failure> {
    match revoked {
        Err(Failure::Cannot(text)) if text.contains("no-such-grant:") => Ok(false),
        revoked => revoked.map(|()| true),
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Works with the host that has the object.
fn with(
    data: &Data,
    access: Access,
    object: &Object,
    work: impl AsyncFnOnce(host_admin::Client) -> Result<String, Failure>,
) -> Result<String, Failure> {
    with_all(data, access, async |admin, hosts| {
        work(transfer::host(admin, owner_of(object.id.home_shard().0, hosts))).await
    })
}

/// Works with all hosts; their number.
fn with_all(
    data: &Data,
    access: Access,
    work: impl AsyncFnOnce(&admin::Client, u16) -> Result<String, Failure>,
) -> Result<String, Failure> {
    operator::block_on(async {
        let operated = data.open(access).await?;
        let done = async {
            let described = operated.admin().describe_request().send().promise.await?;
            work(operated.admin(), described.get()?.get_hosts()).await
        };
        let done = done.await;
        operated.close().await?;
        done
    })
}

/// The parts of a grant that are shown.
struct Shown {
    id: Vec<u8>,
    parent: Vec<u8>,
    text: String,
}

impl Shown {
    fn read(grant: grant::Reader<'_>) -> Result<Self, Failure> {
        let label = grant.get_label()?.to_str().map_err(capnp::Error::from)?;
        let mut text = format!("{}  {:?}", hex(grant.get_id()?), label);
        let mut say = |part: &str| {
            let _ = write!(text, ", {part}");
        };
        say(&format!("made {}", time(grant.get_created())));
        match grant.get_last_restored() {
            0 => say("never restored"),
            restored => say(&format!("restored {}", time(restored))),
        }
        if !grant.get_namespace()?.is_empty() {
            say(&format!("by way of the namespace, grant {}", hex(grant.get_namespace()?)));
        }
        if grant.get_independent() {
            say("independent");
        }
        if grant.get_allow_independent() {
            say("others may survive it");
        }
        caveats_said(grant.get_caveats()?, &mut say)?;
        if grant.get_revoked() {
            say("REVOKED");
        }
        Ok(Self { id: grant.get_id()?.to_vec(), parent: grant.get_parent()?.to_vec(), text })
    }
}

fn caveats_said(caveats: caveats::Reader<'_>, say: &mut impl FnMut(&str)) -> Result<(), Failure> {
    if caveats.get_not_after() != u64::MAX {
        say(&format!("until {}", time(caveats.get_not_after())));
    }
    if caveats.get_dependent() {
        say("none survives it that is made by way of it");
    }
    for holder in caveats.get_holders()? {
        say(&format!("held by {}", hex(holder?)));
    }
    if caveats.has_methods() {
        say(&format!("only {}", methods_said(caveats.get_methods()?)?));
    }
    if caveats.has_object_methods() {
        say(&format!("of its objects only {}", methods_said(caveats.get_object_methods()?)?));
    }
    Ok(())
}

fn methods_said(list: struct_list::Reader<'_, methods::Owned>) -> Result<String, Failure> {
    let mut methods = Vec::new();
    for one in list {
        let interface = one.get_interface();
        methods.extend(one.get_ordinals()?.iter().map(|n| format!("{interface:#x}:{n}")));
    }
    Ok(if methods.is_empty() { "no method".to_owned() } else { methods.join(" ") })
}

/// The grants below those that they were made from.
fn tree(object: &Object, grants: &[Shown]) -> String {
    let mut text = format!("{}: {}", object.said, plural(grants.len(), "grant"));
    let is_known = |id: &[u8]| grants.binary_search_by(|grant| (*grant.id).cmp(id)).is_ok();
    let mut below: HashMap<&[u8], Vec<&Shown>> = HashMap::new();
    for grant in grants {
        let parent: &[u8] = if is_known(&grant.parent) { &grant.parent } else { &[] };
        below.entry(parent).or_default().push(grant);
    }
    let mut rest: Vec<(usize, &Shown)> =
        below.get(&[][..]).into_iter().flatten().rev().map(|grant| (1, *grant)).collect();
    while let Some((depth, grant)) = rest.pop() {
        let _ = write!(text, "\n{:indent$}{}", "", grant.text, indent = 2 * depth);
        let children = below.get(&*grant.id).into_iter().flatten().rev();
        rest.extend(children.map(|child| (depth + 1, *child)));
    }
    text
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A time for people.
pub(super) fn time(ms: u64) -> String {
    let time: Option<SystemTime> = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    // Later than what can be written is as good as never.
    let time = time.filter(|_| ms < 253_402_300_800_000);
    time.map_or_else(
        || "for ever".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
