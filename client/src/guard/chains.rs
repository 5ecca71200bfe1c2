//! What the peer's promises were resolved to, as far as that is further promises of the peer.
//!
//! The RPC system follows resolved promises without a limit, by loops and by recursion: a promise
//! that leads back to itself would hold the thread for ever, and a long chain would overflow the
//! stack when it is dropped. Both are refused here, before the RPC system sees them.
//!
//! **Invariant:** no way along `next` comes to the same number twice, and none is longer than the
//! limit, counted with the promises whose numbers were given back since.

use super::limits::{Limit, Limits, Refusal};
use super::scatter::ByNumber;
use std::collections::HashSet;

/// The peer's promises that were resolved to promises, and these, by number.
///
/// Each number that was the end of a resolution is that of an import of ours, so a `Release` for it
/// comes for certain. The beginning may have been released before, on the way: it goes with its end.
#[derive(Default)]
pub(super) struct Chains {
    links: ByNumber<Link>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    /// What it was resolved to, and the steps to there: those released in between count.
    next: Option<(u32, usize)>,
    /// The steps of the longest way to here, which is what nests when it is dropped.
    behind: usize,
}

impl Chains {
    /// The peer resolves the promise `from` to its promise `to`. The error ends the connection.
    pub(super) fn resolve(&mut self, from: u32, to: u32, limits: &Limits) -> Result<(), Refusal> {
        let refused = |reason: &str| Refusal::over(Limit::PromiseChain, reason);
        let mut behind = self.links.get(&from).map_or(0, |link| link.behind) + 1;
        let mut reached = Vec::new();
        let mut at = to;
        loop {
            if at == from {
                return refused("a promise was resolved to itself");
            }
            if behind > limits.promise_chain {
                return refused("a promise was resolved to too many promises in a row");
            }
            reached.push((at, behind));
            let Some((next, steps)) = self.links.get(&at).and_then(|link| link.next) else { break };
            at = next;
            behind += steps;
        }
        for (id, behind) in reached {
            let link = self.links.entry(id).or_default();
            link.behind = link.behind.max(behind);
        }
        self.links.entry(from).or_default().next = Some((to, 1));
        if self.links.len() > limits.chained_promises {
            let reason = "too many promises were resolved to promises";
            return Refusal::over(Limit::ChainedPromises, reason);
        }
        Ok(())
    }

    /// Our side lets go of the import `id`: from now on the number means another one.
    pub(super) fn release(&mut self, id: u32) {
        let Some(released) = self.links.remove(&id) else { return };
        if let Some((next, more)) = released.next {
            // Whoever holds a promise before it gets past it still.
            for link in self.links.values_mut() {
                if let Some((to, steps)) = link.next
                    && to == id
                {
                    link.next = Some((next, steps + more));
                }
            }
            return;
        }
        // It ended the ways that led to it; no cycle comes of these, and some lack a `Release`.
        let mut gone = HashSet::from([id]);
        while !gone.is_empty() {
            let before = std::mem::take(&mut gone);
            self.links.retain(|&id, link| {
                let leads = link.next.is_some_and(|(to, _)| before.contains(&to));
                if leads {
                    gone.insert(id);
                }
                !leads
            });
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }
}

#[cfg(test)]
mod tests;
