//! `capstead grants`, `grant` and `revoke`: show who can reach an object, and add or remove a
//! grant.

mod below;
mod shown;
mod words;

use capstead_client::Terms;
use capstead_client::sturdyref::{Caveats, GrantId, Sturdyref, VerifyingKey};
use clap::Args;

use super::method_names::MethodNames;
use super::operator::{self, Data, Failure};
use super::output::check_stdout;
use super::transfer;
use crate::error::Reason;
use crate::host::Class;
use crate::id::ObjectId;
use crate::schema::admin_capnp::host_admin::grant_results;
use crate::schema::admin_capnp::{admin, host_admin};
use crate::server::DEFAULT_LISTEN;
use crate::storage::Access;
use crate::sturdyref::GrantRef;
use crate::supervisor::owner_of;
use shown::{Shown, tree};
pub(super) use shown::{hex, time};
use words::{Key, parse_grant, parse_key, parse_method, parse_object, parse_until};
pub(super) use words::{Object, parse_object_of};

pub(super) const AFTER_HELP: &str = "\
An OBJECT is CLASS/NAME, the 32 digits of an object's id, or CLASS alone: that is the class's namespace, \
from which all its objects can be reached. This works while the server serves or not. A method's name \
stands in its schema, with or without that of its interface; a name that isn't there is answered with those \
that are. Of a CLASS, --method is about the namespace: byName, tryGet and create; --object-method is about the \
objects that are reached by it.
With --below, it is about all that was made from a grant, over all objects and hosts, also what survives it.

  capstead grants Counter
  capstead grants Counter --below 3c5f5e31d6b0412a9d4fd6a77d2a5a0e
  capstead grant Counter/visits --label 'for Ada' --until 30d --method Counter.read
  capstead grant Counter --method byName --object-method read
  capstead revoke Counter/visits 3c5f5e31d6b0412a9d4fd6a77d2a5a0e";

/// The object whose grants to show.
#[derive(Args, Clone, Debug)]
pub(crate) struct Show {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, an object's id, or CLASS
    #[arg(value_parser = parse_object)]
    object: Object,
    /// Show the grants of all objects that were made from this grant of OBJECT, directly or not
    #[arg(long, value_name = "GRANT", value_parser = parse_grant)]
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
    /// Name of the holder, or the purpose of the grant
    #[arg(long, default_value = "")]
    label: String,
    /// The time for which it works: a duration such as 30d, or a time such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<u64>,
    /// A method that may be called: Counter.read, or read; or the interface's id and the method's
    /// number, 0xdc0f9593bdd2956b:2. May be given more than once [default: all]
    #[arg(long = "method", value_name = "METHOD", value_parser = parse_method)]
    methods: Vec<String>,
    /// For a CLASS: a method of its objects that may be called, written as for --method, which
    /// applies to the namespace itself; may be given more than once [default: all]
    #[arg(long = "object-method", value_name = "METHOD", value_parser = parse_method)]
    object_methods: Vec<String>,
    /// An Ed25519 public key, 64 hexadecimal digits: restoring the reference requires a proof by
    /// its secret key
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    holder: Option<Key>,
    /// Grants made from this one may survive its revocation
    #[arg(long)]
    allow_independent: bool,
    /// The host:port in the reference, at which clients reach the cluster [default: the address of
    /// the running server, or 127.0.0.1:4000 if none runs]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Clients reach that address by TLS
    #[arg(long, requires = "address")]
    tls: bool,
}

/// The grant to revoke.
#[derive(Args, Clone, Debug)]
pub(crate) struct Revoke {
    #[command(flatten)]
    data: Data,
    /// CLASS/NAME, an object's id, or CLASS
    #[arg(value_parser = parse_object)]
    object: Object,
    /// The grant's id: 32 hexadecimal digits, as `capstead grants` shows it
    #[arg(value_parser = parse_grant)]
    grant: ObjectId,
    /// Also revoke the grants made from it that may survive it, over all objects and hosts
    #[arg(long)]
    below: bool,
}

/// Returns once they are shown.
pub(super) fn show(options: &Show, classes: &[Class]) -> u8 {
    let (data, object) = (&options.data, &options.object);
    if let Some(grant) = options.below {
        let from = reference(object, grant);
        let shown = with_all(data, Access::Read, &[], async |admin, hosts| {
            let found = below::find(admin, hosts, from).await?;
            if found.is_empty() {
                let own = transfer::host(admin, owner_of(object.id.home_shard().0, hosts));
                check_target(&own, object).await?;
            }
            let lines = found.iter().map(|found| format!("\n  {}", found.said()));
            let count = plural(found.len() as u64, "grant");
            let grant = hex(grant.as_bytes());
            Ok(lines.fold(format!("{count} made from {grant}"), |text, line| text + &line))
        });
        return operator::end(shown, None);
    }
    let shown = with(data, Access::Read, classes, object, async |host| {
        let names = MethodNames::ask(&host, object.id).await?;
        let grants = listed(&host, object, &names).await?;
        if grants.is_empty() {
            check_there(&host, object).await?;
        }
        Ok(tree(&object.said, &grants))
    });
    operator::end(shown, None)
}

async fn listed(
    host: &host_admin::Client,
    object: &Object,
    names: &MethodNames,
) -> Result<Vec<Shown>, Failure> {
    let (mut grants, mut after) = (Vec::new(), Vec::new());
    loop {
        let mut request = host.grants_request();
        request.get().set_target(object.id.as_bytes());
        request.get().set_after(&after);
        let reply = request.send().promise.await?;
        for grant in reply.get()?.get_grants()? {
            grants.push(Shown::read(grant, names)?);
        }
        after = reply.get()?.get_next()?.to_vec();
        if after.is_empty() {
            return Ok(grants);
        }
    }
}

/// As [`check_there`], for a target that may have grants.
async fn check_target(host: &host_admin::Client, object: &Object) -> Result<(), Failure> {
    let grants = listed(host, object, &MethodNames::default()).await?;
    if grants.is_empty() { check_there(host, object).await } else { Ok(()) }
}

/// Checks that a target without grants exists: an object that was never written looks the same as
/// one of a misspelt class.
pub(super) async fn check_there(host: &host_admin::Client, object: &Object) -> Result<(), Failure> {
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

/// Returns once the grant is durable, and its reference shown.
pub(super) fn make(options: &Make, classes: &[Class]) -> u8 {
    let object = &options.object;
    if let Err(closed) = check_stdout("the reference") {
        return operator::end(Err(closed), None);
    }
    let made = with_all(&options.data, Access::Full, classes, async |admin, hosts| {
        let host = transfer::host(admin, owner_of(object.id.home_shard().0, hosts));
        let mut request = host.grant_request();
        let mut params = request.get();
        params.set_target(options.object.id.as_bytes());
        params.set_is_namespace(options.object.is_namespace);
        options.terms()?.write(params.reborrow().init_terms());
        let mut methods = params.reborrow().init_methods(options.methods.len() as u32);
        for (at, method) in (0..).zip(&options.methods) {
            methods.set(at, method);
        }
        let mut methods = params.init_object_methods(options.object_methods.len() as u32);
        for (at, method) in (0..).zip(&options.object_methods) {
            methods.set(at, method);
        }
        let reply = match request.send().promise.await {
            Ok(reply) => reply,
            Err(error) => {
                check_target(&host, &options.object).await?;
                return Err(error.into());
            }
        };
        let reply = reply.get()?;
        let shown = options.text(reply).and_then(|text| {
            operator::show(&text).map_err(|error| {
                Failure::Cannot(format!(
                    "the reference can't be written to standard output, and was revoked again: {error}"
                ))
            })
        });
        if shown.is_err() {
            // A secret that was never shown is of no use, and may lie in a file that was cut short.
            revoke_one(&host, options.object.id, reply.get_grant()?).await?;
        }
        shown.map(|()| String::new())
    });
    operator::end(made, None)
}

/// Revokes one grant.
async fn revoke_one(
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
        if self.address.is_none() && reply.has_text() {
            return Ok(reply.get_text()?.to_string().map_err(capnp::Error::from)?);
        }
        let address = self.address.clone().unwrap_or_else(|| DEFAULT_LISTEN.to_string());
        let reference = Sturdyref::from_bytes(reply.get_sturdy_ref()?);
        let expose = if self.tls { Sturdyref::expose_tls_text } else { Sturdyref::expose_text };
        let text = reference.and_then(|reference| expose(&reference, &address));
        text.map_err(|_| {
            let reason = "the address must be host:port; the grant was revoked again";
            Failure::Cannot(reason.to_owned())
        })
    }

    fn terms(&self) -> Result<Terms, Failure> {
        let mut terms = Terms::new(&*self.label);
        if let Some(until) = self.until {
            terms = terms.caveats(&Caveats::not_after(until));
        }
        if let Some(holder) = &self.holder {
            let key = VerifyingKey::from_bytes(holder);
            let key = key.map_err(|error| Failure::Cannot(format!("--holder: {error}")))?;
            terms = terms.holder(key)?;
        }
        Ok(if self.allow_independent { terms.allow_independent() } else { terms })
    }
}

/// A grant of an object, by the id that was given as 32 digits.
fn reference(object: &Object, grant: ObjectId) -> GrantRef {
    GrantRef::new(object.id, GrantId::from_bytes(*grant.as_bytes()))
}

/// Returns once it is revoked, durably and on every host.
pub(super) fn revoke(options: &Revoke) -> u8 {
    let (data, object, grant) = (&options.data, &options.object, options.grant);
    let said = format!("revoked, with all that depended on it: {}", hex(grant.as_bytes()));
    if options.below {
        let revoked = with_all(data, Access::Full, &[], async |admin, hosts| {
            let own = transfer::host(admin, owner_of(object.id.home_shard().0, hosts));
            // First, so that its holder makes no more while the others are searched for.
            let was_there = still_there(revoke_one(&own, object.id, grant.as_bytes()).await)?;
            let below = below::revoke_all(admin, hosts, reference(object, grant)).await;
            let count = below
                .map_err(|failure| if was_there { not_all(&said, failure) } else { failure })?;
            if !was_there && count.is_none() {
                check_target(&own, object).await?;
                return Err(Failure::Cannot(
                    "there is no grant of this id, and none that was made from it".to_owned(),
                ));
            }
            let count = count.unwrap_or_default();
            Ok(format!(
                "{said}; and {} made from it that may survive it",
                plural(count as u64, "grant")
            ))
        });
        return operator::end(revoked, None);
    }
    let revoked = with(data, Access::Full, &[], object, async |host| {
        if let Err(error) = revoke_one(&host, object.id, grant.as_bytes()).await {
            check_target(&host, object).await?;
            return Err(error);
        }
        Ok(said)
    });
    operator::end(revoked, None)
}

/// The failure of a search that came after the revocation itself.
fn not_all(said: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Cannot(text) => Failure::Cannot(format!(
            "{said}; but not all was found that was made from it and may survive it: {text}"
        )),
        Failure::Storage(reason) => Failure::Storage(reason),
    }
}

/// Tells whether the grant still existed and was revoked: it may have ended with another one
/// before.
fn still_there(revoked: Result<(), Failure>) -> Result<bool, Failure> {
    match revoked {
        Err(Failure::Cannot(text)) if is_no_such_grant(&text) => Ok(false),
        revoked => revoked.map(|()| true),
    }
}

fn is_no_such_grant(text: &str) -> bool {
    matches!(Reason::parse(text), Some((Reason::NoSuchGrant, _)))
}

pub(super) fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Runs the work with the host that has the object, where these classes of the program matter.
pub(super) fn with(
    data: &Data,
    access: Access,
    classes: &[Class],
    object: &Object,
    work: impl AsyncFnOnce(host_admin::Client) -> Result<String, Failure>,
) -> Result<String, Failure> {
    with_all(data, access, classes, async |admin, hosts| {
        work(transfer::host(admin, owner_of(object.id.home_shard().0, hosts))).await
    })
}

/// Runs the work with all hosts; it is given their number.
fn with_all(
    data: &Data,
    access: Access,
    classes: &[Class],
    work: impl AsyncFnOnce(&admin::Client, u16) -> Result<String, Failure>,
) -> Result<String, Failure> {
    operator::block_on(async {
        let opened = data.open_knowing(access, classes).await?;
        let done = async {
            let described = opened.admin().describe_request().send().promise.await?;
            work(opened.admin(), described.get()?.get_hosts()).await
        };
        let done = done.await;
        opened.close().await?;
        done
    })
}
