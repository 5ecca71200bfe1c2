//! One export under way: a thread that reads a snapshot, and the capability that hands its frames
//! on.
//!
//! The vat's thread never reads the disk for it. Between the two is a short queue, so the thread
//! waits for a slow caller. A caller who is too slow loses the snapshot, since it keeps old pages
//! from being used again; and so does any caller when the storage has no other room left. The
//! storage waits for that, so it doesn't depend on the vat's thread.

use std::ops::ControlFlow;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Mutex, Notify, oneshot};

use super::storage_failed;
use crate::error::{Result, failed};
use crate::membrane;
use crate::schema::admin_capnp::export;
use crate::storage::archive::export::{Pick, export as read_all};
use crate::storage::log::reader::Reader;
use crate::storage::{Recall, Result as StorageResult, StorageError};

/// Chunks that were read and not asked for yet.
const CHUNKS_AHEAD: usize = 4;

/// The messages of the thread.
enum Chunk {
    Frames(Vec<u8>),
    Failed(StorageError),
    /// There is no more.
    Whole,
}

/// The export as its caller holds it; dropping it ends the thread.
struct Export {
    /// None once the caller was too slow.
    chunks: Mutex<Option<Receiver<Chunk>>>,
    /// Told by every call, and by the end.
    called: Rc<Notify>,
}

/// Begins to read; resolves when the moment is fixed. `open` is dropped when the thread ends.
///
/// # Errors
/// When the operating system gives no thread.
pub(in crate::host) async fn begin(
    reader: Reader,
    pick: Pick,
    stall: Duration,
    open: impl Send + 'static,
) -> Result<export::Client> {
    let (sender, chunks) = channel(CHUNKS_AHEAD);
    let (begun, has_begun) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("capstead-export".to_owned())
        .spawn(move || {
            let _open = open;
            read(&reader, &pick, begun, (&sender, &runtime));
        })
        .map_err(|error| failed(format!("no thread for the export: {error}")))?;
    // If it couldn't begin, the first chunk says why.
    let _ = has_begun.await;
    let called = Rc::new(Notify::new());
    let export = Rc::new(Export { chunks: Mutex::new(Some(chunks)), called: called.clone() });
    // Ends with the export.
    tokio::task::spawn_local(let_go_when_stalled(Rc::downgrade(&export), called, stall));
    Ok(membrane::serve(export))
}

fn read(
    reader: &Reader,
    pick: &Pick,
    begun: oneshot::Sender<()>,
    (chunks, runtime): (&Sender<Chunk>, &Handle),
) {
    let mut is_wanted = true;
    // The caller may be gone.
    let begun = || begun.send(()).unwrap_or_default();
    let called_back = Arc::new(Notify::new());
    let call = called_back.clone();
    let recall = Recall::new(move || call.notify_one());
    let read: StorageResult<()> = read_all((reader, &recall), pick, begun, &mut |frames| {
        let sent = runtime.block_on(async {
            tokio::select! {
                sent = chunks.send(Chunk::Frames(frames)) => Some(sent.is_ok()),
                () = called_back.notified() => None,
            }
        });
        is_wanted = sent.unwrap_or(true);
        if sent == Some(true) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let last = read.map_or_else(Chunk::Failed, |()| Chunk::Whole);
    if is_wanted {
        // The caller may be gone.
        let _ = chunks.blocking_send(last);
    }
}

async fn let_go_when_stalled(export: Weak<Export>, called: Rc<Notify>, stall: Duration) {
    loop {
        let is_stalled = tokio::time::timeout(stall, called.notified()).await.is_err();
        let Some(export) = export.upgrade() else { return };
        // While a caller waits for a chunk the lock is taken, and the caller isn't the slow one.
        if is_stalled && let Ok(mut chunks) = export.chunks.try_lock() {
            *chunks = None;
            return tracing::warn!("an export was given up: nobody asked for more of it");
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.called.notify_one();
    }
}

impl export::Server for Export {
    async fn next(
        self: Rc<Self>,
        _: export::NextParams,
        mut results: export::NextResults,
    ) -> Result<()> {
        let mut chunks = self.chunks.lock().await;
        let Some(open) = chunks.as_mut() else {
            return Err(failed(
                "the export was given up after a minute without a call: begin again",
            ));
        };
        let chunk = open.recv().await;
        self.called.notify_one();
        match chunk {
            Some(Chunk::Frames(frames)) => results.get().set_frames(&frames),
            Some(Chunk::Whole) => {
                // A caller who asks again is told the same.
                let (sender, again) = channel(1);
                let _ = sender.try_send(Chunk::Whole);
                *chunks = Some(again);
            }
            Some(Chunk::Failed(error)) => return Err(storage_failed(&error)),
            None => return Err(failed("the export ended before its end: begin again")),
        }
        Ok(())
    }
}
