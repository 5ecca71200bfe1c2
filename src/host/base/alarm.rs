//! The stored form of alarms, and the times at which they are tried.
//!
//! | key in `Alarms` | record |
//! |---|---|
//! | `00` | the number of the object's alarms (4) |
//! | `01` ‖ name | version (1) ‖ setting (8) ‖ set for (8) ‖ next try (8) ‖ failed tries (1) ‖ state (1) ‖ the last error |
//!
//! All numbers are big-endian, and times are milliseconds since 1970. State 0 has a record in `Due`
//! under the time of its next try; 1 is one that is tried no more; and a greater one is like 0,
//! after so many tries less one that could not begin. The setting's number tells it from
//! the next one. All of these records are written by one turn, so that an alarm and
//! its time are there together or not at all.
//!
//! It asks no clock, and never touches the storage itself.

use capstead_client::sturdyref::Method;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cursor::Cursor;
use crate::error::{Reason, Result};
use crate::id::ObjectId;
use crate::limits::{
    ALARM_ERROR_BYTES_MAX, ALARM_NAME_BYTES_MAX, ALARM_POSTPONED_MAX, ALARM_RETRY_MS,
    ALARM_TRIES_MAX, ALARMS_MAX,
};
use crate::storage::{Due, Space, TIME_MS_MAX};

/// The key of the number of an object's alarms.
pub(in crate::host) const COUNT: [u8; 1] = [0];
/// The beginning of the keys of alarms.
pub(in crate::host) const BY_NAME: u8 = 1;
const VERSION: u8 = 1;
const PENDING: u8 = 0;
const DEAD: u8 = 1;

/// The call by which a host fires an alarm. No interface has this number, and no reference leads
/// here.
pub(in crate::host) const ALARM: Method = Method { interface: u64::MAX, ordinal: 0 };

/// An alarm, as its object sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alarm {
    /// The name under which it was set.
    pub name: String,
    /// The number of this setting, the same for all tries of it. The next setting has another one,
    /// also under the same name and for the same time: so it is what request ids are made of.
    pub setting: u64,
    /// The time for which it was set, in milliseconds since 1970.
    pub set_for_ms: u64,
    /// The time of its next try, in milliseconds since 1970: `set_for_ms`, or later if that had
    /// passed when it was set, or if a try has failed or could not begin. None if it is dead: it
    /// failed too often, and isn't tried again unless it is set again.
    pub next_ms: Option<u64>,
    /// The number of tries that failed since it was set.
    pub failed: u8,
    /// The error of the last try, cut to 256 bytes; empty if none has failed.
    pub error: String,
}

impl Alarm {
    /// Tells whether it failed too often: it stays in the list, and isn't tried again unless it is
    /// set again.
    pub fn is_dead(&self) -> bool {
        self.next_ms.is_none()
    }
}

/// One setting of an alarm, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct AlarmRecord {
    pub(in crate::host) alarm: Alarm,
    /// Tries in a row that could not begin, as far as they count.
    postponed: u8,
}

/// Reads one record, those that the open turn wrote too.
pub(in crate::host) type ReadRecord<'a> = dyn Fn(Space, &[u8]) -> Result<Option<Vec<u8>>> + 'a;

/// Writes one record in the open turn, or removes it.
pub(in crate::host) type WriteRecord<'a> =
    dyn FnMut(Space, &[u8], Option<&[u8]>) -> Result<()> + 'a;

impl AlarmRecord {
    /// An alarm that is set for this time at `now_ms`. One for a time that has passed comes after
    /// those that are due already.
    pub(in crate::host) fn new(name: &str, setting: u64, at_ms: u64, now_ms: u64) -> Self {
        let set_for_ms = at_ms.min(TIME_MS_MAX);
        let next_ms = Some(at_ms.max(now_ms).min(TIME_MS_MAX));
        let (name, error) = (name.to_owned(), String::new());
        let alarm = Alarm { name, setting, set_for_ms, next_ms, failed: 0, error };
        Self { alarm, postponed: 0 }
    }

    /// The same alarm after another try failed at `now_ms`.
    pub(in crate::host) fn failed(mut self, now_ms: u64, error: &str) -> Self {
        let alarm = &mut self.alarm;
        alarm.failed = alarm.failed.saturating_add(1);
        error[..error.floor_char_boundary(ALARM_ERROR_BYTES_MAX)].clone_into(&mut alarm.error);
        let doubled = ALARM_RETRY_MS << alarm.failed.saturating_sub(1).min(ALARM_TRIES_MAX);
        let after = spread(doubled, alarm.setting ^ u64::from(alarm.failed));
        alarm.next_ms =
            (alarm.failed < ALARM_TRIES_MAX).then(|| now_ms.saturating_add(after).min(TIME_MS_MAX));
        self.postponed = 0;
        self
    }

    /// The same alarm after a try that could not begin at `now_ms`, which is no failure of its own.
    pub(in crate::host) fn postponed(mut self, now_ms: u64) -> Self {
        let after = spread(ALARM_RETRY_MS << self.postponed, self.alarm.setting ^ now_ms);
        self.alarm.next_ms = Some(now_ms.saturating_add(after).min(TIME_MS_MAX));
        self.postponed = (self.postponed + 1).min(ALARM_POSTPONED_MAX);
        self
    }

    /// Tells whether its last try could not begin.
    pub(in crate::host) fn is_postponed(&self) -> bool {
        self.postponed > 0
    }

    /// The same alarm at the first time from its own on that no other one has. In the order of
    /// times a hash stands for the name, and two names may have the same one.
    ///
    /// # Errors
    /// Those of `read`, which reads records in `Due`.
    pub(in crate::host) fn at_free_time<E>(
        mut self,
        object: ObjectId,
        read: impl Fn(&[u8]) -> std::result::Result<Option<Vec<u8>>, E>,
    ) -> std::result::Result<Self, E> {
        while let Some(due) = self.due(object).filter(|due| due.at_ms < TIME_MS_MAX) {
            if read(&due.key())?.is_none_or(|there| there == due.record()) {
                break;
            }
            self.alarm.next_ms = Some(due.at_ms + 1);
        }
        Ok(self)
    }

    /// Tells whether a host could have written it.
    pub(in crate::host) fn is_within_bounds(&self) -> bool {
        let Alarm { name, set_for_ms, next_ms, failed, error, .. } = &self.alarm;
        key(name).is_ok()
            && (*set_for_ms).max(next_ms.unwrap_or_default()) <= TIME_MS_MAX
            && *failed <= ALARM_TRIES_MAX
            && error.len() <= ALARM_ERROR_BYTES_MAX
    }

    pub(in crate::host) fn encode(&self) -> Vec<u8> {
        let Alarm { setting, set_for_ms, next_ms, failed, error, .. } = &self.alarm;
        let mut bytes = vec![VERSION];
        for number in [*setting, *set_for_ms, next_ms.unwrap_or_default()] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let state = match (next_ms, self.postponed) {
            (None, _) => DEAD,
            (Some(_), 0) => PENDING,
            (Some(_), postponed) => DEAD + postponed,
        };
        bytes.extend_from_slice(&[*failed, state]);
        bytes.extend_from_slice(error.as_bytes());
        bytes
    }

    /// # Errors
    /// When the bytes are no such record of a known version.
    pub(in crate::host) fn decode(key: &[u8], record: &[u8]) -> Result<Self> {
        let decoded = || {
            let (BY_NAME, name) = key.split_first().map(|(kind, name)| (*kind, name))? else {
                return None;
            };
            let mut bytes = Cursor::new(record);
            let Some(VERSION) = bytes.byte() else { return None };
            let setting = u64::from_be_bytes(bytes.array()?);
            let set_for_ms = u64::from_be_bytes(bytes.array()?);
            let next = u64::from_be_bytes(bytes.array()?);
            let (failed, state) = (bytes.byte()?, bytes.byte()?);
            let (next_ms, postponed) = match state {
                PENDING => (Some(next), 0),
                DEAD if next == 0 => (None, 0),
                DEAD => return None,
                more => (Some(next), (more - DEAD).min(ALARM_POSTPONED_MAX)),
            };
            let error = String::from_utf8(bytes.rest().to_vec()).ok()?;
            let name = String::from_utf8(name.to_vec()).ok()?;
            let alarm = Alarm { name, setting, set_for_ms, next_ms, failed, error };
            Some(Self { alarm, postponed })
        };
        decoded().ok_or_else(|| Reason::Damaged.error("an alarm isn't what was written"))
    }

    /// The record in `Due`, if it is to be tried.
    pub(in crate::host) fn due(&self, object: ObjectId) -> Option<Due> {
        let at_ms = self.alarm.next_ms?;
        Some(Due { at_ms, object, name: self.alarm.name.as_str().into() })
    }
}

/// A time between three and five quarters of this one, drawn from `seed`: alarms that failed
/// together aren't tried together for ever.
fn spread(ms: u64, seed: u64) -> u64 {
    let half = ms / 2;
    ms - half / 2 + xxh3_64_with_seed(&[], seed) % (half + 1)
}

/// The key of an alarm.
///
/// # Errors
/// `key-length:` when the name is empty or too long.
pub(in crate::host) fn key(name: &str) -> Result<Vec<u8>> {
    let max = ALARM_NAME_BYTES_MAX;
    if !(1..=max).contains(&name.len()) {
        let length = name.len();
        return Err(Reason::KeyLength.error(format_args!(
            "the alarm's name has {length} bytes; use a name of 1 to {max} bytes"
        )));
    }
    Ok([&[BY_NAME], name.as_bytes()].concat())
}

/// Puts `new` in the place of `old`, both of them alarms of this name or none, with their times.
///
/// # Errors
/// Those of `read` and `write`.
pub(in crate::host) fn replace(
    object: ObjectId,
    (old, new): (Option<&AlarmRecord>, Option<AlarmRecord>),
    read: &ReadRecord<'_>,
    write: &mut WriteRecord<'_>,
) -> Result<()> {
    let free = |new: AlarmRecord| new.at_free_time(object, |key| read(Space::Due, key));
    let new = new.map(free).transpose()?;
    let Some(alarm) = new.as_ref().or(old) else { return Ok(()) };
    let key = key(&alarm.alarm.name)?;
    write(Space::Alarms, &key, new.as_ref().map(AlarmRecord::encode).as_deref())?;
    let was = old.and_then(|old| old.due(object));
    let is = new.and_then(|new| new.due(object));
    if was == is {
        return Ok(());
    }
    if let Some(was) = was {
        write(Space::Due, &was.key(), None)?;
    }
    is.map_or(Ok(()), |is| write(Space::Due, &is.key(), Some(&is.record())))
}

/// The number of an object's alarms: it is read, changed by `more` and `fewer`, and written.
///
/// # Errors
/// `over-quota:` when there would be too many; those of reading and writing.
pub(in crate::host) fn count(
    (more, fewer): (u32, u32),
    stored: Option<Vec<u8>>,
    write: &mut WriteRecord<'_>,
) -> Result<()> {
    let number = match stored {
        None => 0,
        Some(bytes) => bytes.try_into().map(u32::from_be_bytes).map_err(|_| {
            Reason::Damaged.error("the number of the object's alarms isn't what was written")
        })?,
    };
    let number = u32::saturating_add(number, more).saturating_sub(fewer);
    if more > 0 && number > ALARMS_MAX {
        return Err(Reason::OverQuota.error(format_args!(
            "the object would have {number} alarms, and may have {ALARMS_MAX}; cancel some first"
        )));
    }
    let bytes = number.to_be_bytes();
    write(Space::Alarms, &COUNT, (number > 0).then_some(bytes.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AlarmRecord {
        AlarmRecord::new("tea", 7, 1_000, 0)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let failed = record().failed(2_000, "no tea");
        let mut dead = record();
        for _ in 0..ALARM_TRIES_MAX {
            dead = dead.failed(2_000, "no tea");
        }
        assert!(dead.alarm.is_dead() && dead.due(ObjectId::from_bytes([1; 16])).is_none());
        let key = key("tea").unwrap();
        let postponed = record().postponed(2_000).postponed(4_000);
        for record in [record(), failed, dead, postponed] {
            assert_eq!(AlarmRecord::decode(&key, &record.encode()).unwrap(), record);
            assert!(AlarmRecord::decode(&key, &record.encode()[..26]).is_err());
            assert!(AlarmRecord::decode(&[], &record.encode()).is_err());
        }
    }

    /// The times of docs/alarms.md.
    #[test]
    fn each_failure_waits_twice_as_long_give_or_take_a_quarter() {
        for setting in 0..200 {
            let (mut record, mut base) = (AlarmRecord::new("tea", setting, 0, 0), ALARM_RETRY_MS);
            for failed in 1..ALARM_TRIES_MAX {
                record = record.failed(10_000, "no");
                let after = record.alarm.next_ms.unwrap() - 10_000;
                assert!((base * 3 / 4..=base * 5 / 4).contains(&after), "{failed}: {after}");
                base *= 2;
            }
            assert_eq!(record.failed(10_000, "no").alarm.next_ms, None);
        }
        let first = |setting| AlarmRecord::new("tea", setting, 0, 0).failed(0, "no").alarm.next_ms;
        assert!((1..20).any(|setting| first(setting) != first(0)), "they are tried together");
    }

    #[test]
    fn each_try_that_could_not_begin_waits_twice_as_long_up_to_some_minutes() {
        let (mut record, mut base) = (record(), ALARM_RETRY_MS);
        for tries in 0..40 {
            record = record.postponed(10_000);
            let after = record.alarm.next_ms.unwrap() - 10_000;
            assert!((base * 3 / 4..=base * 5 / 4).contains(&after), "{tries}: {after}");
            base = (base * 2).min(256_000);
        }
        assert_eq!(record.alarm.failed, 0);
        let failed = record.failed(10_000, "no").postponed(10_000);
        assert!(failed.alarm.next_ms.unwrap() <= 10_000 + 2_500, "it begins anew");
    }

    #[test]
    fn a_time_that_has_passed_is_now() {
        let alarm = AlarmRecord::new("tea", 7, 1_000, 5_000).alarm;
        assert_eq!((alarm.set_for_ms, alarm.next_ms), (1_000, Some(5_000)));
    }

    #[test]
    fn a_time_that_another_alarm_has_is_stepped_over() {
        let object = ObjectId::from_bytes([1; 16]);
        let (first, second) = (record().due(object).unwrap(), 1_001);
        let taken = |key: &[u8]| {
            let later = Due { at_ms: second, ..first.clone() };
            let is_taken = [first.key(), later.key()].iter().any(|taken| taken == key);
            Ok::<_, ()>(is_taken.then(|| b"another one".to_vec()))
        };
        let stepped = record().at_free_time(object, taken).unwrap();
        assert_eq!(stepped.alarm.next_ms, Some(1_002));
        let own = |_: &[u8]| Ok::<_, ()>(Some(first.record()));
        assert_eq!(record().at_free_time(object, own).unwrap(), record());
        let last = AlarmRecord::new("tea", 7, u64::MAX, 0);
        let all = |_: &[u8]| Ok::<_, ()>(Some(b"another one".to_vec()));
        assert_eq!(last.clone().at_free_time(object, all).unwrap(), last);
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let error = "é".repeat(ALARM_ERROR_BYTES_MAX);
        let cut = record().failed(0, &error[..error.len() - 2]).alarm.error;
        assert!(error.starts_with(&cut) && cut.len() <= ALARM_ERROR_BYTES_MAX && !cut.is_empty());
    }

    #[test]
    fn names_have_bounds() {
        assert!(key("").is_err() && key(&"n".repeat(ALARM_NAME_BYTES_MAX + 1)).is_err());
        assert_eq!(key(&"n".repeat(ALARM_NAME_BYTES_MAX)).unwrap().len(), 257);
    }
}
