//! References in the storage of objects, on a server that is killed with `kill -9`.
//!
//! The server is this very binary, started again: two hosts with objects that refer to each other.
//! The tests read the data on disk without a server, and open the values with code of their own:
//! the edges must match the values exactly. Seeds are printed.

mod sealed;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use self::sealed::Key;
use crate::support::calls::{by_name, connect_to, run};
use crate::support::random::Random;
use crate::support::{Process, Served, own, scratch};
use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, List, Namespace, Object, Result, Server, Struct, failed};
use capstead_client::namespace;
use futures::future::{join_all, try_join_all};
use tokio::sync::Notify;

const HOSTS: u16 = 2;
const KILLS: usize = 100;
/// Kills between two checks of the disk.
const KILLS_IN_A_ROW: usize = 10;
const NODES: u64 = 6;
const KEYS: u64 = 5;
/// The number of concurrent callers, each with one call.
const WORKERS: usize = 16;
/// The average number of answers before a kill.
const KILLED_AFTER: u64 = 40;

/// Objects of the graph that the calls traverse, without the shared ones.
const GROWN: i64 = 10_000;
const SHARED: i64 = 10;
const CHILDREN: i64 = 10;

/// An object that refers to others.
struct Node {
    ctx: Context,
    /// The last visitor.
    visited: Cell<i64>,
}

impl Object for Node {
    const CLASS: &'static str = "Node";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self { ctx, visited: Cell::default() })
    }
}

type Found = capstead_client::namespace::by_name_results::Owned;

impl Node {
    fn nodes(&self) -> Result<Namespace<Self>> {
        self.ctx.namespace("nodes")
    }

    /// Makes a few writes, determined by the seed, in one turn or several.
    async fn load(&self, seed: u64) -> Result<()> {
        let mut random = Random::from_seed(seed);
        for _ in 0..=random.below(4) {
            self.write(&mut random).await?;
            if random.below(4) == 0 {
                self.ctx.storage().sync().await?;
            }
        }
        assert!(random.below(100) != 0, "a test panics");
        Ok(())
    }

    async fn write(&self, random: &mut Random) -> Result<()> {
        let storage = self.ctx.storage();
        let (key, other) = (random.below(KEYS).to_string(), random.below(KEYS).to_string());
        match random.below(12) {
            0..=3 => storage.put_ref(key, &self.some_node(random)?).await,
            4 | 5 => {
                let object = self.some_node(random)?;
                let found = Struct::<Found>::build_with_refs(|results| {
                    results.init_object().set_as_capability(object.into_client_hook());
                    Ok(())
                })?;
                storage.put_struct_with_refs::<Found>(key, found.get()?).await
            }
            6 => storage.put(key, "plain"),
            7 => storage.put_unconfirmed(key, "plain"),
            8 => match storage.get(key)? {
                Some(value) => storage.put(other, value),
                None => Ok(()),
            },
            9 => storage.delete(key).map(drop),
            10 if random.below(3) == 0 => storage.delete_all(),
            _ => {
                let undone: Result<()> = storage.transaction(|| {
                    storage.put(&key, "plain")?;
                    storage.delete_all()?;
                    storage.put(&other, "plain")?;
                    Err(failed("as it should"))
                });
                assert!(undone.is_err());
                Ok(())
            }
        }
    }

    fn some_node(&self, random: &mut Random) -> Result<counter::Client> {
        match random.below(4) {
            0 => self.ctx.create::<Self>(),
            1 => Ok(self.ctx.this()),
            _ => self.nodes()?.get(&random.below(NODES).to_string()),
        }
    }

    /// Makes `count` objects, itself included: a tree whose objects all have references to its root
    /// and to a ring of shared objects. Returns the number made.
    async fn grow(&self, count: i64) -> Result<i64> {
        let storage = self.ctx.storage();
        let shared = match self.ctx.name().map(str::parse::<i64>) {
            Some(Ok(number)) => number + 1,
            _ => count,
        };
        storage.put_ref("root", &self.nodes()?.get("root")?).await?;
        let shared = self.nodes()?.get(&(shared % SHARED).to_string())?;
        storage.put_ref("shared", &shared).await?;
        let (mut left, mut calls) = (count - 1, Vec::new());
        for parts in (1..=CHILDREN).rev() {
            let part = (left + parts - 1) / parts;
            left -= part;
            if part > 0 {
                let child = self.ctx.create::<Self>()?;
                storage.put_ref(format!("child {parts}"), &child).await?;
                calls.push(decrement(&child, part));
            }
        }
        Ok(1 + try_join_all(calls).await?.into_iter().sum::<i64>())
    }

    /// Visits all objects that are reachable and not visited yet; returns their number.
    async fn visit(&self, visitor: i64) -> Result<i64> {
        if self.visited.replace(visitor) == visitor {
            return Ok(0);
        }
        let (storage, mut calls) = (self.ctx.storage(), Vec::new());
        for entry in storage.list(List::all())? {
            let object: Option<counter::Client> = storage.get_ref(entry?.0)?;
            calls.push(decrement(&object.ok_or_else(|| failed("it was listed"))?, -visitor));
        }
        Ok(1 + try_join_all(calls).await?.into_iter().sum::<i64>())
    }
}

impl counter::Server for Node {
    /// Runs the load of a seed.
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        _: counter::IncrementResults,
    ) -> Result<()> {
        self.load(params.get()?.get_by().cast_unsigned()).await
    }

    /// Grows by this number of objects; a negative number is a visit.
    async fn decrement(
        self: Rc<Self>,
        params: counter::DecrementParams,
        mut results: counter::DecrementResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        let count = if by < 0 { self.visit(-by).await? } else { self.grow(by).await? };
        results.get().set_value(count);
        Ok(())
    }
}

impl http_service::Server for Node {}

fn decrement(node: &counter::Client, by: i64) -> impl Future<Output = Result<i64>> + use<> {
    let mut request = node.decrement_request();
    request.get().set_by(by);
    let sent = request.send().promise;
    async move { Ok(sent.await?.get()?.get_value()) }
}

#[test]
fn a_server_of_links_for_the_other_tests() {
    let Some(data) = own::data() else { return };
    own::serve(Server::new(data).class::<Node>().bind::<Node, Node>("nodes").hosts(HOSTS));
}

fn start(data: &Path) -> Served {
    let mut program = own::program("links::a_server_of_links_for_the_other_tests", data);
    // Panics are part of the load.
    program.env("RUST_BACKTRACE", "0");
    Served::ready(Process::start(program))
}

/// Makes calls until the server is killed; returns the number of answers.
async fn load_and_kill(served: &mut Served, random: &mut Random) -> usize {
    let (_connection, nodes) = connect_to(served, "Node").await;
    let load = Load::default();
    let workers: Vec<_> = (0..WORKERS).map(|_| load.work(&nodes, random.fork())).collect();
    let kill = async {
        let enough = usize::try_from(random.below(2 * KILLED_AFTER)).unwrap();
        while load.answered.get() < enough {
            load.progress.notified().await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(3_000))).await;
        load.is_over.set(true);
        served.kill();
    };
    futures::join!(join_all(workers), kill);
    load.answered.get()
}

/// Calls of several callers, until the server is killed.
#[derive(Default)]
struct Load {
    answered: Cell<usize>,
    progress: Notify,
    is_over: Cell<bool>,
}

impl Load {
    async fn work(&self, nodes: &namespace::Client, mut random: Random) {
        while !self.is_over.get() {
            // Fetched anew each time, since a panic breaks everything fetched before.
            let node = by_name(nodes, &random.below(NODES).to_string());
            let mut request = node.increment_request();
            request.get().set_by(random.below(u64::MAX).cast_signed());
            if request.send().promise.await.is_ok() {
                self.answered.set(self.answered.get() + 1);
                self.progress.notify_one();
            }
        }
    }
}

/// The content of a stopped server's disk.
#[derive(Debug, Default)]
struct Scanned {
    objects: usize,
    /// Values that contain references.
    references: usize,
    /// Values that only begin like those.
    nothing: usize,
    edges: usize,
}

/// Opens all values, and compares the edges with the references in them.
fn scan(data: &Path) -> Scanned {
    let (key, mut scanned) = (Key::of(data), Scanned::default());
    for host in 0..HOSTS {
        let mut objects: BTreeMap<Vec<u8>, Vec<Record>> = BTreeMap::new();
        let host = data.join(format!("host-{host}"));
        capstead::lab::records(&host, |found| {
            let record = (found.space.into(), found.key.to_vec(), found.value.to_vec());
            objects.entry(found.object.to_vec()).or_default().push(record);
        })
        .unwrap();
        for (object, records) in objects {
            scanned.add(&key, &object, &records);
        }
    }
    scanned
}

/// Number of the space, key, value.
type Record = (u64, Vec<u8>, Vec<u8>);

impl Scanned {
    fn add(&mut self, opener: &Key, object: &[u8], records: &[Record]) {
        let of = |space| records.iter().filter(move |record| record.0 == space);
        let mut expected = BTreeMap::new();
        for (_, key, value) in of(1) {
            match opener.targets(object, key, value) {
                Some(targets) => drop(expected.insert(key.clone(), targets)),
                None => self.nothing += usize::from(value.starts_with(&[0x3b, 0x36])),
            }
        }
        let edges: BTreeMap<_, _> =
            of(4).map(|(_, key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(edges, expected, "the edges of {object:02x?}");
        let usage = of(6).next().map(|(_, _, usage)| usage.clone()).unwrap_or_default();
        let counted = usage.get(16..24).map_or(0, |count| {
            usize::try_from(u64::from_be_bytes(count.try_into().unwrap())).unwrap()
        });
        assert_eq!(counted, expected.len(), "the count of {object:02x?}");
        self.objects += 1;
        self.references += expected.len();
        self.edges += edges.values().map(|targets| targets.len() / 16).sum::<usize>();
    }
}

// Values with references are written, overwritten, copied, deleted and undone on both hosts, in
// calls some of which panic, while the server is killed again and again.
#[test]
fn the_edges_are_exact_whenever_the_server_is_killed() {
    let mut random = Random::from_printed_seed();
    let (_folder, data) = scratch();
    let (mut answered, mut references, mut nothing) = (0, 0, 0);
    for _ in 0..KILLS / KILLS_IN_A_ROW {
        for _ in 0..KILLS_IN_A_ROW {
            let mut served = start(&data);
            answered += run(load_and_kill(&mut served, &mut random));
        }
        let scanned = scan(&data);
        references += scanned.references;
        nothing += scanned.nothing;
    }
    eprintln!("{KILLS} kills, {answered} answers; {references} references found, {nothing} copies");
    assert!(answered > KILLS * 10, "there was no load: {answered} calls were answered");
    assert!(references > 50 && nothing > 0, "there was little to look at");
}

// A graph with shared objects and cycles survives the kill, and its root reaches every object.
#[test]
fn ten_thousand_objects_are_called_through_from_their_root_after_a_kill() {
    let (_folder, data) = scratch();
    let mut served = start(&data);
    run(async {
        let (_connection, nodes) = connect_to(&served, "Node").await;
        for number in 0..SHARED {
            let shared = by_name(&nodes, &number.to_string());
            assert_eq!(decrement(&shared, 1).await.unwrap(), 1);
        }
        assert_eq!(decrement(&by_name(&nodes, "root"), GROWN).await.unwrap(), GROWN);
        served.kill();
    });
    let all = usize::try_from(GROWN + SHARED).unwrap();
    let scanned = scan(&data);
    assert_eq!(scanned.objects, all);
    // Edges to the root, to a shared object, and to each child.
    assert_eq!(scanned.edges, 2 * all + usize::try_from(GROWN - 1).unwrap());
    let served = start(&data);
    run(async {
        let (_connection, nodes) = connect_to(&served, "Node").await;
        for visitor in 1..=2 {
            let visited = decrement(&by_name(&nodes, "root"), -visitor).await.unwrap();
            assert_eq!(visited, GROWN + SHARED);
        }
    });
}
