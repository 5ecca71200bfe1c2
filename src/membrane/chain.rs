//! The calls that led to a call. They tell a deadlock from a wait.

use std::rc::Rc;

use crate::error::{Reason, Result, failed};

/// Calls of exclusive objects, each made while the next one runs; the latest first.
#[derive(Clone, Debug)]
pub(crate) struct Chain(Rc<ChainNode>);

#[derive(Debug)]
struct ChainNode {
    call: u128,
    before: Option<Chain>,
    length: usize,
}

/// The longest chain. A call that leads through more exclusive objects will hardly ever end.
const CALLS_MAX: usize = 64;

const CALL_BYTES: usize = 16;

impl Chain {
    /// # Errors
    /// When the chain is too long.
    pub(crate) fn extend(before: Option<Self>, call: u128) -> Result<Self> {
        let length = before.as_ref().map_or(0, |before| before.0.length) + 1;
        if length > CALLS_MAX {
            return Err(Reason::Deadlock.error(format_args!(
                "more than {CALLS_MAX} exclusive objects wait for each other in a row"
            )));
        }
        Ok(Self(Rc::new(ChainNode { call, before, length })))
    }

    /// The calls, the latest first.
    pub(crate) fn calls(&self) -> impl Iterator<Item = u128> {
        let mut next = Some(self);
        std::iter::from_fn(move || {
            let at = next?;
            next = at.0.before.as_ref();
            Some(at.0.call)
        })
    }

    /// As `Facet.inChain` takes it: 16 bytes a call, the latest first.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.calls().flat_map(u128::to_be_bytes).collect()
    }

    /// None for no bytes.
    ///
    /// # Errors
    /// When these aren't the bytes of a chain.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Option<Self>> {
        let (calls, rest) = bytes.as_chunks::<CALL_BYTES>();
        if !rest.is_empty() {
            return Err(failed(format!("a chain has {CALL_BYTES} bytes for each call")));
        }
        let extend = |before, call: &[u8; CALL_BYTES]| {
            Self::extend(before, u128::from_be_bytes(*call)).map(Some)
        };
        calls.iter().rev().try_fold(None, extend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_as_it_was_written() {
        let mut chain = None;
        for call in 1..=CALLS_MAX as u128 {
            let longer = Chain::extend(chain, call).unwrap();
            let read = Chain::from_bytes(&longer.to_bytes()).unwrap().unwrap();
            assert!(read.calls().eq((1..=call).rev()));
            chain = Some(longer);
        }
        let full = chain.unwrap();
        assert!(Chain::extend(Some(full.clone()), 0).is_err());
        assert!(Chain::from_bytes(&[full.to_bytes(), vec![0; CALL_BYTES]].concat()).is_err());
        assert!(Chain::from_bytes(&full.to_bytes()[1..]).is_err());
        assert!(Chain::from_bytes(&[]).unwrap().is_none());
    }
}
