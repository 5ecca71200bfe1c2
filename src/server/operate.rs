//! An operator's access to a data directory: through its server if one serves it, and otherwise in
//! this process, where the same code runs without listeners, gateway and classes.
//!
//! It never changes a directory that it can't use, and never makes one except for a restore.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::Connection;

use super::admin;
use super::data_dir::{DataDir, Group, Secrets};
use super::error::ServerError;
use crate::error::failed;
use crate::host::{AwakeLimits, Class, HostAdmin, Vat, VatOptions};
use crate::http::Room;
use crate::metrics::Metrics;
use crate::schema::admin_capnp::admin::Client;
use crate::storage::{Access, Compacted, LocalConfig, LogOptions, StorageError, compact};
use crate::sturdyref::Keys;
use crate::supervisor::{Supervisor, shards_of};

/// All data of a directory, until it is closed.
pub(crate) struct OpenedData {
    admin: Client,
    via: Via,
}

enum Via {
    Server(Connection),
    Ourselves { vats: Vec<Rc<Vat>>, _data: Rc<DataDir> },
}

impl fmt::Debug for OpenedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedData").finish_non_exhaustive()
    }
}

impl OpenedData {
    /// Opens the directory, or reaches its server, which keeps options of its own. A directory
    /// opened to read doesn't change. Of the classes, only their own settings and the names of
    /// their methods are used.
    ///
    /// # Errors
    /// When it can't be used: it is unchanged.
    pub(crate) async fn open(
        root: &Path,
        log: LogOptions,
        group: Group,
        classes: &[Class],
    ) -> Result<Self, ServerError> {
        let Some((data, hosts)) = DataDir::existing(root, log.access, group)? else {
            let connection = admin::connect(root).await?;
            return Ok(Self { admin: connection.bootstrap(), via: Via::Server(connection) });
        };
        Self::ourselves(Rc::new(data), hosts, log, classes)
    }

    fn ourselves(
        data: Rc<DataDir>,
        hosts: u16,
        mut log: LogOptions,
        classes: &[Class],
    ) -> Result<Self, ServerError> {
        log.owner = data.owner();
        check_placement(&data, hosts, log.access)?;
        let (mut vats, mut admins) = (Vec::new(), Vec::new());
        let keys = Keys::new(data.keys()?);
        for number in 0..hosts {
            let path = data.host(number);
            let vat = Vat::open(VatOptions {
                name: format!("host-{number}"),
                data: path.clone(),
                classes: classes.to_vec(),
                metrics: Arc::new(Metrics::default()),
                log,
                // Without listeners there are no calls.
                retention: Duration::ZERO,
                reference_cipher: keys.current().reference_cipher(),
                awake: AwakeLimits::NONE,
                bodies: Room::of_objects(Arc::default()),
            });
            let vat = vat.map_err(unusable(&path))?;
            let shards = shards_of(number, hosts).collect();
            admins.push(HostAdmin::serve(vat.clone(), shards, keys.clone()));
            vats.push(vat);
        }
        let host = move |number: u16| {
            let admin = admins.get(usize::from(number)).cloned();
            admin.ok_or_else(|| failed("there is no host of that number"))
        };
        let admin = admin::serve(data.clone(), keys, hosts, Box::new(host));
        Ok(Self { admin, via: Via::Ourselves { vats, _data: data } })
    }

    /// The capability to all data.
    pub(crate) fn admin(&self) -> &Client {
        &self.admin
    }

    /// Tells whether a server serves the directory meanwhile.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.via, Via::Server(_))
    }

    /// Commits what was written, and releases the directory.
    ///
    /// # Errors
    /// When the storage failed: acknowledged writes are durable.
    pub(crate) async fn close(self) -> Result<(), ServerError> {
        match self.via {
            Via::Server(connection) => connection.disconnect().await,
            Via::Ourselves { vats, .. } => {
                for vat in vats {
                    vat.close()?;
                }
            }
        }
        Ok(())
    }
}

/// A data directory that receives a backup. Nothing serves it before it is finished.
#[derive(Debug)]
pub(crate) struct Restoring {
    opened: OpenedData,
    data: Rc<DataDir>,
}

impl Restoring {
    /// Checks, without changing anything, that a backup can come into the directory.
    ///
    /// # Errors
    /// When it holds anything but the remains of a restore that was cut short.
    pub(crate) fn check(root: &Path) -> Result<(), ServerError> {
        DataDir::check_restorable(root)
    }

    /// Makes the directory, with the cluster's keys and without objects.
    ///
    /// # Errors
    /// When it holds anything but such remains, or can't be made.
    pub(crate) fn begin(
        root: &Path,
        hosts: u16,
        secrets: &Secrets,
        log: LogOptions,
    ) -> Result<Self, ServerError> {
        let data = Rc::new(DataDir::begin_restore(root, hosts, secrets)?);
        match OpenedData::ourselves(data.clone(), hosts, log, &[]) {
            Ok(opened) => Ok(Self { opened, data }),
            Err(error) => {
                data.unmake();
                Err(error)
            }
        }
    }

    /// The capability to all data.
    pub(crate) fn admin(&self) -> &Client {
        self.opened.admin()
    }

    /// Marks the restore as finished, durably. If that fails, the directory's content is removed.
    ///
    /// # Errors
    /// When the storage failed, or the directory can't be finished.
    pub(crate) async fn finish(self) -> Result<(), ServerError> {
        let Self { opened, data } = self;
        let finished = match opened.close().await {
            Ok(()) => data.finish_restore(),
            Err(error) => Err(error),
        };
        if finished.is_err() {
            data.unmake();
        }
        finished
    }

    /// Removes everything that was restored.
    pub(crate) async fn give_up(self) {
        let Self { opened, data } = self;
        // Parts that can't be closed are removed as well.
        let _ = opened.close().await;
        data.unmake();
    }
}

/// Compacts the storage of each host, one after the other. `progress` gets the records copied so
/// far, their total number, and the host.
///
/// # Errors
/// When the directory can't be used or is served. Each host's data are unchanged, compacted or not.
pub(crate) fn compact_all(
    root: &Path,
    map_bytes: usize,
    group: Group,
    mut progress: impl FnMut(u16, u64, u64),
) -> Result<Compacted, ServerError> {
    let existing = DataDir::existing(root, Access::Full, group)?;
    let Some((data, hosts)) = existing else { return Err(in_use(root)) };
    check_placement(&data, hosts, Access::Read)?;
    let mut sum = Compacted::default();
    for number in 0..hosts {
        let path = data.host(number);
        let compacted = compact(&path, map_bytes, &mut |done, of| progress(number, done, of));
        let compacted = compacted.map_err(|error| match error {
            StorageError::NoSpace { .. } => unusable(&path)(error),
            error => error.into(),
        })?;
        sum.records += compacted.records;
        sum.before += compacted.before;
        sum.after += compacted.after;
    }
    Ok(sum)
}

fn check_placement(data: &DataDir, hosts: u16, access: Access) -> Result<(), ServerError> {
    let path = data.supervisor();
    let config = LocalConfig::open_for(&path, access, data.owner()).map_err(unusable(&path))?;
    let checked = Supervisor::open(&config, hosts).map(drop);
    checked.map_err(|error| ServerError::Data { path, reason: error.extra })
}

fn in_use(root: &Path) -> ServerError {
    let reason = "is in use by another process; stop that one first".to_owned();
    ServerError::Data { path: root.to_owned(), reason }
}

fn unusable(path: &Path) -> impl FnOnce(StorageError) -> ServerError {
    let path: PathBuf = path.to_owned();
    move |error| ServerError::Data { path, reason: error.to_string() }
}
