//! A value that is kept in memory and in the storage at once, and the bytes of each type.

mod structs;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::error::{Reason, Result};
use crate::host::base::mirror::{Mirror, PutBack};
use crate::host::state::instance::{Confirmation, Instance, Write};
use crate::storage::{Before, Space};

pub(in crate::host) use self::structs::Parts;
pub use self::structs::Struct;

/// One value of an object's storage, read once and kept: reading it costs no storage read.
///
/// It is always what the storage has under its key, whichever way that changed: another `Stored` of
/// the same key, a plain write, [`Storage::delete_all`](crate::Storage::delete_all), a transaction
/// that is undone.
///
/// ```
/// use capstead::{Context, Result, Stored, conflict};
///
/// struct Door {
///     is_open: Stored<bool>,
///     name: Stored<String>,
/// }
///
/// impl Door {
///     fn wake(ctx: &Context) -> Result<Self> {
///         Ok(Self { is_open: ctx.stored("is open")?, name: ctx.stored("name")? })
///     }
///
///     fn open(&self) -> Result<()> {
///         if self.is_open.get() {
///             return Err(conflict(format!("{} is open", self.name.get())));
///         }
///         self.is_open.set(true)
///     }
/// }
/// # let _ = (Door::wake, Door::open);
/// ```
pub struct Stored<T> {
    instance: Rc<Instance>,
    key: Rc<[u8]>,
    memory: Rc<Memory<T>>,
}

struct Memory<T> {
    value: RefCell<T>,
    /// The number of bytes that the storage has; none if it has no value.
    length: Cell<Option<usize>>,
}

impl<T: Storable> Stored<T> {
    pub(in crate::host) fn load(instance: Rc<Instance>, key: &str) -> Result<Self> {
        let stored = instance.read(Space::Data, key.as_bytes())?;
        let length = Cell::new(stored.as_ref().map(Vec::len));
        let value = match stored {
            None => T::default(),
            Some(bytes) => T::decode(&bytes)
                .ok_or_else(|| Reason::WrongType.error(format_args!("{key:?} has another type")))?,
        };
        let memory = Rc::new(Memory { value: RefCell::new(value), length });
        let mirror: Rc<dyn Mirror> = memory.clone();
        let key: Rc<[u8]> = key.as_bytes().into();
        instance.mirrors.add(key.clone(), Rc::downgrade(&mirror));
        instance.weigh();
        Ok(Self { instance, key, memory })
    }

    /// The value; the default if there is none.
    pub fn get(&self) -> T {
        self.memory.value.borrow().clone()
    }

    /// Sets the value, in memory and in the present turn.
    ///
    /// # Errors
    /// As [`Storage::put`](crate::Storage::put): then neither memory nor storage has changed.
    pub fn set(&self, value: T) -> Result<()> {
        value.check()?;
        let memory = &self.memory;
        let write = Write {
            before: Before::Known(memory.length.get()),
            mirror: Some(&**memory),
            confirmation: Confirmation::Awaited,
            targets: None,
        };
        self.instance.mirrors.keep_in_transaction(memory.clone());
        value.encode(|bytes| {
            self.instance.write(&self.key, Some(bytes), write)?;
            memory.length.set(Some(bytes.len()));
            Ok::<_, capnp::Error>(())
        })?;
        memory.value.replace(value);
        self.instance.weigh();
        Ok(())
    }
}

impl<T: Storable> Mirror for Memory<T> {
    fn accepts(&self, stored: &[u8]) -> bool {
        T::decode(stored).is_some()
    }

    fn update(&self, stored: Option<&[u8]>) {
        // A value that isn't a `T` was refused before it was written.
        let value = stored.and_then(T::decode).unwrap_or_default();
        self.value.replace(value);
        self.length.set(stored.map(<[u8]>::len));
    }

    fn length(&self) -> usize {
        self.length.get().unwrap_or(0)
    }

    fn keep(self: Rc<Self>) -> PutBack {
        let (value, length) = (self.value.borrow().clone(), self.length.get());
        Box::new(move || {
            self.value.replace(value);
            self.length.set(length);
        })
    }
}

impl<T: fmt::Debug> fmt::Debug for Stored<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stored").field(&self.memory.value.borrow()).finish()
    }
}

/// A type that [`Stored`] can keep, and [`Storage::put_as`](crate::Storage::put_as) can write.
///
/// The bytes are part of the format: numbers are big-endian in their full width, so that numbers
/// without a sign are ordered as their bytes are; a `bool` is 0 or 1; a `String` is its UTF-8, a
/// `Vec<u8>` itself; a [`Struct`] is a message in Cap'n Proto's standard framing.
pub trait Storable: Clone + Default + 'static {
    /// Passes the value's bytes to `write`.
    ///
    /// # Errors
    /// Those of `write`.
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R;

    /// `None`: these are not the bytes of such a value.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// Refuses a value that its bytes are not all of. By default there is none.
    ///
    /// # Errors
    /// Why the value can't be stored.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Numbers are stored big-endian in their full width.
macro_rules! storable_numbers {
    ($($number:ty)+) => {$(
        impl Storable for $number {
            fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
                write(&self.to_be_bytes())
            }

            fn decode(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_be_bytes(bytes.try_into().ok()?))
            }
        }
    )+};
}

storable_numbers!(u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64);

impl Storable for bool {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(&[u8::from(*self)])
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

impl Storable for String {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(self.as_bytes())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl Storable for Vec<u8> {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(self)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Storable + PartialEq + fmt::Debug>(value: T, bytes: &[u8]) {
        value.encode(|encoded| assert_eq!(encoded, bytes));
        assert_eq!(T::decode(bytes), Some(value));
    }

    #[test]
    fn values_are_stored_as_documented() {
        check(-2_i64, &[255, 255, 255, 255, 255, 255, 255, 254]);
        check(258_u16, &[1, 2]);
        check(true, &[1]);
        check("é".to_owned(), "é".as_bytes());
        check(vec![7, 0], &[7, 0]);
        assert_eq!(i64::decode(&[1]), None);
        assert_eq!(bool::decode(&[2]), None);
        assert_eq!(String::decode(&[0xff]), None);
    }
}
