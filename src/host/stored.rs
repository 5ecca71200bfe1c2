//! A value that is kept in memory and in the storage at once.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use super::instance::Instance;
use crate::error::{Result, failed};
use crate::storage::Space;

/// One value of an object's storage, read once and kept: reading it costs no storage read.
///
/// It is the only way by which its key may be written; other writes to the key are seen when the
/// object wakes again.
pub struct Stored<T> {
    instance: Rc<Instance>,
    key: Box<[u8]>,
    value: RefCell<T>,
}

impl<T: Storable> Stored<T> {
    pub(super) fn load(instance: Rc<Instance>, key: &str) -> Result<Self> {
        let value = match instance.read(Space::Data, key.as_bytes())? {
            None => T::default(),
            Some(bytes) => T::decode(&bytes)
                .ok_or_else(|| failed(format!("the value under {key:?} has another type")))?,
        };
        Ok(Self { instance, key: key.as_bytes().into(), value: RefCell::new(value) })
    }

    /// The value.
    pub fn get(&self) -> T {
        self.value.borrow().clone()
    }

    /// Sets the value, in memory and in the present turn.
    ///
    /// # Errors
    /// As [`Storage::put`](super::Storage::put): then neither memory nor storage has changed.
    pub fn set(&self, value: T) -> Result<()> {
        value.encode(|bytes| self.instance.write(Space::Data, &self.key, Some(bytes)))?;
        self.value.replace(value);
        Ok(())
    }
}

impl<T: fmt::Debug> fmt::Debug for Stored<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stored").field(&self.value.borrow()).finish()
    }
}

/// A type that [`Stored`] can keep.
pub trait Storable: Clone + Default + 'static {
    /// Passes the value's bytes to `write`.
    ///
    /// # Errors
    /// Those of `write`.
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R;

    /// `None`: these are not the bytes of such a value.
    fn decode(bytes: &[u8]) -> Option<Self>;
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
