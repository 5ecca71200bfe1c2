//! Every bound in the system: its name with the unit, its value, and why it is what it is.

use std::time::Duration;

/// Longest key in an object's storage. LMDB takes 511 bytes; a longer key is stored in parts.
pub(crate) const KEY_BYTES_MAX: usize = 2_048;

/// Longest key of what a cluster agrees on: it must fit LMDB as it is.
pub(crate) const CONFIG_KEY_BYTES_MAX: usize = 480;

/// Largest value in an object's storage: one value fits a message and a batch several times.
pub(crate) const VALUE_BYTES_MAX: usize = 4 << 20;

/// Largest sum of keys and values that one turn can write: it is copied as a whole.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;

/// The most that one object may store unless the server says otherwise, as a guard against runaways.
pub(crate) const OBJECT_BYTES_MAX: u64 = 10 << 30;

/// Longest name of a class, in bytes; its length is one byte of the object's header.
pub(crate) const CLASS_BYTES_MAX: usize = 100;

/// Longest name of an object in its namespace, in bytes; it is kept in the object's header.
pub(crate) const NAME_BYTES_MAX: usize = 1024;

/// Request ids that one object keeps. A new call beyond them waits until the oldest are forgotten.
pub(crate) const REQUEST_IDS_MAX: u64 = 65_536;

/// Request ids that one object keeps for one grant and all that were made from it: a quarter of all.
pub(crate) const SHARE_IDS_MAX: u32 = 16_384;

/// Grants of one object or namespace that are made from one of them, directly or not.
pub(crate) const SHARE_GRANTS_MAX: u32 = 16_384;

/// Grants that together fill the quota of an object: what is kept for one of them is a quarter at most.
pub(crate) const SHARES_OF_QUOTA: u64 = 4;

/// The time for which request ids are kept, unless the server says otherwise, in seconds: a day, in
/// which whoever lost a reply has come back.
pub(crate) const REQUEST_RETENTION_SECS: u64 = 24 * 60 * 60;

/// Turns that may wait for the disk before no new call starts.
pub(crate) const COMMIT_QUEUE_TURNS: u64 = 4096;

/// Bytes that wait for the commit thread before no new call starts.
pub(crate) const COMMIT_QUEUE_BYTES: usize = 64 << 20;

/// Address space that one environment reserves: it is sparse, and is never resized while serving.
pub(crate) const MAP_BYTES: usize = 1 << 40;

/// Bounds of what growth leaves free of a disk or a map, which is 5 % of it: what may wait for the
/// commit thread must fit several times.
pub(crate) const RESERVE_BYTES_MIN: u64 = 128 << 20;
/// The least that imports leave free, whatever the reserve: their steps are large, and several may wait for
/// the commit thread.
pub(crate) const IMPORT_RESERVE_BYTES: u64 = 32 << 20;
/// See [`RESERVE_BYTES_MIN`]; more would be waste.
pub(crate) const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// Largest body of an HTTP request that the gateway takes.
pub(crate) const HTTP_BODY_BYTES_MAX: usize = 1 << 20;

/// The time for which an object waits for the end of a request's body that comes by RPC, in
/// seconds. The gateway sends bodies whole.
pub(crate) const HTTP_BODY_SECS: u64 = 60;

/// Bytes of request bodies by RPC without an end that the objects of a server hold, all together.
pub(crate) const HTTP_UNENDED_BYTES_MAX: usize = 128 << 20;

/// Largest body of an HTTP response that an object gives: the gateway holds it whole.
pub(crate) const HTTP_RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Largest message that the parameters of a call in JSON make: as large as messages may be.
pub(crate) const JSON_PARAMS_BYTES_MAX: usize = 8 << 20;

/// References in the parameters of a call in JSON, and those that its results make: each is looked up, or
/// written, by the owner of its object.
pub(crate) const JSON_CAPABILITIES_MAX: usize = 64;

/// The time for which an object stays awake without a call, in seconds: waking costs less than 0.2
/// ms.
pub(crate) const WARM_SECS: u64 = 60;

/// Objects that are awake in one server at most: a quarter of a GiB of them, if they keep little.
pub(crate) const AWAKE_OBJECTS_MAX: usize = 100_000;

/// The bytes that all objects that are awake may take, in one server. It leaves as much of a GiB to
/// everything else.
pub(crate) const AWAKE_BYTES_MAX: usize = 512 << 20;

/// The bytes that an instance takes beside its values, rounded up.
pub(crate) const INSTANCE_BYTES: usize = 2560;

/// The longest time that a call waits for an exclusive object that runs another one, in seconds. Most
/// deadlocks are found at once; this ends the others.
pub(crate) const EXCLUSIVE_WAIT_SECS: u64 = 30;

/// The time that an object may take to wake, in seconds: by then it waits for something that waits
/// for it.
pub(crate) const WAKE_SECS: u64 = 30;

/// The time for which shutdown waits for calls under way, in seconds.
pub(crate) const SHUTDOWN_SECS: u64 = 10;

/// The time that a client may take to send the head of an HTTP request, in seconds.
pub(crate) const HTTP_HEADER_SECS: u64 = 10;

/// Longest label of a grant, in bytes: a name, or a sentence.
pub(crate) const GRANT_LABEL_BYTES_MAX: usize = 256;

/// Grants that are made from each other in a row: each is looked up when the last one is restored.
pub(crate) const GRANT_DEPTH_MAX: u8 = 16;

/// Holders' keys that a right is bound to at most; each takes a signature to restore.
pub(crate) const HOLDERS_MAX: usize = 4;

/// Grants that one answer lists.
pub(crate) const GRANTS_LISTED_MAX: usize = 64;

/// The least time between two times that the last uses of grants are written down, in seconds.
pub(crate) const RESTORED_FLUSH_SECS: u64 = 60;

/// The time that a holder may take to prove to have the key, in seconds.
pub(crate) const PROOF_SECS: u64 = 30;

/// Hosts of one server: each is a thread with an address space of its own.
pub(crate) const HOSTS_MAX: u16 = 64;

/// The time for which a grant is kept whose time is over, in milliseconds: 30 days. A clock that is
/// ahead for a moment must not destroy what is good when it is right again.
pub(crate) const OVER_GRANTS_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// The time between two looks at the files of the data while nothing is committed: whoever changes
/// one beside the server is told within a second.
pub(crate) const FILES_PERIOD: Duration = Duration::from_millis(500);
