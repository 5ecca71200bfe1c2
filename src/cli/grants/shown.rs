//! Grants in the form in which people read them.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::struct_list;
use capstead_client::sturdyref::Method;

use super::plural;
use crate::cli::method_names::MethodNames;
use crate::cli::operator::Failure;
use crate::schema::facet_capnp::{caveats, grant, methods};

/// The line that shows a grant.
pub(super) struct Shown {
    id: Vec<u8>,
    parent: Vec<u8>,
    text: String,
}

impl Shown {
    pub(super) fn read(grant: grant::Reader<'_>, names: &MethodNames) -> Result<Self, Failure> {
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
        caveats_said(grant.get_caveats()?, names, &mut say)?;
        if grant.get_revoked() {
            say("REVOKED");
        }
        Ok(Self { id: grant.get_id()?.to_vec(), parent: grant.get_parent()?.to_vec(), text })
    }
}

fn caveats_said(
    caveats: caveats::Reader<'_>,
    names: &MethodNames,
    say: &mut impl FnMut(&str),
) -> Result<(), Failure> {
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
        say(&format!("only {}", methods_said(caveats.get_methods()?, names)?));
    }
    if caveats.has_object_methods() {
        let methods = methods_said(caveats.get_object_methods()?, names)?;
        say(&format!("of its objects only {methods}"));
    }
    Ok(())
}

fn methods_said(
    list: struct_list::Reader<'_, methods::Owned>,
    names: &MethodNames,
) -> Result<String, Failure> {
    let mut methods = Vec::new();
    for one in list {
        let interface = one.get_interface();
        let ordinals = one.get_ordinals()?.iter();
        methods.extend(ordinals.map(|ordinal| names.said(Method::new(interface, ordinal))));
    }
    Ok(if methods.is_empty() { "no method".to_owned() } else { methods.join(" ") })
}

/// A tree with each grant below the one that it was made from.
pub(super) fn tree(said: &str, grants: &[Shown]) -> String {
    let mut text = format!("{said}: {}", plural(grants.len() as u64, "grant"));
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

pub(in crate::cli) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A time for people.
pub(in crate::cli) fn time(ms: u64) -> String {
    let time: Option<SystemTime> = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    // A time too late to be written is shown as no limit.
    let time = time.filter(|_| ms < 253_402_300_800_000);
    time.map_or_else(
        || "for ever".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
