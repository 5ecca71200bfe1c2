//! Every bound in the system: its name with the unit, its value, and the reason for it.

use std::time::Duration;

/// Longest key in an object's storage. LMDB takes 511 bytes; a longer key is stored in parts.
pub(crate) const KEY_BYTES_MAX: usize = 2_048;

/// Longest key of the values that a cluster agrees on: it must fit into a key of LMDB.
pub(crate) const CONFIG_KEY_BYTES_MAX: usize = 480;

/// Largest value in an object's storage: a message and a batch have room for more than one.
pub(crate) const VALUE_BYTES_MAX: usize = 4 << 20;

/// Largest sum of keys and values that one turn can write, with [`WRITE_BYTES`] for each: the batch
/// is copied as a whole.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;

/// The bytes that a write counts in addition to its key and value. It takes several times as much
/// memory until it is applied, however short it is.
pub(crate) const WRITE_BYTES: usize = 32;

/// The most that one object may store unless the server sets another limit. It guards against
/// runaways.
pub(crate) const OBJECT_BYTES_MAX: u64 = 10 << 30;

/// Longest name of a class, in bytes; its length is one byte of the object's header.
pub(crate) const CLASS_BYTES_MAX: usize = 100;

/// Longest name of an object in its namespace, in bytes; it is kept in the object's header.
pub(crate) const NAME_BYTES_MAX: usize = 1024;

/// Request ids that one object keeps. A new call beyond them waits until the oldest are forgotten.
pub(crate) const REQUEST_IDS_MAX: u64 = 65_536;

/// Request ids that one object keeps for one grant and all grants made from it: a quarter of all.
pub(crate) const SHARE_IDS_MAX: u32 = 16_384;

/// Grants of one object or namespace that are made from one of its grants, directly or not.
pub(crate) const SHARE_GRANTS_MAX: u32 = 16_384;

/// The number of grants that together fill an object's quota: each may use a quarter at most.
pub(crate) const SHARES_OF_QUOTA: u64 = 4;

/// The time for which request ids are kept, unless the server sets another, in seconds: a day,
/// within which a client that lost a reply will have come back.
pub(crate) const REQUEST_RETENTION_SECS: u64 = 24 * 60 * 60;

/// Alarms of one object. Cancelling all of them is the work of one turn.
pub(crate) const ALARMS_MAX: u32 = 1_000;

/// Longest name of an alarm, in bytes.
pub(crate) const ALARM_NAME_BYTES_MAX: usize = 256;

/// Bytes of an alarm's last error that are kept.
pub(crate) const ALARM_ERROR_BYTES_MAX: usize = 256;

/// The time after which an alarm is tried again that failed for the first time, in milliseconds; it
/// doubles with each failure.
pub(crate) const ALARM_RETRY_MS: u64 = 2_000;

/// Tries of an alarm before it is dead: they take 17 minutes, in which most troubles are mended.
pub(crate) const ALARM_TRIES_MAX: u8 = 10;

/// Doublings of the time after which an alarm is tried again that could not begin: to 4 minutes.
pub(crate) const ALARM_POSTPONED_MAX: u8 = 7;

/// The time for which an alarm is left alone whose record can't be read.
pub(crate) const ALARM_ASIDE: Duration = Duration::from_mins(5);

/// The time after which the method of an alarm is cut short, which counts as a failure.
pub(crate) const ALARM_LIMIT: Duration = Duration::from_mins(15);

/// Alarms of one host that are fired at once, apart from slow ones.
pub(crate) const ALARMS_AT_ONCE: usize = 64;

/// Alarms of one object that are under way at once, slow ones too: an eighth of the host's places.
pub(crate) const ALARMS_AT_ONCE_OF_OBJECT: usize = 8;

/// Slow alarms of one host that are under way at once: each keeps its object in memory.
pub(crate) const ALARMS_SLOW_MAX: usize = 256;

/// The time after which an alarm that is still handled is slow, and holds up no other one.
pub(crate) const ALARM_SLOW: Duration = Duration::from_secs(10);

/// The time between two looks at the clock, which may have been set, while an alarm is due later.
pub(crate) const ALARM_LOOK: Duration = Duration::from_millis(500);

/// Alarms that are read at once: those that are due wait in the storage, not in memory.
pub(crate) const ALARMS_READ: usize = 256;

/// Turns that may wait for the disk before no new call starts; with twice as many, none goes on.
pub(crate) const COMMIT_QUEUE_TURNS: u64 = 4096;

/// Bytes that may wait for the commit thread before no new call starts; with twice as many, none
/// goes on.
pub(crate) const COMMIT_QUEUE_BYTES: usize = 64 << 20;

/// The most bytes of turns that are committed together, unless one turn has more: so much room is
/// needed in one piece of the log.
pub(crate) const COMMIT_GROUP_BYTES: usize = 16 << 20;

/// Bytes of the log that wait to be applied to the database before no new call starts; with twice
/// as many, none goes on. They are in memory, and a start after a crash reads them again.
pub(crate) const BACKLOG_BYTES: u64 = 64 << 20;

/// The longest time that a group commit waits to be applied together with later ones.
pub(crate) const BACKLOG_AGE: Duration = Duration::from_millis(200);

/// Address space that one environment reserves. It is sparse, and is never resized while serving.
pub(crate) const MAP_BYTES: usize = 1 << 40;

/// Bounds of the reserve that growth leaves free of a disk or a map, which is 5 % of it: it must
/// have room for several times the bytes that may wait for the commit thread.
pub(crate) const RESERVE_BYTES_MIN: u64 = 128 << 20;
/// The least that imports leave free, no matter what the reserve is: their steps are large, and
/// several may wait for the commit thread.
pub(crate) const IMPORT_RESERVE_BYTES: u64 = 32 << 20;
/// See [`RESERVE_BYTES_MIN`]; a larger reserve would be waste.
pub(crate) const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// Largest body of an HTTP request that a class takes whole, and of a call in JSON.
pub(crate) const HTTP_BODY_BYTES_MAX: usize = 1 << 20;

/// The time for which a class that takes a request's body whole waits for its end, in seconds: as
/// long as the gateway lets a body of that size take by default.
pub(crate) const HTTP_BODY_SECS: u64 = 120;

/// Bytes of request bodies that came and weren't read yet, of all objects of a server together.
pub(crate) const HTTP_UNENDED_BYTES_MAX: usize = 128 << 20;

/// Bytes of an HTTP response that an object may write before any of them is taken: the gateway
/// holds all of what a class answers at once.
pub(crate) const HTTP_RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The most bytes of a streamed body in one call. A body that isn't larger is passed on whole.
pub(crate) const HTTP_PART_BYTES: usize = 64 << 10;

/// Bytes of a streamed body that wait for their reader: then the writer waits too.
pub(crate) const HTTP_WINDOW_BYTES: usize = 256 << 10;

/// The time for which the gateway waits for the end of a body that began, before it passes on what
/// there is, in milliseconds: nearly all small bodies are whole by then.
pub(crate) const HTTP_WHOLE_MILLIS: u64 = 20;

/// Largest message that the parameters of a call in JSON make: as large as messages may be.
pub(crate) const JSON_PARAMS_BYTES_MAX: usize = 8 << 20;

/// References in the parameters of a call in JSON, and those that its results make: each is looked
/// up, or written, by the owner of its object.
pub(crate) const JSON_CAPABILITIES_MAX: usize = 64;

/// The time for which an object stays awake without a call, in seconds: waking costs less than 0.2
/// ms.
pub(crate) const WARM_SECS: u64 = 60;

/// The most objects that are awake in one server: they take a quarter of a GiB if each keeps
/// little.
pub(crate) const AWAKE_OBJECTS_MAX: usize = 100_000;

/// The most bytes that all awake objects of one server may take. Of a GiB, this leaves as much for
/// everything else.
pub(crate) const AWAKE_BYTES_MAX: usize = 512 << 20;

/// The number of grants below a root that together can keep as many objects awake as may be, with
/// all that was made from each: one alone keeps a quarter at most.
pub(crate) const SHARES_OF_AWAKE: usize = 4;

/// The bytes that an instance takes in addition to its values, rounded up.
pub(crate) const INSTANCE_BYTES: usize = 2560;

/// The longest time that a call waits for an exclusive object that runs another call, in seconds.
/// Most deadlocks are found at once; this limit ends the others.
pub(crate) const EXCLUSIVE_WAIT_SECS: u64 = 30;

/// The time that an object may take to wake, in seconds. An object that takes longer probably waits
/// for something that waits for it.
pub(crate) const WAKE_SECS: u64 = 30;

/// The time for which shutdown waits for calls under way, in seconds.
pub(crate) const SHUTDOWN_SECS: u64 = 10;

/// The time that a client may take to send the head of an HTTP request, in seconds.
pub(crate) const HTTP_HEADER_SECS: u64 = 10;

/// The time in which a server outside has to be reached, with its name and TLS, in seconds: then
/// another try is better.
pub(crate) const OUTBOUND_CONNECT_SECS: u64 = 10;

/// The time for which nothing may move between an object and a server outside, unless the server
/// sets another, in seconds: as for the gateway's clients.
pub(crate) const OUTBOUND_IDLE_SECS: u64 = 120;

/// Bytes of one body that goes out or comes in, unless the server sets another number. None is held
/// in memory; it guards against runaways.
pub(crate) const OUTBOUND_BODY_BYTES_MAX: u64 = 1 << 30;

/// Requests and WebSockets to the outside at once, unless the server sets another number. Each has
/// a connection.
pub(crate) const OUTBOUND_CONNECTIONS_MAX: usize = 256;

/// Largest head of a response from outside: as hyper has them, four times of what is usual.
pub(crate) const OUTBOUND_HEAD_BYTES_MAX: usize = 64 << 10;

/// Largest message of a WebSocket from outside: as from the gateway's clients.
pub(crate) const OUTBOUND_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes that wait to be written to such a server: a message of the object's, and answers to the
/// server's pings, of which those beyond that are left out.
pub(crate) const OUTBOUND_UNWRITTEN_BYTES_MAX: usize = 8 << 20;

/// Longest label of a grant, in bytes: a name, or a sentence.
pub(crate) const GRANT_LABEL_BYTES_MAX: usize = 256;

/// Grants that are made from each other in a row: each is looked up when the last one is restored.
pub(crate) const GRANT_DEPTH_MAX: u8 = 16;

/// The most keys of holders that a right, or a reference, is bound to: restoring takes a signature
/// for each.
pub(crate) const HOLDERS_MAX: usize = 4;

/// Grants that one answer lists.
pub(crate) const GRANTS_LISTED_MAX: usize = 64;

/// The least time between two writes of the grants' last uses, in seconds.
pub(crate) const RESTORED_FLUSH_SECS: u64 = 60;

/// The time that a holder may take to prove to have the secret key, in seconds.
pub(crate) const PROOF_SECS: u64 = 30;

/// Hosts of one server: each is a thread with an address space of its own.
pub(crate) const HOSTS_MAX: u16 = 64;

/// The time for which an expired grant is kept, in milliseconds: 30 days. A clock that is ahead for
/// a moment must not destroy grants that are valid by the right time.
pub(crate) const OVER_GRANTS_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// The time between two checks of the data files while nothing is committed: a change of one from
/// outside is reported within a second.
pub(crate) const FILES_PERIOD: Duration = Duration::from_millis(500);

/// Longest reason in the close frame of a WebSocket, in bytes: a control frame has 125, two of
/// which are the code.
pub(crate) const SOCKET_REASON_BYTES_MAX: usize = 123;

/// Bytes that an object keeps with one WebSocket: a host holds them for as long as it is open.
pub(crate) const SOCKET_ATTACHMENT_BYTES_MAX: usize = 16 << 10;

/// Tags of one WebSocket, and bytes of each.
pub(crate) const SOCKET_TAGS_MAX: usize = 10;
/// See [`SOCKET_TAGS_MAX`].
pub(crate) const SOCKET_TAG_BYTES_MAX: usize = 256;

/// Bytes of a text that is answered without the object, and of the answer.
pub(crate) const SOCKET_AUTO_REPLY_BYTES_MAX: usize = 2 << 10;

/// The bytes that a host takes for one open WebSocket in addition to its tags and attachment,
/// rounded up.
pub(crate) const SOCKET_BYTES: usize = 1 << 10;

/// Frames of one surviving WebSocket, and bytes of them, that are stored until the gateway has
/// them.
pub(crate) const SURVIVING_UNSENT_MAX: usize = 4096;
/// See [`SURVIVING_UNSENT_MAX`].
pub(crate) const SURVIVING_UNSENT_BYTES_MAX: usize = 1 << 20;

/// The time in which a surviving WebSocket whose path broke has to be resumed, in seconds: a host
/// that was killed is back by then.
pub(crate) const SURVIVING_AWAY_SECS: u64 = 60;

/// The time for which the answer to a close frame is waited for, in seconds, and what comes is read
/// after a close that the other side might not have seen yet.
pub(crate) const SOCKET_CLOSE_SECS: u64 = 3;

/// Messages of one WebSocket, and bytes of them, that its object works on before more are read.
pub(crate) const SOCKET_UNHANDLED_MAX: usize = 64;
/// See [`SOCKET_UNHANDLED_MAX`].
pub(crate) const SOCKET_UNHANDLED_BYTES_MAX: usize = 256 << 10;
