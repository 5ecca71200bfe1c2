@0xd3a1c5e0f7b24601;
# The language of the parts of one cluster: supervisor, hosts and gateways.
#
# Internal: none of these capabilities is ever handed to a client or a class. In one process the
# parts speak the same interfaces as over a socket.

using Restorer = import "/capstead/restorer.capnp".Restorer;
using Restoration = import "/capstead/restorer.capnp".Restoration;
using HostAdmin = import "admin.capnp".HostAdmin;

enum Existence {
  # The way with an object that may not exist yet.

  any @0;
  # Refer to it whether it exists or not; it exists from its first durable write on.

  required @1;
  # Refer to it only if it exists; otherwise answer null, and create nothing.
}

struct Birth {
  # Everything that a host needs to know in order to serve an object that has no storage yet.

  id @0 :Data;
  # The object's id: 16 bytes.

  class @1 :Text;
  # The name of the object's class.

  name @2 :Text;
  # The object's name in its namespace; null for an anonymous object.
}

struct InForce {
  # A grant that is in force.

  grant @0 :Data;
  # 16 bytes.

  independent @1 :Bool;
  # Others that are made from it may survive it.

  depth @2 :UInt8;
  # The number of grants that it was made from, in a row.

  before @3 :List(Data);
  # Those of the same target that it was made from, the nearest first, whether it depends on them or
  # not.
}

struct Authority {
  # The right by which somebody holds an object.

  target @0 :Data;
  # The owner of the grant: the object itself, or a namespace. 16 bytes; null if there is none.

  grant @1 :Data;
  # 16 bytes. Null: the right comes from a binding, which the server was put together with.

  caveats @2 :Data;
  # The restrictions of the right, in the encoding of sturdyref.capnp. Null: none.
}

struct ShardRange {
  # A run of shards.

  first @0 :UInt16;
  last @1 :UInt16;
  # Both ends are included.
}

interface Supervisor {
  # The supervisor, as hosts and gateways see it.

  join @0 (number :UInt16, host :Host, address :Text) -> (shards :List(ShardRange), router :Router);
  # Host `number` offers itself. `address` is where its clients reach it (host:port). It is told
  # which shards it owns from now on; `router` leads to all other objects. A number that the
  # placement doesn't know is refused.

  restorer @1 () -> (restorer :Restorer);
  # The restorer of gateways: references are restored wherever their targets live.
}

interface Router {
  # Leads to any object of the cluster. Only hosts hold it: reaching an object by its id is the
  # right of those who check references, and of nobody else.

  object @0 (birth :Birth, existence :Existence, by :Authority) -> (object :AnyPointer);
  # The capability to the object, from the host that owns its shard. A caller pipelines on it. If
  # the grant is the object's own, its owner looks whether it is in force.

  inForce @1 (target :Data, grant :Data) -> (chain :List(InForce));
  # A grant and those that it depends on, the first of them first, from the host that has it; none
  # if it isn't in force.

  cut @2 (target :Data, grants :List(Data));
  # Grants of one target were revoked: every host cuts what was made from them.
}

interface Host {
  # A host, as the supervisor sees it.

  object @0 (birth :Birth, existence :Existence, by :Authority) -> (object :AnyPointer);
  # Like `Router.object`, for an object in one of this host's own shards; any other is refused.

  restore @1 (sturdyRef :Data) -> (cap :AnyPointer);
  # Checks the reference (its bytes: signature, expiry, grant) and answers with a facet. Refusals
  # are those of `Restorer.restore`, and happen before any object wakes.

  admin @2 () -> (admin :HostAdmin);
  # The way to all of the host's data, for the operator. The supervisor asks, and gives it to nobody
  # but the operator's socket.

  challenge @3 (sturdyRef :Data) -> (challenge :Data, restoration :Restoration);
  # Like `restore`, for a reference that takes a proof.

  check @4 (sturdyRef :Data);
  # Refuses what `restore` or `challenge` would refuse, and makes nothing.

  inForce @5 (target :Data, grant :Data) -> (chain :List(InForce));
  cut @6 (target :Data, grants :List(Data));
  # Like those of `Router`, for this host.

  sync @7 ();
  # Answered as soon as all that came before it was passed on: then the host has read what was sent
  # to it, and the caller has read what the host sent.
}
