//! A poll whose options are counters: an object that reaches others through its binding.

use std::collections::BTreeSet;
use std::rc::Rc;

use capstead::{Context, Namespace, Object, Result, Stored, failed};
use futures::future::try_join_all;

use super::Counter;
use crate::counter_capnp::counter;
use crate::poll_capnp::poll;

/// Options are names without line breaks, so that a list of them is one text.
const SEPARATOR: char = '\n';

/// A durable poll. It remembers its options in the order of their names; their votes are counters.
#[derive(Debug)]
pub struct Poll {
    name: Option<String>,
    options: Stored<String>,
    votes: Namespace<Counter>,
}

impl Object for Poll {
    const CLASS: &'static str = "Poll";
    type Client = poll::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Poll {
            name: ctx.name().map(str::to_owned),
            options: ctx.stored("options")?,
            votes: ctx.namespace::<Counter>("votes")?,
        })
    }
}

impl Poll {
    fn remember(&self, option: &str) -> Result<()> {
        let known = self.options.get();
        let mut options: BTreeSet<&str> = known.split_terminator(SEPARATOR).collect();
        if !options.insert(option) {
            return Ok(());
        }
        let lines = options.into_iter().flat_map(|option| [option, "\n"]);
        self.options.set(lines.collect())
    }

    fn counter(&self, option: &str) -> Result<counter::Client> {
        let name = self.name.as_deref().ok_or_else(|| failed("a poll needs a name"))?;
        self.votes.get(&format!("poll/{name}/{option}"))
    }

    async fn count(&self, option: &str) -> Result<i64> {
        let reply = self.counter(option)?.read_request().send().promise.await?;
        Ok(reply.get()?.get_value())
    }
}

impl poll::Server for Poll {
    async fn vote(
        self: Rc<Self>,
        params: poll::VoteParams,
        mut results: poll::VoteResults,
    ) -> Result<()> {
        let option = params.get()?.get_option()?.to_str()?;
        if option.is_empty() || option.contains(SEPARATOR) {
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
        let known = self.options.get();
        let options: Vec<&str> = known.split_terminator(SEPARATOR).collect();
        let votes = try_join_all(options.iter().map(|option| self.count(option))).await?;
        let mut list = results.get().init_options(options.len() as u32);
        for ((at, option), votes) in (0..).zip(options).zip(votes) {
            let mut entry = list.reborrow().get(at);
            entry.set_name(option);
            entry.set_votes(votes);
        }
        Ok(())
    }
}
