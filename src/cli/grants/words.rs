//! The values on these verbs' command lines: objects, grants, methods, keys and times.

use std::time::{Duration, UNIX_EPOCH};

use ed25519_dalek::VerifyingKey;

use crate::cli::export::object_id;
use crate::host::parse_number;
use crate::id::{ObjectId, Pool};

/// An object or a namespace, which can have grants.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Object {
    /// As it was typed.
    pub(in crate::cli) said: String,
    pub(in crate::cli) id: ObjectId,
    pub(in crate::cli) is_namespace: bool,
}

/// A public key, already checked.
pub(super) type Key = [u8; 32];

pub(super) fn parse_object(text: &str) -> Result<Object, String> {
    let (id, is_namespace) = match (text.split_once('/'), object_id(text)) {
        (_, Ok(id)) => (id, false),
        (Some(("", _) | (_, "")), _) => return Err("an object is CLASS/NAME".to_owned()),
        (Some((class, name)), _) => (ObjectId::named(Pool::default(), class, name), false),
        (None, _) if text.is_empty() => return Err("the class has no name".to_owned()),
        (None, _) => (ObjectId::namespace(Pool::default(), text), true),
    };
    Ok(Object { said: text.to_owned(), id, is_namespace })
}

/// The same for `things` that belong to objects, and not to namespaces.
pub(in crate::cli) fn parse_object_of(
    things: &'static str,
) -> impl Fn(&str) -> Result<Object, String> + Clone {
    move |text| {
        let object = parse_object(text)?;
        if object.is_namespace {
            return Err(format!("{things} belong to objects: say CLASS/NAME, or an object's id"));
        }
        Ok(object)
    }
}

pub(super) fn parse_until(text: &str) -> Result<u64, String> {
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

/// A name or a number. Only the host knows whether such a method exists.
pub(super) fn parse_method(text: &str) -> Result<String, String> {
    let is_name = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let is_named = text.split('.').count() <= 2 && text.split('.').all(is_name);
    if is_named || parse_number(text).is_some() {
        return Ok(text.to_owned());
    }
    Err("a method is its name in the schema, such as Counter.read or read; or the id of its interface and its \
         number: 0xdc0f9593bdd2956b:2"
        .to_owned())
}

pub(super) fn parse_key(text: &str) -> Result<Key, String> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let is_key = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = is_key.then(|| (0..32).map(byte).collect()).flatten();
    let key = bytes.and_then(|bytes| bytes.try_into().ok());
    let key: Key = key.ok_or_else(|| "a public key has 64 hexadecimal digits".to_owned())?;
    match VerifyingKey::from_bytes(&key) {
        Ok(_) => Ok(key),
        Err(_) => Err(
            "these digits are no public key of Ed25519: look whether they were copied whole, and \
                       that they are the public half"
                .to_owned(),
        ),
    }
}

pub(super) fn parse_grant(text: &str) -> Result<ObjectId, String> {
    object_id(text).map_err(|_| {
        "a grant's id has 32 hexadecimal digits; `capstead grants` has those of an object"
            .to_owned()
    })
}
