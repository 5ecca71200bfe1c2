//! The vats of a program, and the connections from its clients to them.

use std::cell::Cell;
use std::rc::Rc;

use capnp::capability::{Client, FromClientHook};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};

use super::super::trial::World;
use super::ledger;
use crate::error::Result;
use crate::host::Vat;
use crate::host::right::Right;
use crate::host::slot::Birth;
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::actor_capnp::door;
use crate::storage::model::MemoryLog;
use crate::storage::model::gate::Held;

/// How often a commit is looked for before it counts as lost.
const LOOKS: u64 = 100_000_000;

/// A vat whose disk does something only when it is told to, so that a program runs the same way
/// each time.
pub(super) struct Host {
    pub(super) world: World,
    held: Option<Held>,
    /// Whether writes are made durable soon.
    pub(super) prompt: bool,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::over(World::new())
    }

    fn over(world: World) -> Self {
        let held = Some(world.disk.hold());
        Self { world, held, prompt: true }
    }

    /// Has all that was sealed made durable, and waits for it, unless the disk is to wait.
    pub(super) fn commit(&mut self) {
        if !self.prompt || self.has_settled() {
            return;
        }
        self.world.vat.store.borrow().commit_sealed();
        drop(self.held.take());
        let settled = (0..LOOKS).any(|_| {
            std::thread::yield_now();
            self.has_settled()
        });
        assert!(settled, "what was sealed becomes durable, or the disk fails");
        self.held = Some(self.world.disk.hold());
    }

    fn has_settled(&self) -> bool {
        let store = self.world.vat.store.borrow();
        store.durable() >= store.last_sealed() || self.has_failed()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.world.vat.store.borrow().failure().is_some()
    }

    /// Ends the vat, to which nobody is connected any more, and begins another one with what is
    /// durable.
    pub(super) fn restart(&mut self, keep: u64) {
        let disk = self.world.disk.crash(keep);
        drop(self.held.take());
        // A disk that failed says so once more.
        let _ = self.world.vat.close();
        *self = Self::over(World::over_disk(disk));
    }
}

pub(super) fn object_id(number: u32) -> ObjectId {
    ObjectId::named(Pool::default(), "Actor", &number.to_string())
}

pub(super) fn disk(hosts: &[Host], objects: &[usize], number: usize) -> MemoryLog {
    hosts[objects[number]].world.disk.clone()
}

/// What a vat offers to clients.
struct Entrance(Rc<Vat>);

impl door::Server for Entrance {
    async fn open(
        self: Rc<Self>,
        params: door::OpenParams,
        mut results: door::OpenResults,
    ) -> Result<()> {
        let (object, stub) = (params.get()?.get_object(), params.get()?.get_stub());
        let class = self.0.class("Actor")?;
        let key = Some(object.to_string().into());
        let facet = self.0.facet(&Birth { id: object_id(object), class, key }, Right::default());
        ledger::opened(stub, object);
        results.get().set_cap(FromClientHook::new(facet));
        Ok(())
    }

    async fn look(
        self: Rc<Self>,
        params: door::LookParams,
        mut results: door::LookResults,
    ) -> Result<()> {
        results.get().set_facet(super::flows::facet_in(&params.get()?.get_cap()?));
        Ok(())
    }
}

/// Both ends of one connection. It is lost when it ends though nobody cuts it.
struct Hop {
    ends: [Connection; 2],
    is_cut: Rc<Cell<bool>>,
}

impl Hop {
    fn new(ends: [Connection; 2]) -> Self {
        let is_cut = Rc::new(Cell::new(false));
        for end in &ends {
            tokio::task::spawn_local(Self::watch(end.clone(), is_cut.clone()));
        }
        Self { ends, is_cut }
    }

    /// Ends with the connection, and each is ended.
    async fn watch(connection: Connection, is_cut: Rc<Cell<bool>>) {
        let reason = connection.closed().await;
        if !is_cut.get() {
            ledger::problem(format!("a connection was lost: {reason}"));
        }
    }

    async fn cut(&self) {
        self.is_cut.set(true);
        futures::future::join_all(self.ends.each_ref().map(Connection::disconnect)).await;
    }
}

/// A client's way to a vat.
pub(super) struct Link {
    pub(super) door: door::Client,
    connections: Vec<Hop>,
}

impl Link {
    pub(super) fn new(host: &Host, hops: usize) -> Self {
        let mut door: door::Client = membrane::serve(Rc::new(Entrance(host.world.vat.clone())));
        let mut connections = Vec::new();
        for _ in 0..hops {
            let (near, far) = tokio::io::duplex(1 << 16);
            let bootstrap = Some(Client::new(door.into_client_hook()));
            let server = Connection::new(far, Side::Server, bootstrap, Limits::default()).unwrap();
            let peer = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
            door = peer.bootstrap();
            connections.push(Hop::new([server, peer]));
        }
        Self { door, connections }
    }

    pub(super) fn hops(&self) -> usize {
        self.connections.len()
    }

    /// Ends one of its connections.
    pub(super) async fn cut(&self, at: usize) {
        if let Some(hop) = self.connections.get(at) {
            hop.cut().await;
        }
    }

    /// Ends all of its connections.
    pub(super) async fn end(&self) {
        for at in 0..self.connections.len() {
            self.cut(at).await;
        }
    }
}
