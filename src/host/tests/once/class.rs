//! A class whose calls take several turns, or end in another way than with a plain reply.

use std::cell::Cell;
use std::rc::Rc;

use capnp::data;
use tokio::sync::Semaphore;

use super::super::trial::{note, read, trial};
use crate::error::{Result, failed, overloaded};
use crate::host::{Context, Object};

thread_local! {
    /// The number of steps that the handlers of this test's thread may still take.
    static PERMITS: Rc<Semaphore> = Rc::new(Semaphore::new(0));
    /// In which of its turns `write` panics; 0 in none.
    pub(super) static PANIC_IN: Cell<u64> = const { Cell::new(0) };
    pub(super) static REPLY_BYTES: Cell<u32> = const { Cell::new(0) };
}

/// Lets handlers that wait take so many steps, all together.
pub(super) fn let_go(steps: usize) {
    PERMITS.with(|permits| permits.add_permits(steps));
}

/// See the head of the file.
pub(in crate::host::tests) struct Steps(Context);

impl Object for Steps {
    const CLASS: &'static str = "Steps";
    type Client = trial::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl Steps {
    /// Notes `n`, and writes it under `key`.
    fn step(&self, n: u64, key: &str) -> Result<()> {
        note(n);
        self.0.storage().put(key, n.to_be_bytes())?;
        assert_ne!(PANIC_IN.get(), n % 10, "as asked");
        Ok(())
    }
}

async fn may_go_on() -> Result<()> {
    let permits = PERMITS.with(Rc::clone);
    permits.acquire().await.map_err(|error| failed(error.to_string()))?.forget();
    Ok(())
}

impl trial::Server for Steps {
    /// Three turns, each with a write. It takes steps to go on.
    async fn write(
        self: Rc<Self>,
        params: trial::WriteParams,
        mut results: trial::WriteResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        self.step(10 * n + 1, "a")?;
        may_go_on().await?;
        self.step(10 * n + 2, "b")?;
        may_go_on().await?;
        self.step(10 * n + 3, "c")?;
        results.get().set_n(n);
        Ok(())
    }

    async fn note(
        self: Rc<Self>,
        params: trial::NoteParams,
        mut results: trial::NoteResults,
    ) -> Result<()> {
        note(params.get()?.get_n());
        results.get().set_n(params.get()?.get_n());
        Ok(())
    }

    /// A reply of so many bytes.
    async fn read(
        self: Rc<Self>,
        _: trial::ReadParams,
        mut results: trial::ReadResults,
    ) -> Result<()> {
        self.step(1, "a")?;
        results.hook.get()?.initn_as::<data::Builder<'_>>(REPLY_BYTES.get());
        Ok(())
    }

    async fn child(
        self: Rc<Self>,
        _: trial::ChildParams,
        mut results: trial::ChildResults,
    ) -> Result<()> {
        self.step(1, "a")?;
        results.get().set_cap(capnp_rpc::new_client_from_rc(self.clone()));
        Ok(())
    }

    async fn stray(self: Rc<Self>, _: trial::StrayParams, _: trial::StrayResults) -> Result<()> {
        self.step(1, "a")?;
        Err(overloaded("the object is tired"))
    }

    async fn ask(self: Rc<Self>, params: trial::AskParams, _: trial::AskResults) -> Result<()> {
        read(&params.get()?.get_of()?).await.map(drop)
    }
}
