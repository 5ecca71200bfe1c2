//! A class that times its own storage, for measurements that are possible only inside a method.

use std::hint::black_box;
use std::rc::Rc;

use super::measure::now;
use crate::probe_capnp::probe;
use capstead::{Context, List, Object, Storage};
use capstead::{Result, failed};

/// The bytes of a value, as in the bare list: a key has 8 bytes and a value 21.
pub(crate) const VALUE_BYTES: usize = 21;

/// The length of a reference.
const PUT_BYTES: usize = 100;

pub(crate) struct Probe(Storage, Context);

impl Object for Probe {
    const CLASS: &'static str = "Probe";
    type Client = probe::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.storage(), ctx))
    }
}

fn key(n: u32) -> [u8; 8] {
    u64::from(n).to_be_bytes()
}

impl probe::Server for Probe {
    async fn fill(self: Rc<Self>, params: probe::FillParams, _: probe::FillResults) -> Result<()> {
        (0..params.get()?.get_entries()).try_for_each(|n| self.0.put(key(n), [7; VALUE_BYTES]))
    }

    async fn point_reads(
        self: Rc<Self>,
        params: probe::PointReadsParams,
        mut results: probe::PointReadsResults,
    ) -> Result<()> {
        let count = params.get()?.get_count();
        let started = now();
        for n in 0..count {
            black_box(self.0.get(key(n % 1_000))?);
        }
        results.get().set_nanoseconds(started.elapsed().as_nanos() as u64);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        _: probe::ListParams,
        mut results: probe::ListResults,
    ) -> Result<()> {
        let (started, mut count) = (now(), 0);
        self.0.list(List::all())?.visit(|key, value| {
            black_box((key, value));
            count += 1;
            Ok(())
        })?;
        results.get().set_nanoseconds(started.elapsed().as_nanos() as u64);
        results.get().set_entries(count);
        Ok(())
    }

    async fn read_all(
        self: Rc<Self>,
        params: probe::ReadAllParams,
        _: probe::ReadAllResults,
    ) -> Result<()> {
        let values = self.0.get_many((0..params.get()?.get_keys()).map(key))?;
        if values.iter().all(Option::is_some) { Ok(()) } else { Err(unfilled()) }
    }

    async fn read_one(
        self: Rc<Self>,
        params: probe::ReadOneParams,
        _: probe::ReadOneResults,
    ) -> Result<()> {
        self.read(params.get()?.get_key())
    }

    async fn put(self: Rc<Self>, params: probe::PutParams, _: probe::PutResults) -> Result<()> {
        self.0.put(key(params.get()?.get_key()), [7; PUT_BYTES])
    }

    async fn put_ref(
        self: Rc<Self>,
        params: probe::PutRefParams,
        _: probe::PutRefResults,
    ) -> Result<()> {
        let this: probe::Client = self.1.this();
        self.0.put_ref(key(params.get()?.get_key()), &this).await
    }
}

fn unfilled() -> capnp::Error {
    failed("the probe wasn't filled")
}

impl Probe {
    fn read(&self, n: u32) -> Result<()> {
        let value = self.0.get(key(n))?.ok_or_else(unfilled)?;
        black_box(value);
        Ok(())
    }
}
