//! An object's storage as its class sees it.

use std::fmt;
use std::rc::Rc;

use super::list::{Entries, List};
use super::stored::{Storable, Struct};
use crate::error::{Reason, Result};
use crate::host::engine::alarms;
use crate::host::state::instance::{Confirmation, Instance, Write};
use crate::storage::Space;

/// An ordered map from byte strings to byte strings that survives everything but its deletion.
///
/// Keys have 1 to 2,048 bytes and are ordered by them; values have up to 4 MiB. That a key is
/// missing is believed when the values of its two neighbours are whole: so where keys come often,
/// as in a journal, a large value stands better elsewhere.
///
/// Writes belong to the turn in which they are made, which is one poll of a method of the object:
/// what a turn writes becomes durable together or not at all, and in the order of the turns.
/// Messages that the object sends afterwards wait until it is durable. Reads see all earlier
/// writes.
///
/// ```
/// use capstead::{List, Result, Storage};
///
/// /// Adds a line under the next number, and forgets all but the last thousand.
/// fn note(storage: &Storage, line: &str) -> Result<()> {
///     let last = storage.get_as::<i64>("last")?.unwrap_or(0) + 1;
///     storage.put_as("last", &last)?;
///     storage.put(format!("line/{last:020}"), line)?;
///     if storage.count() > 1_001 {
///         let mut lines = storage.list(List::all().prefix("line/").limit(1))?;
///         if let Some(first) = lines.next() {
///             storage.delete(first?.0)?;
///         }
///     }
///     Ok(()) // all of it becomes durable together, before the reply leaves
/// }
/// ```
///
/// # Errors
///
/// A write is refused, with nothing written and the turn's earlier writes standing, by an error
/// whose text begins with
/// - `key-length:`, `value-length:`: the key or value is too long, or the key is empty;
/// - `batch-size:`: the turn would write more than 16 MiB, of keys, values, and 32 bytes for each;
/// - `over-quota:`: the object, or its class, would store more than it may;
/// - `low-space:`: the disk is nearly full, and this would take more of it (kind `overloaded`);
/// - `wrong-type:`: a [`Stored`](crate::Stored) of the class couldn't have that value;
/// - `outside-turn:`: it comes from outside the object's own methods, such as a task of the
///   runtime.
///
/// Once accepted, a write is lost only with its whole turn: by a panic in it, which undoes it, or
/// by a failure of the storage before it was durable, after which nothing that the object sends
/// leaves, and the server stops. A read fails with `damaged:` when what is on the disk isn't what
/// was written, or when a key is missing next to such a record; what else there is can still be
/// read. Everything fails as `disconnected` once the instance has ended.
#[derive(Clone)]
pub struct Storage(pub(in crate::host) Rc<Instance>);

impl Storage {
    pub(in crate::host) fn new(instance: Rc<Instance>) -> Self {
        Self(instance)
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// `key-length:`, `damaged:`, or that the storage can't be read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.0.read(Space::Data, key.as_ref())
    }

    /// The values under several keys, in the order of the keys: faster than one by one.
    ///
    /// # Errors
    /// As [`Storage::get`], of the first key that has one.
    pub fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let keys: Vec<K> = keys.into_iter().collect();
        self.0.read_many(&keys.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    /// Tells whether there is a value under `key`. The value isn't read, so its damage isn't
    /// noticed.
    ///
    /// # Errors
    /// `key-length:`, or that the storage can't be read.
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.0.contains(key.as_ref())
    }

    /// Sets the value under `key`.
    ///
    /// # Errors
    /// See [`Storage`]: nothing was written.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.0.write(key.as_ref(), Some(value.as_ref()), Write::PLAIN).map(drop)
    }

    /// As [`Storage::put`], but what the object sends afterwards doesn't wait for it. After a crash
    /// the write may be missing although a reply that followed it was seen; it is still in its
    /// place in the order of the writes.
    ///
    /// # Errors
    /// See [`Storage`]: nothing was written.
    pub fn put_unconfirmed(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let write = Write { confirmation: Confirmation::Unconfirmed, ..Write::PLAIN };
        self.0.write(key.as_ref(), Some(value.as_ref()), write).map(drop)
    }

    /// Removes the value under `key`; whether there was one.
    ///
    /// # Errors
    /// See [`Storage`]: nothing was written.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.0.write(key.as_ref(), None, Write::PLAIN)
    }

    /// Removes everything that the class stored, however much it is, and cancels all of the
    /// object's alarms, dead ones too. The object goes on to exist, and so do references to it.
    ///
    /// # Errors
    /// `outside-turn:`, or that the storage failed: nothing was removed.
    pub fn delete_all(&self) -> Result<()> {
        alarms::remove_all(&self.0)?;
        self.0.clear()
    }

    /// Keys and their values in the order of the keys; see [`List`].
    ///
    /// It is read in parts as it goes on, and holds nothing of the storage in between: writes ahead
    /// of where it is are seen, and those behind are not.
    ///
    /// # Errors
    /// When the options contradict each other. Reading fails as the list goes on.
    pub fn list(&self, list: List) -> Result<Entries> {
        let limit = list.limit;
        Ok(Entries::new(self.0.clone(), list.range()?, limit))
    }

    /// The least key with its value.
    ///
    /// # Errors
    /// `damaged:`, or that the storage can't be read.
    pub fn first(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        self.list(List::all().limit(1))?.next().transpose()
    }

    /// The greatest key with its value.
    ///
    /// # Errors
    /// `damaged:`, or that the storage can't be read.
    pub fn last(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        self.list(List::all().reverse().limit(1))?.next().transpose()
    }

    /// The number of keys. It is known without counting.
    pub fn count(&self) -> u64 {
        self.0.account.usage().keys
    }

    /// The lengths of all keys and values together. It is known without adding up.
    pub fn size_bytes(&self) -> u64 {
        self.0.account.usage().bytes
    }

    /// Runs `body`; if that returns an error or panics, exactly the writes that it made are undone,
    /// those of values in memory ([`Stored`](crate::Stored)) too. Calls that it made are not
    /// undone. Transactions may be nested.
    ///
    /// ```
    /// # use capstead::{Result, Storage, conflict};
    /// fn pay(storage: &Storage, from: &str, to: &str, amount: i64) -> Result<()> {
    ///     storage.transaction(|| {
    ///         let has = storage.get_as::<i64>(to)?.unwrap_or(0);
    ///         storage.put_as(to, &(has + amount))?;
    ///         let left = storage.get_as::<i64>(from)?.unwrap_or(0) - amount;
    ///         if left < 0 {
    ///             return Err(conflict("there is not enough")); // nobody got anything
    ///         }
    ///         storage.put_as(from, &left)
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// That of `body`. `outside-turn:`: then `body` wasn't run.
    pub fn transaction<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.0.transaction(body)
    }

    /// Resolves when all that the object wrote before this call is durable, unconfirmed writes
    /// included.
    ///
    /// # Errors
    /// When the storage failed, or the instance ended: which of the writes are durable is unknown.
    pub fn sync(&self) -> impl Future<Output = Result<()>> + use<> {
        Instance::sync(self.0.clone())
    }

    /// The value under `key` as a `T`; see [`Storable`] for its bytes.
    ///
    /// # Errors
    /// As [`Storage::get`], and when what is there isn't a `T`.
    pub fn get_as<T: Storable>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let key = key.as_ref();
        let Some(bytes) = self.get(key)? else { return Ok(None) };
        match T::decode(&bytes) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(Reason::WrongType
                    .error(format_args!("{} has another type", key.escape_ascii())))
            }
        }
    }

    /// Sets the value under `key` to the bytes of `value`; see [`Storable`].
    ///
    /// # Errors
    /// See [`Storage`]: nothing was written.
    pub fn put_as<T: Storable>(&self, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
        value.check()?;
        value.encode(|bytes| self.put(key, bytes))
    }

    /// The Cap'n Proto struct under `key`.
    ///
    /// # Errors
    /// As [`Storage::get_as`].
    pub fn get_struct<T: capnp::traits::Owned + 'static>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Struct<T>>> {
        self.get_as(key)
    }

    /// Sets the value under `key` to a copy of a Cap'n Proto struct.
    ///
    /// # Errors
    /// See [`Storage`]; and when the struct can't be copied, or has capabilities in it
    /// (`live-capability:`): nothing was written.
    pub fn put_struct<T: capnp::traits::Owned + 'static>(
        &self,
        key: impl AsRef<[u8]>,
        value: T::Reader<'_>,
    ) -> Result<()> {
        self.put_as(key, &Struct::<T>::copy(value)?)
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("class", &self.0.spec.class.name).finish_non_exhaustive()
    }
}
