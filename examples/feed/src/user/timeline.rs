//! The posts that a user has read, in the order of reading, and the position in each feed.
//!
//! **Invariant:** a post is added once, and its feed's position is written together with it.

use capstead::{Context, List, Result, Storable, Storage, Stored, Struct};

use crate::feed::LISTED_MAX;
use crate::feed_capnp::{entry, post};

/// An entry in its stored form.
pub(super) type Entry = Struct<entry::Owned>;

pub(super) struct Timeline {
    storage: Storage,
    /// The place of the last entry.
    last: Stored<u64>,
}

impl Timeline {
    pub(super) fn load(ctx: &Context) -> Result<Self> {
        Ok(Self { storage: ctx.storage(), last: ctx.stored("last")? })
    }

    /// The number of the last post that was read from the feed.
    pub(super) fn position(&self, feed: &str) -> Result<u64> {
        Ok(self.storage.get_as(position_key(feed))?.unwrap_or_default())
    }

    /// Resets the position: nothing was read from the feed.
    pub(super) fn forget(&self, feed: &str) -> Result<()> {
        self.storage.delete(position_key(feed)).map(drop)
    }

    /// Adds the posts that another call hasn't added meanwhile: all of them, or none if there is an
    /// error.
    pub(super) fn add(
        &self,
        feed: &str,
        posts: capnp::struct_list::Reader<'_, post::Owned>,
    ) -> Result<Vec<Entry>> {
        self.storage.transaction(|| {
            let (mut added, mut position) = (Vec::new(), self.position(feed)?);
            for post in posts {
                if post.get_number() <= position {
                    continue;
                }
                position = post.get_number();
                self.last.set(self.last.get() + 1)?;
                let entry = Entry::build(|mut entry| {
                    entry.set_place(self.last.get());
                    entry.set_feed(feed);
                    entry.set_post(post)
                })?;
                self.storage.put_as(entry_key(self.last.get()), &entry)?;
                added.push(entry);
            }
            if !added.is_empty() {
                self.storage.put_as(position_key(feed), &position)?;
            }
            Ok(added)
        })
    }

    /// The last entries, the oldest of them first.
    pub(super) fn latest(&self, limit: u16) -> Result<Vec<Entry>> {
        let newest = List::all().prefix("entry/").reverse().limit(limit.min(LISTED_MAX).into());
        let entries = self.storage.list(newest)?.map(|entry| {
            Entry::decode(&entry?.1).ok_or_else(|| capstead::failed("an entry can't be read"))
        });
        let mut entries = entries.collect::<Result<Vec<_>>>()?;
        entries.reverse();
        Ok(entries)
    }
}

fn position_key(feed: &str) -> String {
    format!("position/{feed}")
}

fn entry_key(place: u64) -> Vec<u8> {
    [&b"entry/"[..], &place.to_be_bytes()].concat()
}
