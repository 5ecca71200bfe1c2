//! The class of objects that pass capabilities on, in two kinds: plain and exclusive.
//!
//! The bundled classes take no capabilities, so tests of capabilities have their own class. It
//! stores nothing: an object keeps its notes for as long as it is awake.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

use capnp::capability::RemotePromise;
use capstead::{Context, Object, Result, failed};

use crate::passing_capnp::passer;

/// The text that `fail` repeats: a character of three bytes.
const SAID: &str = "€";

pub(crate) trait Kind: 'static {
    const CLASS: &'static str;
    const EXCLUSIVE: bool;
}

pub(crate) struct Plain;
pub(crate) struct Exclusive;

impl Kind for Plain {
    const CLASS: &'static str = "Plain";
    const EXCLUSIVE: bool = false;
}

impl Kind for Exclusive {
    const CLASS: &'static str = "Exclusive";
    const EXCLUSIVE: bool = true;
}

pub(crate) struct Passer<K> {
    ctx: Context,
    /// The calls that started, by stub.
    notes: RefCell<HashMap<u64, Vec<u64>>>,
    kind: PhantomData<K>,
}

impl<K: Kind> Object for Passer<K> {
    const CLASS: &'static str = K::CLASS;
    const EXCLUSIVE: bool = K::EXCLUSIVE;
    type Client = passer::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self { ctx, notes: RefCell::default(), kind: PhantomData })
    }
}

type Noted = RemotePromise<passer::note_results::Owned>;

pub(crate) fn note(on: &passer::Client, stub: u64, n: u64) -> Noted {
    let mut request = on.note_request();
    request.get().set_stub(stub);
    request.get().set_n(n);
    request.send()
}

/// Makes all calls, then waits for all answers.
async fn call(on: &passer::Client, stub: u64, count: u32) -> Result<()> {
    let sent: Vec<Noted> = (0..u64::from(count)).map(|n| note(on, stub, n)).collect();
    for (n, noted) in sent.into_iter().enumerate() {
        let found = noted.promise.await?.get()?.get_n();
        if found != n as u64 {
            return Err(failed(format!(
                "call {n} of stub {stub} is answered as if it were {found}"
            )));
        }
    }
    Ok(())
}

/// The capability that by.echo(cap) will return.
fn echoed(by: &passer::Client, cap: passer::Client) -> passer::Client {
    let mut request = by.echo_request();
    request.get().set_cap(cap);
    request.send().pipeline.get_cap()
}

impl<K: Kind> passer::Server for Passer<K> {
    async fn note(
        self: Rc<Self>,
        params: passer::NoteParams,
        mut results: passer::NoteResults,
    ) -> Result<()> {
        let (stub, n) = (params.get()?.get_stub(), params.get()?.get_n());
        self.notes.borrow_mut().entry(stub).or_default().push(n);
        results.get().set_n(n);
        Ok(())
    }

    async fn notes(
        self: Rc<Self>,
        params: passer::NotesParams,
        mut results: passer::NotesResults,
    ) -> Result<()> {
        let notes = self.notes.borrow_mut().remove(&params.get()?.get_stub()).unwrap_or_default();
        results.get().set_notes(&notes[..])
    }

    async fn echo(
        self: Rc<Self>,
        params: passer::EchoParams,
        mut results: passer::EchoResults,
    ) -> Result<()> {
        results.get().set_cap(params.get()?.get_cap()?);
        Ok(())
    }

    async fn later(
        self: Rc<Self>,
        params: passer::LaterParams,
        mut results: passer::LaterResults,
    ) -> Result<()> {
        note(&params.get()?.get_until()?, 0, 0).promise.await?;
        results.get().set_cap(params.get()?.get_cap()?);
        Ok(())
    }

    async fn early(
        self: Rc<Self>,
        params: passer::EarlyParams,
        mut results: passer::EarlyResults,
    ) -> Result<()> {
        results.get().set_cap(params.get()?.get_cap()?);
        results.set_pipeline()?;
        note(&params.get()?.get_until()?, 0, 0).promise.await?;
        Ok(())
    }

    async fn promised(
        self: Rc<Self>,
        params: passer::PromisedParams,
        mut results: passer::PromisedResults,
    ) -> Result<()> {
        let params = params.get()?;
        results.get().set_cap(echoed(&params.get_by()?, params.get_cap()?));
        Ok(())
    }

    async fn call(
        self: Rc<Self>,
        params: passer::CallParams,
        _: passer::CallResults,
    ) -> Result<()> {
        let params = params.get()?;
        call(&params.get_on()?, params.get_stub(), params.get_count()).await
    }

    async fn relay(
        self: Rc<Self>,
        params: passer::RelayParams,
        _: passer::RelayResults,
    ) -> Result<()> {
        let params = params.get()?;
        let mut request = params.get_to()?.call_request();
        request.get().set_on(params.get_on()?);
        request.get().set_stub(params.get_stub());
        request.get().set_count(params.get_count());
        request.send().promise.await.map(drop)
    }

    async fn call_promised(
        self: Rc<Self>,
        params: passer::CallPromisedParams,
        _: passer::CallPromisedResults,
    ) -> Result<()> {
        let params = params.get()?;
        let on = echoed(&params.get_by()?, params.get_on()?);
        call(&on, params.get_stub(), params.get_count()).await
    }

    async fn give_up(
        self: Rc<Self>,
        params: passer::GiveUpParams,
        _: passer::GiveUpResults,
    ) -> Result<()> {
        let params = params.get()?;
        let (on, stub, count) = (params.get_on()?, params.get_stub(), params.get_count());
        for n in 1..u64::from(count) {
            drop(note(&on, stub, n - 1));
        }
        note(&on, stub, u64::from(count).saturating_sub(1)).promise.await?;
        Ok(())
    }

    async fn fail(
        self: Rc<Self>,
        params: passer::FailParams,
        _: passer::FailResults,
    ) -> Result<()> {
        let bytes = params.get()?.get_bytes() as usize;
        Err(failed(SAID.repeat(bytes / SAID.len())))
    }

    async fn repeat(
        self: Rc<Self>,
        params: passer::RepeatParams,
        _: passer::RepeatResults,
    ) -> Result<()> {
        let mut request = params.get()?.get_on()?.fail_request();
        request.get().set_bytes(params.get()?.get_bytes());
        match request.send().promise.await {
            Ok(_) => Err(failed("it did not fail")),
            Err(error) => Err(failed(format!("repeated: {}", error.extra))),
        }
    }

    async fn large(
        self: Rc<Self>,
        params: passer::LargeParams,
        mut results: passer::LargeResults,
    ) -> Result<()> {
        let (bytes, caps) = (params.get()?.get_bytes(), params.get()?.get_caps());
        results.get().set_data(&vec![1; bytes as usize]);
        let mut list = results.get().init_caps(caps);
        for at in 0..caps {
            list.set(at, self.ctx.this::<passer::Client>().client.hook);
        }
        Ok(())
    }

    async fn pass(
        self: Rc<Self>,
        params: passer::PassParams,
        _: passer::PassResults,
    ) -> Result<()> {
        let (bytes, caps) = (params.get()?.get_bytes(), params.get()?.get_caps());
        let mut request = params.get()?.get_to()?.take_request();
        request.get().set_data(&vec![1; bytes as usize]);
        let mut list = request.get().init_caps(caps);
        for at in 0..caps {
            list.set(at, self.ctx.this::<passer::Client>().client.hook);
        }
        request.send().promise.await.map(drop)
    }

    async fn take(self: Rc<Self>, _: passer::TakeParams, _: passer::TakeResults) -> Result<()> {
        Ok(())
    }
}
