//! A server that falls silent while a command is under way.

use std::fs::File;
use std::future::pending;
use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::net::UnixListener;
use tokio::time::Instant;

use crate::error::Result;
use crate::schema::admin_capnp::admin;
use crate::server::data_dir;

/// It says what it serves, and answers nothing else.
struct Hangs {
    identity: (u64, u64),
}

impl admin::Server for Hangs {
    async fn describe(
        self: Rc<Self>,
        _: admin::DescribeParams,
        mut results: admin::DescribeResults,
    ) -> Result<()> {
        results.get().set_device(self.identity.0);
        results.get().set_inode(self.identity.1);
        Ok(())
    }

    async fn keys(self: Rc<Self>, _: admin::KeysParams, _: admin::KeysResults) -> Result<()> {
        pending().await
    }
}

/// A command would wait without end for a server that hangs after its first answer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn a_command_waits_a_minute_for_a_server_that_falls_silent() {
    let data = tempfile::tempdir().unwrap();
    File::create(data.path().join("lock")).unwrap();
    let identity = data_dir::identity(data.path()).unwrap();
    let listener = UnixListener::bind(data_dir::admin_socket(data.path())).unwrap();
    let served = tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let admin: admin::Client = capstead_client::capability(Rc::new(Hangs { identity }));
        let limits = Limits::of_trusted();
        Connection::new(stream, Side::Server, Some(admin.client), limits).unwrap()
    });
    let server = crate::server::admin::connect(data.path()).await;
    let server = server.map_err(|error| error.to_string()).unwrap();
    let _served = served.await.unwrap();
    let began = Instant::now();
    let keys = server.bootstrap::<admin::Client>().keys_request().send().promise.await;
    let refused = keys.err().expect("it says nothing more");
    assert!(refused.extra.contains("sent nothing for 60s"), "{refused}");
    assert_eq!(began.elapsed().as_secs(), 60);
}
