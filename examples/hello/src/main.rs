//! Tallies, served: `cargo run`.

use std::rc::Rc;

use capstead::{Context, Object, Result, Server, Stored, conflict};
use hello_capnp::tally;

capnp::generated_code!(pub mod hello_capnp);

struct Tally {
    total: Stored<i64>,
}

impl Object for Tally {
    const CLASS: &'static str = "Tally";
    type Client = tally::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Tally { total: ctx.stored("total")? })
    }
}

impl tally::Server for Tally {
    async fn add(
        self: Rc<Self>,
        params: tally::AddParams,
        mut results: tally::AddResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        let total = self.total.get().checked_add(by).ok_or_else(|| conflict("it is full"))?;
        self.total.set(total)?;
        results.get().set_total(total);
        Ok(())
    }
}

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    Server::new("hello.data").class::<Tally>().run().await
}
