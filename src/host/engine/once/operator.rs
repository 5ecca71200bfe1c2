//! The request ids of an object, for the operator, who sees them and takes them away.

use std::ops::Bound;

use capstead_client::sturdyref::{GrantId, Method};

use super::kept::forget;
use crate::error::Result;
use crate::host::base::request_record::{self as record, CallState, ORDER, Record, RequestId};
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::storage::{PageSize, Range, Space};

/// Ids that are read before other tasks of the thread get their turn again.
const SOME: PageSize = PageSize { entries: 64, bytes: usize::MAX };

/// The ids that are meant.
pub(in crate::host) enum IdSelection {
    All,
    Id(RequestId),
    /// The ids that came by this grant, or by one that was made from it.
    Of(GrantId),
}

/// The state of a call with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) enum Stage {
    Runs,
    /// It began, and the process or the object in memory ended before it did.
    CutShort,
    Replied,
    Failed,
}

/// A call with an id, without its reply.
pub(in crate::host) struct RequestSummary {
    pub(in crate::host) id: RequestId,
    pub(in crate::host) number: u64,
    /// Milliseconds since 1970.
    pub(in crate::host) began_ms: u64,
    pub(in crate::host) method: Method,
    pub(in crate::host) stage: Stage,
    /// Length of its record, which has the reply in it.
    pub(in crate::host) bytes: u64,
    pub(in crate::host) lineage: Vec<GrantId>,
}

/// Numbers of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host) struct ClearedCounts {
    pub(in crate::host) gone: u64,
    /// Meant too, and left since their calls run.
    pub(in crate::host) running: u64,
}

/// Some of an object's calls with ids behind number `after`, in the order in which they began. None
/// behind the last.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn requests(
    vat: &Vat,
    target: ObjectId,
    after: Option<u64>,
) -> Result<Vec<RequestSummary>> {
    let mut range = Range::all().within(&[ORDER]);
    if let Some(after) = after {
        range.start = Bound::Excluded(record::order_key(after).to_vec());
    }
    let (store, instance) = (vat.turns.store(), vat.objects.instance_of(target));
    let page = store.records(target, Space::Requests, &range, SOME)?;
    let mut found = Vec::new();
    for (key, order) in (0..).map_while(|at| page.get(at)) {
        let (number, (began_ms, id)) = (record::number_in(key)?, record::decode_order(order)?);
        let bytes = store.get(target, Space::Requests, &id.key())?;
        let (length, call) = match &bytes {
            Some(bytes) => (bytes.len() as u64, Some(Record::decode(bytes)?)),
            None => (0, None),
        };
        let runs = instance.as_ref().is_some_and(|instance| instance.requests.runs(&id));
        let stage = match call.as_ref().map(|call| &call.state) {
            _ if runs => Stage::Runs,
            Some(CallState::Ended(Ok(_))) => Stage::Replied,
            Some(CallState::Ended(Err(_))) => Stage::Failed,
            Some(CallState::Begun) | None => Stage::CutShort,
        };
        let (method, lineage) =
            call.map_or_else(Default::default, |call| (call.method, call.lineage));
        found.push(RequestSummary { id, number, began_ms, method, stage, bytes: length, lineage });
    }
    Ok(found)
}

/// Forgets the selected ids whose calls don't run. A retry with one of them is another call.
///
/// # Errors
/// When the storage can't be read or written: some may be forgotten.
pub(in crate::host) async fn clear_requests(
    vat: &Vat,
    target: ObjectId,
    which: &IdSelection,
) -> Result<ClearedCounts> {
    let (mut after, mut cleared) = (None, ClearedCounts::default());
    loop {
        vat.turns.outside_turns().await;
        let some = requests(vat, target, after)?;
        let Some(last) = some.last() else { break };
        after = Some(last.number);
        let (running, gone): (Vec<_>, Vec<_>) = some
            .into_iter()
            .filter(|request| which.means(request))
            .partition(|request| request.stage == Stage::Runs);
        vat.write_of_server(target, || {
            let mut store = vat.turns.store_mut();
            gone.iter()
                .try_for_each(|request| forget(&mut store, target, request.number, &request.id))
        })?;
        if let Some(instance) = vat.objects.instance_of(target) {
            instance.requests.were_cleared();
        }
        cleared.gone += gone.len() as u64;
        cleared.running += running.len() as u64;
        if !vat.turns.has_room() {
            vat.turns.settled().await;
        }
        tokio::task::yield_now().await;
    }
    vat.flush().await?;
    Ok(cleared)
}

impl IdSelection {
    fn means(&self, request: &RequestSummary) -> bool {
        match self {
            Self::All => true,
            Self::Id(id) => *id == request.id,
            Self::Of(grant) => request.lineage.contains(grant),
        }
    }
}
