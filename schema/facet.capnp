@0xd94fd393faa41e67;
# The methods that every object answers beside the interface of its class.
#
# The holder of a capability to an object casts it to `Facet` and calls it. `once`, `inChain` and
# `attenuate` make another capability to the same object, under which calls mean something more, or
# less: calls of Cap'n Proto have no headers, so what is to travel with a call travels in the
# capability that it is made on.
#
# These are answered at once, before anything that the object does: it doesn't wake, and a call on
# the new capability may be sent in the same breath. On a connection to the object's own host, calls
# on the old capability and on the new one start in the order made; a vat that passes calls on to
# another vat may let the old one's overtake the new one's.

interface Facet @0x8046be1c2e6b08dc {
  # The side of an object that is the same for all classes.

  once @0 (id :Data) -> (facet :Capability);
  # The same object, where the next call has the request id `id`: it is applied at most once, and
  # made again it is answered with the reply of the first time.
  #
  # An id has 16 to 64 bytes and is for one call. It must be fresh and random: every caller of the
  # object who knows the id gets the reply. A caller who lost the reply restores the object if need
  # be, calls `once` with the same id, and makes the same call again. Then
  #   - if the call did not happen, it happens now;
  #   - if it runs, the caller gets its reply when it ends;
  #   - if it has ended, the caller gets the reply of then, or the error;
  #   - if it began and was cut short by the end of the process or of the object in memory, the
  #     caller gets the error `unknown:`. Part of it happened, and it isn't begun again.
  # Parameters are not compared; another method with the same id is refused (`request-id-reused:`).
  #
  # A reply with capabilities in it, or one of more than 4 MiB, can't be kept. The call happens, and
  # its caller gets an error in place of the reply (`reply-not-storable:`), then and whenever they
  # ask again.
  #
  # Ids are forgotten after the server's retention, 24 hours unless its operator says otherwise; a
  # call is a new one then. An object keeps 65,536 ids, of which 16,384 for one grant: a new
  # call beyond that is refused (`too-many-request-ids:`), and has not happened.
  #
  # A capability that an object made itself, such as a callback or a session, ends with the object
  # in memory, so that calls on it can't be repeated: it has no `once` (`not-repeatable:`).

  inChain @1 (calls :Data) -> (facet :Capability);
  # The same object, where the next call belongs to a chain of calls that wait for each other:
  # `calls` are the numbers, 16 bytes each, of those calls of exclusive objects that led to it, the
  # latest first; none for a call that no such call led to.
  #
  # Hosts use it for calls to each other, so that an exclusive object can refuse a call that would
  # wait for itself (`deadlock:`). Numbers can't be guessed: only those who were called in a chain
  # know the numbers of its calls, and can have calls refused that wait for them.

  attenuate @2 (caveats :Caveats) -> (facet :Capability);
  # The same object with less: the caveats hold in addition to those of this capability. Methods
  # that are left out answer `unimplemented`, as if the object didn't have them. The capabilities in
  # the object's answers are the object's own choice, and stays as it is.
  #
  # No record is made: the new capability ends with the grant of this one. `save` on it makes a
  # reference that allows no more than it does.

  grants @3 (after :Data) -> (grants :List(Grant), next :Data);
  # The grants that were made from this capability's grant, directly or not, some at a time and in
  # the order of their ids. To get all of them, the caller asks again with `next` for `after`, until
  # `next` is null; a part may be empty. A capability that the object handed out itself, or that
  # came by a binding, sees all grants of the object, unless it was attenuated: then none.

  revoke @4 (grant :Data) -> ();
  # Takes a grant back, one of those that `grants` lists, and with it all that were made from it
  # unless they are independent. From the reply on nobody can restore their references; capabilities
  # that were restored from them fail with `revoked:` by then, or within a second on other hosts of
  # the cluster, and so do their calls that are under way. A grant that isn't listed is refused.

  cite @5 (owner :Data) -> (citation :Data);
  # For hosts of the same cluster, which keep the answer as a stored reference: what this capability
  # stands for, sealed so that only the host of the object which `owner` stands for can make use of
  # it.
}

interface Persistent @0xc8cb212fcd9f5691 {
  # The standard interface of what can be saved, with texts of references and with `Terms`.

  save @0 (sealFor :Terms) -> (sturdyRef :Text);
  # A new reference to the same object, or namespace, which allows no more than this capability
  # does. It is backed by a grant of its own, which is durable when the answer comes. The text is a
  # secret.
  #
  # A capability that an object made itself, such as a callback or a session, ends with the object
  # in memory and can't be saved (`not-a-reference:`).
}

struct Terms {
  # The terms of a new grant. Null, or all defaults: without label or end, and dependent.

  label @0 :Text;
  # The receiver, or the purpose; at most 256 bytes. It is shown to those who may list the grant.

  caveats @1 :Caveats;
  # These hold in addition to those of the capability on which `save` is called.

  independent @2 :Bool;
  # The grant survives when the one that it is made from is revoked. Refused unless that one allows
  # it, and if the capability is `dependent`. The first grant of a namespace doesn't allow it.

  allowIndependent @3 :Bool;
  # Grants made from this one may be independent. Refused as `independent` is.
}

struct Caveats {
  # Restrictions. All of them hold.

  methods @0 :List(Methods);
  # The methods that may be called. Null: all; an empty list: none. If a method is among them that
  # no namespace has, they are also the only ones that may be called on what is reached through a
  # namespace.

  notAfter @1 :UInt64 = 0xffffffffffffffff;
  # The last millisecond, since the start of 1970 in UTC, in which the capability works; the default
  # is for ever.

  holders @2 :List(Data);
  # Ed25519 public keys (32 bytes each): restoring a saved reference takes a proof by the secret of
  # each of them. Empty: anybody can. They say nothing about the live capability.

  objectMethods @3 :List(Methods);
  # Of a namespace: the methods that may be called on what is reached through it, beside what
  # `methods` says of that. Null: all; an empty list: none. Of an object it says nothing.

  dependent @4 :Bool;
  # No grant that is made by way of this capability may survive the capability's own
  # (`Terms.independent`), whatever that one allows.
}

struct Methods {
  # Some methods of one interface.

  interface @0 :UInt64;
  # Its id.

  ordinals @1 :List(UInt16);
  # The numbers behind the `@` of the methods.
}

struct Grant {
  # One grant, as it is listed.

  id @0 :Data;
  # 16 bytes. Knowing it is no right.

  parent @1 :Data;
  # The grant that it was made from. Null: it was made from none, or from one of a namespace.

  namespace @2 :Data;
  # The grant of a namespace that it was made from, if it was. Else null.

  label @3 :Text;
  independent @4 :Bool;
  allowIndependent @5 :Bool;
  # As in `Terms`.

  caveats @6 :Caveats;
  # All that hold, those of the grants before it included.

  created @7 :UInt64;
  # When it was made, in milliseconds since the start of 1970 in UTC.

  lastRestored @8 :UInt64;
  # When its reference was last restored, exact to about a minute; 0: never.

  revoked @9 :Bool;
  # It was taken back, and is listed because it is the first grant of a namespace.
}
