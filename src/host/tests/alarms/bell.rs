//! A class whose alarms do what the test says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Semaphore;

use super::super::trial::{World, trial};
use crate::error::{Result, failed, overloaded};
use crate::host::base::alarm::Alarm;
use crate::host::engine::run::{self, TurnCause};
use crate::host::state::instance::Instance;
use crate::host::state::slot::ObjectSpec;
use crate::host::{Context, Object};
use crate::id::{ObjectId, Pool};

type Act = Rc<dyn Fn(&Context, &Alarm) -> Result<()>>;

thread_local! {
    static ACT: RefCell<Option<Act>> = RefCell::default();
    /// The alarms that fired, as object/alarm.
    static RUNG: RefCell<Vec<String>> = RefCell::default();
    /// Alarms wait for these before they end, if they are to wait.
    static PERMITS: Rc<Semaphore> = Rc::new(Semaphore::new(0));
    static WAITS: Cell<bool> = const { Cell::new(false) };
    static WAKES: Cell<Wakes> = const { Cell::new(Wakes::Well) };
}

/// The fate of the objects' `wake`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wakes {
    Well,
    Fails,
    Panics,
    Hangs,
    /// It needs something that is overloaded.
    Overloaded,
}

/// See the head of the file.
pub(in crate::host::tests) struct Bell(Context);

impl Object for Bell {
    const CLASS: &'static str = "Bell";
    type Client = trial::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        match WAKES.get() {
            Wakes::Well => Ok(Self(ctx)),
            Wakes::Fails => Err(failed("it can't wake")),
            Wakes::Panics => panic!("as asked"),
            Wakes::Hangs => std::future::pending().await,
            Wakes::Overloaded => Err(overloaded("it needs another one")),
        }
    }

    async fn alarm(self: Rc<Self>, alarm: Alarm) -> Result<()> {
        let name = self.0.name().unwrap_or_default();
        RUNG.with_borrow_mut(|rung| rung.push(format!("{name}/{}", alarm.name)));
        if WAITS.get() {
            let permits = PERMITS.with(Rc::clone);
            permits.acquire().await.map_err(|error| failed(error.to_string()))?.forget();
        }
        let act = ACT.with_borrow(Clone::clone);
        act.map_or(Ok(()), |act| act(&self.0, &alarm))
    }
}

impl trial::Server for Bell {
    async fn note(self: Rc<Self>, _: trial::NoteParams, _: trial::NoteResults) -> Result<()> {
        Ok(())
    }
}

/// Alarms of this test's thread do this from now on.
pub(super) fn act(act: impl Fn(&Context, &Alarm) -> Result<()> + 'static) {
    ACT.set(Some(Rc::new(act)));
}

pub(super) fn rung() -> Vec<String> {
    RUNG.with_borrow(Clone::clone)
}

/// Alarms of this test's thread wait before they end, or don't.
pub(super) fn wait(waits: bool) {
    WAITS.set(waits);
}

/// So many alarms that wait go on.
pub(super) fn let_go(alarms: usize) {
    PERMITS.with(|permits| permits.add_permits(alarms));
}

/// Objects of this test's thread wake like this from now on.
pub(super) fn waking(wakes: Wakes) {
    WAKES.set(wakes);
}

pub(super) fn id(name: &str) -> ObjectId {
    ObjectId::named(Pool::default(), Bell::CLASS, name)
}

/// The bell called `name`, awake beside the vat's own instance.
pub(super) fn bell(world: &World, name: &str) -> Rc<Instance> {
    let class = world.vat.objects.class(Bell::CLASS).unwrap();
    let spec = ObjectSpec { id: id(name), class, name: Some(name.into()) };
    Instance::new(&world.vat, spec).unwrap()
}

/// Does something in a turn of the bell.
pub(super) fn turn<T>(world: &World, name: &str, work: impl FnOnce(&Context) -> T) -> T {
    let instance = bell(world, name);
    let ctx = Context::new(instance.clone());
    let done = run::turn(&instance, &TurnCause::default(), || work(&ctx));
    done.ok().expect("the turn doesn't panic")
}

/// Sets an alarm of the bell.
pub(super) fn set(world: &World, name: &str, alarm: &str, at_ms: u64) {
    turn(world, name, |ctx| ctx.alarms().set(alarm, at_ms)).unwrap();
}

pub(super) fn get(world: &World, name: &str, alarm: &str) -> Option<Alarm> {
    Context::new(bell(world, name)).alarms().get(alarm).unwrap()
}

/// The clock shows this from now on, and the host looks at it.
pub(super) fn clock(world: &World, now_ms: u64) {
    world.now.set(now_ms);
    world.vat.alarms.changed().notify_one();
}

/// Waits until it is so.
pub(super) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

/// Waits until nothing is fired any more.
pub(super) async fn quiet(world: &World) {
    super::super::trial::settle().await;
    until(|| world.vat.alarms.under_way() == 0).await;
    super::super::trial::settle().await;
}
