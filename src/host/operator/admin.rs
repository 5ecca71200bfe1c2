//! The host's side of `admin.capnp`: what the operator's tools may do to the data of one host.
//!
//! Its holder reads and writes every object. So it goes to the server's own socket and to tools in
//! this process, and to nobody else.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::sturdyref::Target;

use super::export;
use super::import;
use super::storage_failed;
use crate::error::{Result, failed, overloaded};
use crate::host::authority::calls::{self, grant_id, wanted, write_grants};
use crate::host::authority::giving::{self, Grantor};
use crate::host::authority::nameable::{self, Words};
use crate::host::authority::records::{self, target, target_id};
use crate::host::authority::sweep::without_dead;
use crate::host::base::alarm::AlarmRecord;
use crate::host::base::header::Header;
use crate::host::base::request_record::RequestId;
use crate::host::base::right::Right;
use crate::host::engine::alarms;
use crate::host::engine::once::{self, IdSelection, Stage};
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::membrane;
use crate::schema::admin_capnp::{host_admin, request, selection};
use crate::storage::archive::export::{EVERYTHING, GRANTS, Pick};
use crate::storage::{Space, StorageError};
use crate::sturdyref::Keys;

/// Exports of one host at a time: each holds a moment of the storage, and LMDB knows few readers.
const EXPORTS_MAX: usize = 4;

/// The time for which an export waits for its caller.
const STALL: Duration = Duration::from_mins(1);

/// The operator's view of one host.
pub(crate) struct HostAdmin {
    vat: Rc<Vat>,
    keys: Keys,
    /// The shards that the host owns.
    shards: Vec<RangeInclusive<u16>>,
    /// Held once more for each export under way.
    exports: Arc<()>,
    /// Held once more while an import is under way.
    imports: Rc<()>,
    untold: import::Untold,
    stall: Duration,
}

impl HostAdmin {
    /// The capability to it.
    pub(crate) fn serve(
        vat: Rc<Vat>,
        shards: Vec<RangeInclusive<u16>>,
        keys: Keys,
    ) -> host_admin::Client {
        Self::serve_with(vat, shards, keys, STALL)
    }

    pub(in crate::host) fn serve_with(
        vat: Rc<Vat>,
        shards: Vec<RangeInclusive<u16>>,
        keys: Keys,
        stall: Duration,
    ) -> host_admin::Client {
        let (exports, imports, untold) = (Arc::default(), Rc::default(), Rc::default());
        membrane::serve(Rc::new(Self { vat, keys, shards, exports, imports, untold, stall }))
    }

    fn header(&self, id: ObjectId) -> Result<Option<Vec<u8>>> {
        let header = self.vat.turns.store().get(id, Space::Header, &[]);
        header.map_err(|error| storage_failed(&error))
    }

    fn is_present(&self, id: &[u8]) -> Result<bool> {
        let header = self.header(target(id)?)?;
        Ok(header.is_some_and(|header| !Header::is_unfinished(&header)))
    }
}

/// Class and name of an object, from its header; none if it isn't one that is whole.
pub(crate) fn describe(header: &[u8]) -> Option<(&str, Option<&str>)> {
    Header::decode(header).ok().map(|header| (header.class, header.name))
}

/// The objects that a selection means. Objects that are not whole are never among them.
fn pick(selection: selection::Reader<'_>) -> Result<Pick> {
    let is_whole =
        |header: Option<&[u8]>| header.is_none_or(|header| !Header::is_unfinished(header));
    let spaces = EVERYTHING;
    Ok(match selection.which()? {
        selection::All(()) => Pick { id: None, passes: Box::new(is_whole), spaces },
        selection::Id(id) => Pick { id: Some(target(id?)?), passes: Box::new(is_whole), spaces },
        // Also the grants of objects that are not whole: these are in force, or will be.
        selection::Grants(()) => Pick { id: None, passes: Box::new(|_| true), spaces: GRANTS },
        selection::Class(class) => {
            let class = class?.to_string()?;
            let is_of = move |header: Option<&[u8]>| {
                header.and_then(describe).is_some_and(|(found, _)| found == class)
            };
            Pick { id: None, passes: Box::new(is_of), spaces }
        }
    })
}

impl host_admin::Server for HostAdmin {
    async fn begin_export(
        self: Rc<Self>,
        params: host_admin::BeginExportParams,
        mut results: host_admin::BeginExportResults,
    ) -> Result<()> {
        let pick = pick(params.get()?.get_selection()?)?;
        if Arc::strong_count(&self.exports) > EXPORTS_MAX {
            return Err(overloaded("too many exports are under way: try again when one has ended"));
        }
        let open = self.exports.clone();
        // Everything that was answered is durable then. Accepted calls may go along.
        self.vat.flush().await.map_err(|error| storage_failed(&error))?;
        let reader = self.vat.turns.store().reader();
        let reader = reader.ok_or_else(|| storage_failed(&StorageError::Closed))?;
        results.get().set_export(export::begin(reader, pick, self.stall, open).await?);
        Ok(())
    }

    async fn begin_import(
        self: Rc<Self>,
        params: host_admin::BeginImportParams,
        mut results: host_admin::BeginImportResults,
    ) -> Result<()> {
        if Rc::strong_count(&self.imports) > 1 {
            return Err(overloaded("another import is under way: try again when it has ended"));
        }
        let held = (self.untold.clone(), self.imports.clone());
        let (existing, grants) = (params.get()?.get_existing()?, params.get()?.get_grants()?);
        self.vat.flush().await.map_err(|error| storage_failed(&error))?;
        let incoming =
            import::begin(self.vat.clone(), self.shards.clone(), (existing, grants), held);
        results.get().set_incoming(incoming);
        Ok(())
    }

    async fn present(
        self: Rc<Self>,
        params: host_admin::PresentParams,
        mut results: host_admin::PresentResults,
    ) -> Result<()> {
        let mut present = Vec::new();
        for id in params.get()?.get_ids()? {
            let id = id?;
            if self.is_present(id)? {
                present.push(id);
            }
        }
        let mut ids = results.get().init_ids(present.len() as u32);
        for (at, id) in (0..).zip(present) {
            ids.set(at, id);
        }
        Ok(())
    }

    async fn grants(
        self: Rc<Self>,
        params: host_admin::GrantsParams,
        mut results: host_admin::GrantsResults,
    ) -> Result<()> {
        let params = params.get()?;
        let (target, after) = (target(params.get_target()?)?, params.get_after()?);
        let (grants, next) = calls::list(&self.vat, target, &Right::default(), after)?;
        let grants = without_dead(&self.vat, target, grants).await?;
        self.vat.turns.durable_of(target).await.map_err(|error| storage_failed(&error))?;
        if let Some(next) = next {
            results.get().set_next(next.as_bytes());
        }
        write_grants(results.get().init_grants(grants.len() as u32), &grants);
        Ok(())
    }

    async fn grant(
        self: Rc<Self>,
        params: host_admin::GrantParams,
        mut results: host_admin::GrantResults,
    ) -> Result<()> {
        let params = params.get()?;
        let id = target(params.get_target()?)?;
        let words = Words::read(params.get_methods()?, params.get_object_methods()?)?;
        let mut terms = wanted(params.get_terms()?)?;
        let target = if params.get_is_namespace() {
            if records::list_behind(&self.vat, id, None, 1)?.is_empty() {
                return Err(failed("there is no such class: these data were never served with it"));
            }
            terms = terms.caveats(&nameable::of_namespace(&self.vat, id, &words)?);
            Target::Namespace(target_id(id))
        } else {
            let header = self.header(id)?.filter(|header| !Header::is_unfinished(header));
            let header = header.ok_or_else(|| {
                failed("there is no such object: it exists from its first write on")
            })?;
            let class = Header::decode(&header)?.class;
            terms = terms.caveats(&nameable::of_object(&self.vat, class, &words)?);
            Target::Object(target_id(id))
        };
        let by = (&Right::default(), Grantor::Owner);
        let ready = giving::prepare(&self.vat, &self.keys.current(), target, by, &terms)?;
        giving::add(&self.vat, id, &ready)?;
        self.vat.flush().await.map_err(|error| storage_failed(&error))?;
        results.get().set_sturdy_ref(ready.reference.expose_bytes());
        results.get().set_grant(ready.id.as_bytes());
        if let Ok(agent) = self.vat.agent() {
            results.get().set_text(agent.text(&ready.reference)?);
        }
        Ok(())
    }

    async fn methods(
        self: Rc<Self>,
        params: host_admin::MethodsParams,
        mut results: host_admin::MethodsResults,
    ) -> Result<()> {
        let id = target(params.get()?.get_target()?)?;
        let header = self.header(id)?;
        let class = header.as_deref().and_then(describe).map(|(class, _)| class);
        let known = nameable::all_of(&self.vat, id, class);
        let mut list = results.get().init_methods(known.len() as u32);
        for (at, (interface, ordinal, name)) in (0..).zip(known) {
            let mut to = list.reborrow().get(at);
            to.set_interface(interface);
            to.set_ordinal(ordinal);
            to.set_name(name);
        }
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: host_admin::RevokeParams,
        _: host_admin::RevokeResults,
    ) -> Result<()> {
        let params = params.get()?;
        giving::revoke(&self.vat, target(params.get_target()?)?, grant_id(params.get_grant()?)?)
            .await
    }

    async fn requests(
        self: Rc<Self>,
        params: host_admin::RequestsParams,
        mut results: host_admin::RequestsResults,
    ) -> Result<()> {
        let params = params.get()?;
        let target = target(params.get_target()?)?;
        // The numbers of the operator are one greater, so that 0 is before all.
        let known = once::requests(&self.vat, target, params.get_after().checked_sub(1))?;
        self.vat.turns.durable_of(target).await.map_err(|error| storage_failed(&error))?;
        let mut list = results.get().init_requests(known.len() as u32);
        for (at, known) in (0..).zip(known) {
            let mut to = list.reborrow().get(at);
            to.set_id(known.id.as_bytes());
            to.set_number(known.number.saturating_add(1));
            to.set_began(known.began_ms);
            to.set_interface(known.method.interface);
            to.set_method(known.method.ordinal);
            to.set_stage(match known.stage {
                Stage::Runs => request::Stage::Runs,
                Stage::CutShort => request::Stage::CutShort,
                Stage::Replied => request::Stage::Replied,
                Stage::Failed => request::Stage::Failed,
            });
            to.set_bytes(known.bytes);
            let mut grants = to.init_grants(known.lineage.len() as u32);
            for (at, grant) in (0..).zip(known.lineage) {
                grants.set(at, grant.as_bytes());
            }
        }
        Ok(())
    }

    async fn alarms(
        self: Rc<Self>,
        params: host_admin::AlarmsParams,
        mut results: host_admin::AlarmsResults,
    ) -> Result<()> {
        let target = target(params.get()?.get_target()?)?;
        let alarms = alarms::stored(&self.vat, target)?;
        self.vat.turns.durable_of(target).await.map_err(|error| storage_failed(&error))?;
        let mut list = results.get().init_alarms(alarms.len() as u32);
        for (at, AlarmRecord { alarm, .. }) in (0..).zip(alarms) {
            let mut to = list.reborrow().get(at);
            to.set_name(&alarm.name);
            to.set_set_for(alarm.set_for_ms);
            to.set_next(alarm.next_ms.unwrap_or_default());
            to.set_failed(alarm.failed);
            to.set_is_dead(alarm.is_dead());
            to.set_error(&alarm.error);
        }
        Ok(())
    }

    async fn cancel_alarm(
        self: Rc<Self>,
        params: host_admin::CancelAlarmParams,
        mut results: host_admin::CancelAlarmResults,
    ) -> Result<()> {
        let params = params.get()?;
        let (target, name) = (target(params.get_target()?)?, params.get_name()?.to_str()?);
        self.vat.turns.outside_turns().await;
        let cancelled = alarms::cancel_of(&self.vat, target, name)?;
        self.vat.turns.durable_of(target).await.map_err(|error| storage_failed(&error))?;
        results.get().set_cancelled(cancelled);
        Ok(())
    }

    async fn clear_requests(
        self: Rc<Self>,
        params: host_admin::ClearRequestsParams,
        mut results: host_admin::ClearRequestsResults,
    ) -> Result<()> {
        let params = params.get()?;
        let which = match (params.get_id()?, params.get_grant()?) {
            ([], []) => IdSelection::All,
            (id, []) => IdSelection::Id(RequestId::new(id)?),
            ([], grant) => IdSelection::Of(grant_id(grant)?),
            _ => return Err(failed("either an id or a grant says which are meant")),
        };
        let cleared =
            once::clear_requests(&self.vat, target(params.get_target()?)?, &which).await?;
        results.get().set_cleared(cleared.gone);
        results.get().set_running(cleared.running);
        Ok(())
    }
}
