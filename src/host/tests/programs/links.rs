//! The vats of a program, and the connections from its clients to them and between them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};

use super::super::trial::{EXCLUSIVE_ACTOR, World};
use super::plan::Kind;
use super::{kj, ledger};
use crate::error::Result;
use crate::host::Vat;
use crate::host::base::right::Right;
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::actor_capnp::door;
use crate::storage::testing::model::MemoryLog;
use crate::storage::testing::model::gate::Held;

/// The number of looks for a commit before it counts as lost.
const LOOKS: u64 = 100_000_000;

/// The hosts on which the objects of a program live, and which objects are exclusive.
#[derive(Clone, Debug, Default)]
pub(super) struct Homes {
    pub(super) vats: Vec<usize>,
    pub(super) exclusive: Vec<bool>,
}

/// A vat's ways to the other ones.
type Doors = Rc<RefCell<Vec<Option<door::Client>>>>;

/// A vat whose disk does something only when it is told to, so that a program runs the same way
/// each time.
pub(super) struct Host {
    number: usize,
    homes: Rc<Homes>,
    doors: Doors,
    pub(super) world: World,
    held: Option<Held>,
    /// True if writes are made durable soon.
    pub(super) prompt: bool,
}

impl Host {
    /// The only one.
    pub(super) fn new() -> Self {
        Self::over(0, Rc::default(), World::new())
    }

    /// One of several.
    pub(super) fn of_many(number: usize, homes: Rc<Homes>) -> Self {
        Self::over(number, homes, World::new())
    }

    fn over(number: usize, homes: Rc<Homes>, world: World) -> Self {
        let held = Some(world.disk.hold());
        Self { number, homes, doors: Rc::default(), world, held, prompt: true }
    }

    /// The capability that it offers.
    fn entrance(&self) -> door::Client {
        membrane::serve(Rc::new(Entrance {
            vat: self.world.vat.clone(),
            number: self.number,
            homes: self.homes.clone(),
            doors: self.doors.clone(),
        }))
    }

    /// Has all that was submitted made durable, and waits for it, unless the disk is to wait.
    pub(super) fn commit(&mut self) {
        if !self.prompt || self.has_settled() {
            return;
        }
        self.world.vat.turns.store().commit_submitted();
        drop(self.held.take());
        let settled = (0..LOOKS).any(|_| {
            std::thread::yield_now();
            self.has_settled() && (self.has_failed() || self.world.was_told())
        });
        assert!(settled, "what was submitted becomes durable, or the disk fails");
        self.held = Some(self.world.disk.hold());
    }

    fn has_settled(&self) -> bool {
        let store = self.world.vat.turns.store();
        store.durable() >= store.last_submitted() || self.has_failed()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.world.vat.turns.store().failure().is_some()
    }

    /// Ends the vat, to which nobody is connected any more, and begins another one with what is
    /// durable.
    pub(super) fn restart(&mut self, keep: u64) {
        let disk = self.world.disk.crash(keep);
        drop(self.held.take());
        // A disk that failed says so once more.
        let _ = self.world.vat.close();
        *self = Self::over(self.number, self.homes.clone(), World::over_disk(disk));
    }
}

pub(super) fn object_id(number: u32) -> ObjectId {
    ObjectId::named(Pool::default(), "Actor", &number.to_string())
}

pub(super) fn disk(hosts: &[Host], objects: &[usize], number: usize) -> MemoryLog {
    hosts[objects[number]].world.disk.clone()
}

/// The things that a vat offers to clients and to other vats.
struct Entrance {
    vat: Rc<Vat>,
    number: usize,
    homes: Rc<Homes>,
    doors: Doors,
}

impl Entrance {
    /// The way to the vat of an object that lives elsewhere.
    fn elsewhere(&self, object: u32) -> Option<door::Client> {
        let home = *self.homes.vats.get(object as usize)?;
        let doors = self.doors.borrow();
        (home != self.number).then(|| doors.get(home).cloned().flatten()).flatten()
    }
}

impl door::Server for Entrance {
    async fn open(
        self: Rc<Self>,
        params: door::OpenParams,
        mut results: door::OpenResults,
    ) -> Result<()> {
        let (object, stub) = (params.get()?.get_object(), params.get()?.get_stub());
        if let Some(door) = self.elsewhere(object) {
            return pass_on(&door, &params, results).await;
        }
        let is_exclusive = self.homes.exclusive.get(object as usize).is_some_and(|is| *is);
        let class = self.vat.objects.class(if is_exclusive { EXCLUSIVE_ACTOR } else { "Actor" })?;
        let name = Some(object.to_string().into());
        let facet =
            self.vat.facet(&ObjectSpec { id: object_id(object), class, name }, Right::default());
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

/// The link between a client and a vat: it passes on as a server does.
struct Between(door::Client);

impl door::Server for Between {
    async fn open(
        self: Rc<Self>,
        params: door::OpenParams,
        results: door::OpenResults,
    ) -> Result<()> {
        pass_on(&self.0, &params, results).await
    }

    async fn look(
        self: Rc<Self>,
        params: door::LookParams,
        mut results: door::LookResults,
    ) -> Result<()> {
        let mut request = self.0.look_request();
        request.get().set_cap(params.get()?.get_cap()?);
        results.get().set_facet(request.send().promise.await?.get()?.get_facet());
        Ok(())
    }
}

/// Opens an object elsewhere. Calls on it go there at once.
async fn pass_on(
    door: &door::Client,
    params: &door::OpenParams,
    mut results: door::OpenResults,
) -> Result<()> {
    let mut request = door.open_request();
    request.get().set_object(params.get()?.get_object());
    request.get().set_stub(params.get()?.get_stub());
    let asked = request.send();
    results.get().set_cap(asked.pipeline.get_cap());
    results.set_pipeline()?;
    results.get().set_cap(asked.promise.await?.get()?.get_cap()?);
    Ok(())
}

/// Both ends of one connection. It is lost when it ends though nobody cuts it.
struct Hop {
    /// A peer made by hand has no handle: it ends with the other one.
    ends: Vec<Connection>,
    is_cut: Rc<Cell<bool>>,
}

impl Hop {
    fn new(ends: Vec<Connection>, is_cut: Rc<Cell<bool>>) -> Self {
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
        futures::future::join_all(self.ends.iter().map(Connection::disconnect)).await;
    }
}

/// A client's way to a vat, or another vat's.
pub(super) struct Link {
    pub(super) door: door::Client,
    connections: Vec<Hop>,
}

impl Link {
    pub(super) fn new(host: &Host, hops: usize) -> Self {
        Self::of(Kind::Rust, host, hops)
    }

    pub(super) fn of(client: Kind, host: &Host, hops: usize) -> Self {
        let mut link = Self { door: host.entrance(), connections: Vec::new() };
        for number in 0..hops {
            if number > 0 {
                link.door = membrane::serve(Rc::new(Between(link.door)));
            }
            match client {
                Kind::Kj if number == hops - 1 => link.extend_to_kj(),
                _ => link.extend(Limits::default(), Limits::of_dialler()),
            }
        }
        link
    }

    /// Gives one vat its way to another one.
    pub(super) fn between(from: &Host, to: &Host) -> Self {
        let mut link = Self { door: to.entrance(), connections: Vec::new() };
        link.extend(Limits::of_trusted(), Limits::of_trusted());
        let mut doors = from.doors.borrow_mut();
        let length = doors.len().max(to.number + 1);
        doors.resize(length, None);
        doors[to.number] = Some(link.door.clone());
        drop(doors);
        link
    }

    /// Puts its door behind one more connection.
    fn extend(&mut self, accepting: Limits, dialling: Limits) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let offered = Some(self.door.clone().client);
        let server = Connection::new(far, Side::Server, offered, accepting).unwrap();
        let peer = Connection::new(near, Side::Client, None, dialling).unwrap();
        self.door = peer.bootstrap();
        self.connections.push(Hop::new(vec![server, peer], Rc::default()));
    }

    /// Puts its door behind one more connection, whose other side is made by hand.
    fn extend_to_kj(&mut self) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let offered = Some(self.door.clone().client);
        let server = Connection::new(far, Side::Server, offered, Limits::default()).unwrap();
        let is_cut = Rc::new(Cell::new(false));
        let expected = is_cut.clone();
        self.door = kj::Peer::dial(near, move |reason| {
            if !expected.get() {
                ledger::problem(format!("a peer in C++ would have ended its connection: {reason}"));
            }
        });
        self.connections.push(Hop::new(vec![server], is_cut));
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
