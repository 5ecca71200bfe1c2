//! The operator's socket: `admin.sock` in the data directory, and the calls that are served on it.
//!
//! Anyone who can open the socket is the operator: its mode admits the owner of the server and no
//! other user. The socket exists while the server serves; only a server that was killed leaves it
//! behind.
//!
//! Keys are changed on disk first, and then for all hosts at once, on the thread that answers. That
//! syncs one or two files, and the first host waits meanwhile; this is acceptable because it is
//! rare.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::data_dir::{self, DataDir, ImportMark, Signing};
use super::error::ServerError;
use crate::error::{Result, failed, overloaded};
use crate::limits::FILES_PERIOD;
use crate::membrane;
use crate::net::{Places, rest_after};
use crate::schema::admin_capnp::{admin, host_admin, import_claim, key};
use crate::storage::lmdb::owned::{self, Owner};
use crate::sturdyref::Keys;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;
/// The time that a server may take for its first answer to its operator, in seconds.
const ANSWER_SECS: u64 = 10;
/// The time for which a server may send nothing to an operator who waits for an answer, in seconds:
/// longer than any disk takes for a commit.
const SILENCE_SECS: u64 = 60;
/// Longest path that certainly fits the address of a socket.
const PATH_BYTES_MAX: usize = 100;

/// The capability that the operator reaches.
struct Operator {
    data: Rc<DataDir>,
    keys: Keys,
    hosts: u16,
    host: HostAdmins,
    /// The import under way.
    import: RefCell<Weak<ImportRight>>,
}

/// The right to import: it lasts as long as any reference to it.
struct ImportRight;

impl import_claim::Server for ImportRight {}

/// Finds the data of a host by its number, anew for each use: a host may have joined again.
pub(super) type HostAdmins = Box<dyn Fn(u16) -> Result<host_admin::Client>>;

/// The capability to all data of a server with this number of hosts.
pub(super) fn serve(data: Rc<DataDir>, keys: Keys, hosts: u16, host: HostAdmins) -> admin::Client {
    membrane::serve(Rc::new(Operator { data, keys, hosts, host, import: RefCell::default() }))
}

impl Operator {
    /// Puts the keys in force that the files hold.
    fn read_keys(&self) -> Result<()> {
        self.keys.replace(self.data.keys().map_err(refused)?);
        Ok(())
    }

    fn rotate(&self) -> Result<()> {
        let added = self.data.change_keys(Signing::add).map_err(refused);
        self.read_keys()?;
        added?;
        tracing::info!("a new key signs references");
        Ok(())
    }

    fn revoke(&self, id: &[u8]) -> Result<()> {
        let keys = self.data.signing_keys().map_err(refused)?;
        let Some(at) = keys.iter().position(|key| key.id().as_bytes() == id) else {
            return Err(failed("there is no signing key with this id"));
        };
        let is_signing = at + 1 == keys.len();
        let gone = match is_signing.then(|| self.rotate()).transpose() {
            Ok(_) => self.data.change_keys(|folder| keys[at].remove(folder)),
            Err(error) => {
                // A stolen key must go on a full disk too.
                tracing::warn!(%error, "there is no room for one more key: the new one takes the bytes of the revoked one");
                self.data.change_keys(|folder| keys[at].replace(folder))
            }
        };
        self.read_keys()?;
        gone.map_err(refused)?;
        tracing::warn!(key = ?keys[at].id(), "a key was revoked: what it signed is refused");
        Ok(())
    }
}

fn refused(error: ServerError) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}

fn describe(signing: &Signing, mut key: key::Builder<'_>) {
    key.set_id(signing.id().as_bytes());
    key.set_created(signing.created_ms);
}

impl admin::Server for Operator {
    async fn describe(
        self: Rc<Self>,
        _: admin::DescribeParams,
        mut results: admin::DescribeResults,
    ) -> Result<()> {
        let mut results = results.get();
        results.set_cluster(self.keys.current().cluster().as_bytes());
        results.set_hosts(self.hosts);
        let (device, inode) = self.data.identity()?;
        results.set_device(device);
        results.set_inode(inode);
        Ok(())
    }

    async fn host(
        self: Rc<Self>,
        params: admin::HostParams,
        mut results: admin::HostResults,
    ) -> Result<()> {
        let number = params.get()?.get_number();
        if number >= self.hosts {
            return Err(failed("there is no host of that number"));
        }
        results.get().set_host((self.host)(number)?);
        Ok(())
    }

    async fn secrets(
        self: Rc<Self>,
        _: admin::SecretsParams,
        mut results: admin::SecretsResults,
    ) -> Result<()> {
        let files = self.data.secrets().map_err(refused)?;
        let mut secrets = results.get().init_secrets(files.len() as u32);
        for (at, (name, text)) in (0..).zip(&files) {
            let mut secret = secrets.reborrow().get(at);
            secret.set_name(name);
            secret.set_text(text);
        }
        Ok(())
    }

    async fn keys(
        self: Rc<Self>,
        _: admin::KeysParams,
        mut results: admin::KeysResults,
    ) -> Result<()> {
        let signing = self.data.signing_keys().map_err(refused)?;
        let mut keys = results.get().init_keys(signing.len() as u32);
        for (at, signing) in (0..).zip(&signing) {
            describe(signing, keys.reborrow().get(at));
        }
        Ok(())
    }

    async fn rotate_key(
        self: Rc<Self>,
        _: admin::RotateKeyParams,
        mut results: admin::RotateKeyResults,
    ) -> Result<()> {
        self.rotate()?;
        let keys = self.data.signing_keys().map_err(refused)?;
        let newest = keys.last().ok_or_else(|| failed("there is no signing key"))?;
        describe(newest, results.get().init_key());
        Ok(())
    }

    async fn revoke_key(
        self: Rc<Self>,
        params: admin::RevokeKeyParams,
        _: admin::RevokeKeyResults,
    ) -> Result<()> {
        self.revoke(params.get()?.get_id()?)
    }

    async fn import_under_way(
        self: Rc<Self>,
        params: admin::ImportUnderWayParams,
        mut results: admin::ImportUnderWayResults,
    ) -> Result<()> {
        let is = self.data.is_importing(params.get()?.get_archive()?).map_err(refused)?;
        results.get().set_is_under_way(is);
        Ok(())
    }

    async fn set_import_under_way(
        self: Rc<Self>,
        params: admin::SetImportUnderWayParams,
        _: admin::SetImportUnderWayResults,
    ) -> Result<()> {
        let params = params.get()?;
        let is_under_way = params.get_is_under_way();
        let state = if is_under_way { ImportMark::UnderWay } else { ImportMark::Ended };
        self.data.mark_import(params.get_archive()?, state).map_err(refused)
    }

    async fn claim_import(
        self: Rc<Self>,
        _: admin::ClaimImportParams,
        mut results: admin::ClaimImportResults,
    ) -> Result<()> {
        let mut import = self.import.borrow_mut();
        if import.strong_count() > 0 {
            return Err(overloaded(
                "another import is under way, and nothing was changed: try again when it has ended",
            ));
        }
        let claim = Rc::new(ImportRight);
        *import = Rc::downgrade(&claim);
        results.get().set_claim(membrane::serve(claim));
        Ok(())
    }
}

/// The socket while it is listened on.
pub(super) struct AdminSocket {
    path: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl AdminSocket {
    /// Starts to listen in the data directory, which the caller has locked.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub(super) fn start(data: &DataDir, admin: admin::Client, tools: usize) -> io::Result<Self> {
        let path = data_dir::admin_socket(data.root());
        // A server that was killed left it: the lock shows that no other server runs.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = listen(data.root())?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accept =
            accept(data.root().to_owned(), listener, admin, tools, stop.clone(), tasks.clone());
        tasks.spawn_local(accept);
        Ok(Self { path, stop, tasks })
    }

    /// Ends all connections, and removes the socket.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        // A name that stays is removed by the next start.
        let _ = fs::remove_file(&self.path);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Makes the socket in the data directory, where there is none.
fn listen(root: &Path) -> io::Result<UnixListener> {
    let reached = Reached::new(root)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(&reached.path)?;
    // Nobody can connect before `listen`.
    fs::set_permissions(data_dir::admin_socket(root), Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)
}

/// Makes the socket anew if its name is gone: without it, nobody could revoke a key.
fn listen_again(root: &Path, listener: UnixListener) -> UnixListener {
    match fs::symlink_metadata(data_dir::admin_socket(root)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => return listener,
    }
    match listen(root) {
        Ok(again) => {
            tracing::warn!("admin.sock was removed while it was in use: it is there again");
            again
        }
        // The directory is gone or can't be written: it's tried again.
        Err(_) => listener,
    }
}

/// Accepts operators until `stop` is cancelled.
async fn accept(
    root: PathBuf,
    mut listener: UnixListener,
    admin: admin::Client,
    tools: usize,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Places::new(tools, tools);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep(FILES_PERIOD) => {
                listener = listen_again(&root, listener);
                continue;
            }
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                rest_after(&error).await;
                continue;
            }
        };
        let Some(place) = Places::take(&places) else { continue };
        let (admin, stop) = (admin.client.clone(), stop.clone());
        // The task ends with its connection.
        tasks.spawn_local(async move {
            let _place = place;
            match Connection::new(stream, Side::Server, Some(admin), Limits::of_trusted()) {
                Ok(connection) => tokio::select! {
                    _ = connection.closed() => {}
                    () = stop.cancelled() => connection.disconnect().await,
                },
                Err(error) => tracing::error!(%error, "can't serve the operator"),
            }
        });
    }
}

/// The socket under a path that fits its address, however long that of the directory is.
struct Reached {
    path: PathBuf,
    /// Kept open because the path goes through it.
    _root: Option<File>,
}

impl Reached {
    fn new(root: &Path) -> io::Result<Self> {
        let path = data_dir::admin_socket(root);
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { path, _root: None });
        }
        let root = File::open(root)?;
        let folder = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        Ok(Self { path: data_dir::admin_socket(&folder), _root: Some(root) })
    }
}

/// Connects to the server that uses the directory. Another user who can write to the directory
/// could lead us elsewhere, so the server must belong to the directory's owner and hold its lock.
///
/// # Errors
/// When nothing listens there, or something other than that server does: nothing was asked of it.
pub(super) async fn connect(root: &Path) -> std::result::Result<Connection, ServerError> {
    let unreachable = |error: io::Error| ServerError::Data {
        path: root.to_owned(),
        reason: format!(
            "is in use by another process that takes no commands at its admin.sock ({error}); if that \
             one is just starting, try again; else stop it, and this works without it"
        ),
    };
    let owner = data_dir::owner_of(root).map_err(unreachable)?;
    check_socket(&data_dir::admin_socket(root), owner).map_err(unreachable)?;
    let reached = Reached::new(root).map_err(unreachable)?;
    let limit = Duration::from_secs(ANSWER_SECS);
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it said nothing in {limit:?}"));
    let first = async {
        let stream = UnixStream::connect(&reached.path).await?;
        let peer = Owner(stream.peer_cred()?.uid());
        if peer != owner {
            return Err(io::Error::other(format!(
                "the server there runs as the user {}, and the directory belongs to {}",
                peer.0, owner.0
            )));
        }
        let silence = Duration::from_secs(SILENCE_SECS);
        let limits = Limits { silence, ..Limits::of_trusted() };
        let connection = Connection::new(stream, Side::Client, None, limits);
        let connection = connection.map_err(|error| io::Error::other(error.to_string()))?;
        let described = connection.bootstrap::<admin::Client>().describe_request().send().promise;
        let described = described.await.map_err(|error| io::Error::other(error.extra))?;
        let described = described.get().map_err(|error| io::Error::other(error.extra))?;
        if (described.get_device(), described.get_inode()) != data_dir::identity(root)? {
            return Err(io::Error::other("the server there serves another directory"));
        }
        Ok(connection)
    };
    let first = tokio::time::timeout(limit, first).await.unwrap_or_else(|_| Err(late()));
    first.map_err(unreachable)
}

/// Refuses a link, which could lead to another user's server.
fn check_socket(path: &Path, owner: Owner) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Err(owned::link());
    }
    if !found.file_type().is_socket() {
        return Err(io::Error::other("it is no socket"));
    }
    owner.check(&found)
}
