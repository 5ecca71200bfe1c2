@0xb7e2f4a91c6d3850;
# The operator's way to the data of a server: taking objects out, and bringing them in.
#
# It is served on a Unix socket in the data directory, `admin.sock`, and nowhere else. A process
# that can open that socket is the operator. None of these capabilities is ever handed to a client
# or a class.
#
# Objects travel in frames, whose bytes are those of an archive (docs/archive-format.md). A list of
# frames is whole: none of them goes on in the next list.

using Grant = import "/capstead/facet.capnp".Grant;
using Terms = import "/capstead/facet.capnp".Terms;

interface Admin {
  # The whole server: the bootstrap capability of the socket.

  describe @0 () -> (cluster :Data, hosts :UInt16, device :UInt64, inode :UInt64);
  # The cluster's identity (32 bytes), which is no secret, and how many hosts there are; and the
  # file `lock` of the data directory, by which an operator knows that it is the right one.

  host @1 (number :UInt16) -> (host :HostAdmin);
  # The data of one host, from 0. A number that doesn't exist is refused.

  secrets @2 () -> (secrets :List(Secret));
  # The cluster's keys. Their holder can make references to everything: only a backup asks.

  keys @3 () -> (keys :List(Key));
  # The keys that sign references, the oldest first. The last one signs.

  rotateKey @4 () -> (key :Key);
  # Makes a new signing key, which signs from the answer on; what the others signed stays good.

  revokeKey @5 (id :Data);
  # In an emergency: what this key signed is refused from the answer on, on every host. The one that
  # signs is replaced first. The last key but one can be revoked, never all of them. Capabilities
  # that live go on.

  importUnderWay @6 (archive :Data) -> (isUnderWay :Bool);
  # Tells whether an import without replacing of the archive that this hash ends began and did not
  # end.

  setImportUnderWay @7 (archive :Data, isUnderWay :Bool);
  # Remembers that durably, of each archive by itself.

  claimImport @8 () -> (claim :ImportClaim);
  # The right to import, which an import asks for before it changes anything, and holds until it has
  # ended. Refused as `overloaded` while somebody holds it, so that no import forgets which other
  # one is under way.
}

interface ImportClaim {
  # One import at a time. Dropping it, or the connection, gives the right back.
}

struct Key {
  # One key that signs references. Nothing of it is secret.

  id @0 :Data;
  # As it stands in references: 8 bytes.

  created @1 :UInt64;
  # When it was made, in milliseconds since the start of 1970 in UTC.
}

struct Secret {
  # One file of the data directory that holds a key.

  name @0 :Text;
  # Its name in `keys/`.

  text @1 :Data;
  # Its content.
}

struct Selection {
  # The objects that are meant.

  union {
    all @0 :Void;
    # Every object, and the grants of the namespaces.

    class @1 :Text;
    # The objects of one class.

    id @2 :Data;
    # One object, by its id (16 bytes).

    grants @3 :Void;
    # The grants of every object and namespace, with the headers of the objects and nothing else.
  }
}

enum Existing {
  # An import's way with an object that is there already.

  refuse @0;
  # It fails, and leaves the object as it is. An object that an import left unfinished doesn't count
  # as there.

  replace @1;
  # All that the object has is removed first.

  skip @2;
  # It stays as it is, because an import of the same archive brought it that was cut short.
}

enum ImportedGrants {
  # An import's way with the grants of what is here already.

  keep @0;
  # They stay as they are, and the archive's are left out: grants revoked since stay revoked. An
  # object that isn't here gets those of the archive.

  replace @1;
  # They become those of the archive. One that is in force before and after goes on; any other one
  # that was in force is revoked.
}

interface HostAdmin {
  # The data of one host. Everything here may be asked for while objects are called.

  beginExport @0 (selection :Selection) -> (export :Export);
  # Begins to read, from one moment on: every turn that was answered before this call is in it, and
  # none that begins after the answer. Refused as `overloaded` while too many are open.

  beginImport @1 (existing :Existing, grants :ImportedGrants) -> (incoming :Import);
  # Begins to write. Refused as `overloaded` while another import of the host is open.

  present @2 (ids :List(Data)) -> (ids :List(Data));
  # Those of these objects that are there, finished ones only.

  grants @3 (target :Data, after :Data) -> (grants :List(Grant), next :Data);
  # The grants of an object, or of a namespace, as `Facet.grants` lists them.

  obsolete4 @4 ();
  # It knew methods by their numbers only, and must not take a call that names some for one that
  # allows all.

  revoke @5 (target :Data, grant :Data);
  # Takes a grant back, with those that depend on it, on every host. One that isn't there is
  # refused.

  requests @6 (target :Data, after :UInt64) -> (requests :List(Request));
  # Some calls of an object that have a request id, in the order in which they began: those whose
  # numbers are greater than `after`. None are left when the list is empty. Numbers begin with 1.

  clearRequests @7 (target :Data, id :Data, grant :Data) -> (cleared :UInt64, running :UInt64);
  # Forgets request ids of an object durably: one, or those that count for a grant, or all if both
  # are empty. The ids of calls that run stay, and are counted. A call that is made with a forgotten
  # id is applied again.

  grant @8 (target :Data, isNamespace :Bool, terms :Terms, methods :List(Text), objectMethods :List(Text))
      -> (sturdyRef :Data, text :Text, grant :Data);
  # A new reference, with a grant that was made from none. The object or namespace must exist.
  # Beside what the terms say, `methods` and `objectMethods`, if they aren't empty, are the only
  # ones that it allows: by the names in their schema, `Counter.read` or `read`, or by number,
  # `0xdc0f9593bdd2956b:2`. One that isn't there is refused. `text` has the host's listener as its
  # hint; null if the host doesn't serve. `grant` is its id, to revoke it.

  methods @9 (target :Data) -> (methods :List(MethodName));
  # The methods that the grants of an object, or of a namespace, may speak of: those of the object's
  # class, or of the objects of the namespace; those of namespaces; and those that everything
  # answers. Those of a class are left out if this program doesn't have it.

  alarms @10 (target :Data) -> (alarms :List(Alarm));
  # The alarms of an object, in the order of their names; an object has few enough for one answer.

  cancelAlarm @11 (target :Data, name :Text) -> (cancelled :Bool);
  # Removes an alarm, also one that is dead or can't be read. False if there is none with that name.
}

struct Alarm {
  # An alarm of an object. Times are in milliseconds since the start of 1970 in UTC.

  name @0 :Text;
  setFor @1 :UInt64;
  # The time for which the object set it.

  next @2 :UInt64;
  # The time of the next try; 0 if it is dead.

  failed @3 :UInt8;
  # The tries that failed since it was set.

  isDead @4 :Bool;
  # It failed too often, and isn't tried again unless the object sets it again.

  error @5 :Text;
  # That of the last try, cut short; empty if none has failed.
}

struct MethodName {
  # A method, by its number and by its name.

  interface @0 :UInt64;
  ordinal @1 :UInt16;
  name @2 :Text;
  # With that of its interface, as in `Counter.read`.
}

struct Request {
  # A call that has a request id.

  id @0 :Data;
  number @1 :UInt64;
  # Its place among the calls of its object: 1 for the first.

  began @2 :UInt64;
  # In milliseconds since the start of 1970 in UTC.

  interface @3 :UInt64;
  method @4 :UInt16;
  stage @5 :Stage;

  bytes @6 :UInt64;
  # The size of all that is kept of it, with the reply.

  grants @7 :List(Data);
  # The grants for which it counts: the one that it came by, and those that this was made from.

  enum Stage {
    runs @0;
    cutShort @1;
    # It began, and the process or the object in memory ended before the call did.

    replied @2;
    failed @3;
    # It ended with an error, which is kept like a reply.
  }
}

interface Export {
  # A state of the host, which is kept for this. Dropping it lets that go; so does a minute without
  # a call of `next`, after which every call fails.

  next @0 () -> (frames :Data);
  # The next frames, in the order of an archive; empty once there are no more. A caller may have
  # several calls on their way: they are answered in order. An error is the end, and what came
  # before it is not the whole.
}

interface Import {
  # Objects on their way in. Dropping it leaves what was written: an object of which not everything
  # was there says so when it is called, and is made whole by importing it again.

  write @0 (frames :Data);
  # Takes frames of objects, in the order of an archive. Everything of an object comes to one host,
  # in one import. An object that is awake ends as its first record is written, and its facets
  # break. The answer comes when what these frames finished is durable, and means that more can
  # come. After an error the import takes nothing more.

  finish @1 () -> (kept :UInt64, brought :UInt64, leftOut :UInt64, revoked :UInt64);
  # No more frames come. The answer comes when the last object is whole and durable, and what was
  # revoked is cut on every host. It counts grants: those in force before and after, those only
  # after, those that are in force in the archive alone, and those only before.
}
