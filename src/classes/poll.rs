//! A poll whose options are counters: an object that reaches others through its binding.

use std::rc::Rc;

use capstead::{Context, List, Namespace, Object, Reason, Result, Storage, failed};
use futures::future::try_join_all;

use super::Counter;
use crate::counter_capnp::counter;
use crate::poll_capnp::poll;

/// An option is a key that begins so, with nothing as its value.
const OPTION: &str = "option/";

/// The place in which polls had the list of their options before, one on each line.
const OPTIONS_BEFORE: &str = "options";

/// Options of one poll: a request for the results waits for as many counters.
const OPTIONS_MAX: u64 = 1_000;

/// A durable poll. It remembers its options; their votes are counters.
#[derive(Debug)]
pub struct Poll {
    name: Option<String>,
    storage: Storage,
    votes: Namespace<Counter>,
}

impl Object for Poll {
    const CLASS: &'static str = "Poll";
    type Client = poll::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let storage = ctx.storage();
        if let Some(known) = storage.get_as::<String>(OPTIONS_BEFORE)? {
            for option in known.lines() {
                storage.put(key(option), "")?;
            }
            storage.delete(OPTIONS_BEFORE)?;
        }
        Ok(Poll {
            name: ctx.name().map(str::to_owned),
            storage,
            votes: ctx.namespace::<Counter>("votes")?,
        })
    }
}

impl Poll {
    fn remember(&self, option: &str) -> Result<()> {
        if self.storage.contains(key(option))? {
            return Ok(());
        }
        if self.storage.count() >= OPTIONS_MAX {
            return Err(failed(format!(
                "too-many-options: a poll has at most {OPTIONS_MAX}; vote for one of those, or make another poll"
            )));
        }
        self.storage.put(key(option), "")
    }

    /// All options, in the order of their names.
    fn options(&self) -> Result<Vec<String>> {
        let entries = self.storage.list(List::all().prefix(OPTION))?;
        let name = |entry: Result<(Vec<u8>, Vec<u8>)>| {
            let name = entry?.0.split_off(OPTION.len());
            String::from_utf8(name).map_err(|error| Reason::Damaged.error(error))
        };
        entries.map(name).collect()
    }

    fn counter(&self, option: &str) -> Result<counter::Client> {
        let name = self.name.as_deref().ok_or_else(|| failed("a poll needs a name"))?;
        // Escaped, so that no two polls share a counter: an option may have any character.
        let name = name.replace('%', "%25").replace('/', "%2F");
        self.votes.get(&format!("poll/{name}/{option}"))
    }

    async fn count(&self, option: &str) -> Result<i64> {
        let reply = self.counter(option)?.read_request().send().promise.await?;
        Ok(reply.get()?.get_value())
    }
}

fn key(option: &str) -> String {
    format!("{OPTION}{option}")
}

impl poll::Server for Poll {
    async fn vote(
        self: Rc<Self>,
        params: poll::VoteParams,
        mut results: poll::VoteResults,
    ) -> Result<()> {
        let option = params.get()?.get_option()?.to_str()?;
        if option.is_empty() || option.contains('\n') {
            return Err(failed("an option is one line of text"));
        }
        let counter = self.counter(option)?;
        self.remember(option)?;
        // The vote leaves only when the option is durable: no vote is counted for a lost option.
        let reply = counter.increment_request().send().promise.await?;
        results.get().set_votes(reply.get()?.get_value());
        Ok(())
    }

    async fn results(
        self: Rc<Self>,
        _: poll::ResultsParams,
        mut results: poll::ResultsResults,
    ) -> Result<()> {
        let options = self.options()?;
        let votes = try_join_all(options.iter().map(|option| self.count(option))).await?;
        let mut list = results.get().init_options(options.len() as u32);
        for ((at, option), votes) in (0..).zip(options).zip(votes) {
            let mut entry = list.reborrow().get(at);
            entry.set_name(&option);
            entry.set_votes(votes);
        }
        Ok(())
    }
}
