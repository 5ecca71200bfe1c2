//! Adds one to the tally `visits`, by the reference of all tallies.

use capnp::{Error, capability::FromClientHook};
use capstead_client::{Result, namespace};
use hello_capnp::tally;

capnp::generated_code!(pub mod hello_capnp);

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    let usage = || Error::failed("usage: hello-client REFERENCE".into());
    let reference = std::env::args().nth(1).ok_or_else(usage)?;
    let tallies: namespace::Client = capstead_client::restore(&reference).await?;
    let mut by_name = tallies.by_name_request();
    by_name.get().set_key("visits");
    let visits: tally::Client = by_name.send().pipeline.get_object().as_cap().cast_to();
    let reply = visits.add_request().send().promise.await?;
    println!("visits: {}", reply.get()?.get_total());
    Ok(())
}
