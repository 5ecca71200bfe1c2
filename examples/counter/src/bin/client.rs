//! Increments a counter: `cargo run --bin client -- 'capstead://…' my-counter`.

use capnp::capability::FromClientHook;
use capstead_client::{Result, namespace};
use counter::counter_capnp::counter;

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(reference), Some(name)) = (args.next(), args.next()) else {
        return Err(capnp::Error::failed("usage: client REFERENCE NAME".into()));
    };
    let counters: namespace::Client = capstead_client::restore(&reference).await?;

    // No round trip is waited for until the very end: the calls follow each other on the way.
    let mut by_name = counters.by_name_request();
    by_name.get().set_key(&name);
    let counter: counter::Client = by_name.send().pipeline.get_object().as_cap().cast_to();
    let reply = counter.increment_request().send().promise.await?;
    println!("{name} is now {}", reply.get()?.get_value());
    Ok(())
}
