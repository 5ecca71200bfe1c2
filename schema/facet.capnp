@0xd94fd393faa41e67;
# What every object answers beside the interface of its class.
#
# Whoever has a capability to an object casts it to `Facet` and calls it. These methods make another
# capability to the same object, under which calls mean something more: calls of Cap'n Proto have no
# headers, so what is to travel with a call travels in the capability that it is made on.
#
# They are answered at once, before anything that the object does: it doesn't wake, and a call on the
# new capability may be sent in the same breath. On a connection to the object's own host, calls on the
# old capability and on the new one start in the order made; whoever passes calls on to another vat may
# let the old one's overtake the new one's.

interface Facet @0x8046be1c2e6b08dc {
  # The side of an object that is the same for all classes.

  once @0 (id :Data) -> (facet :Capability);
  # The same object, where the next call has the request id `id`: it is applied at most once, and made
  # again it is answered with the reply of the first time.
  #
  # An id has 16 to 64 bytes and is for one call. It must be fresh and random: whoever can call the
  # object and knows the id gets the reply. A caller who lost the reply restores the object if he has
  # to, calls `once` with the same id, and makes the same call again. Then
  #   - if the call did not happen, it happens now;
  #   - if it runs, he gets its reply when it ends;
  #   - if it has ended, he gets the reply of then, or the error;
  #   - if it began and was cut short by the end of the process or of the object in memory, he gets the
  #     error `unknown:`. Part of it happened, and it isn't begun again.
  # Parameters are not compared; another method with the same id is refused (`request-id-reused:`).
  #
  # A reply with capabilities in it, or one of more than 4 MiB, can't be kept. The call happens, and its
  # caller gets an error in place of the reply (`reply-not-storable:`), then and whenever he asks again.
  #
  # Ids are forgotten after the server's retention, 24 hours unless its operator says otherwise; a
  # call is a new one then. An object keeps 65,536 ids: a new call beyond that is refused as
  # `overloaded`, and has not happened.
  #
  # What an object made itself, such as a callback or a session, ends with the object in memory, so that
  # calls on it can't be repeated: it has no `once` (`not-repeatable:`).

  inChain @1 (calls :Data) -> (facet :Capability);
  # The same object, where the next call belongs to a chain of calls that wait for each other: `calls` are
  # the numbers, 16 bytes each, of those calls of exclusive objects that led to it, the latest first;
  # none for a call that no such call led to.
  #
  # Hosts use it for calls to each other, so that an exclusive object can refuse a call that would wait
  # for itself (`deadlock:`). Numbers can't be guessed: only who was called in a chain knows those of its calls, and can
  # have calls refused that wait for him.
}
