@0xf0a2c5d3b7e91846;
# The way of a reference's holder from the text to the object.
#
# Every listener of Capstead offers a `Restorer` as its bootstrap capability, and nothing else: a
# client has no authority until it shows a reference. The form of references is in sturdyref.capnp.

interface Restorer @0xc1e8a97d42f6b035 {
  # Turns references into live capabilities. It is not a directory: without a reference there is
  # nothing to be had, and no answer tells whether an object exists.

  restore @0 (sturdyRef :Text) -> (cap :Capability);
  # The object, or the namespace, that `sturdyRef` stands for.
  #
  # The host and port in the text are ignored: they helped the caller to find this listener. Callers
  # need not wait for the answer, since calls on `cap` may be sent at once: they are queued in
  # order.
  #
  # A reference that is malformed, forged, expired, or of another cluster, or that takes a proof, is
  # refused with one and the same error of the kind `failed`, and no object wakes. One that is
  # genuine and whose grant was taken back is refused with `revoked:`. A `disconnected` means that
  # the owner could not be reached just now: the caller may try again.
  #
  # `cap` stays valid until it is dropped, the reference is revoked or the path to the object
  # breaks. After a break it says `disconnected` for ever, and the caller restores the reference
  # again.

  locate @1 (sturdyRef :Text) -> (address :Text);
  # The address at which the owner of the reference's target listens: `host:port`.
  #
  # A client that dials this address and restores there saves one hop for each call. The answer is a
  # hint: objects move. Restoring at any listener of the cluster works. Refusals are as for
  # `restore`, but no proof is asked for.

  challenge @2 (sturdyRef :Text) -> (challenge :Data, restoration :Restoration);
  # Begins to restore a reference that is bound to holders' keys. `challenge` are 32 fresh random
  # bytes. The holder of the secrets signs them, and calls `restoration`, which nobody else can
  # reach and which is good for one attempt within 30 seconds. A reference without such a caveat is
  # refused, as are all that `restore` would refuse to everybody; but `finish` alone tells whether
  # the grant was taken back.
}

interface Restoration {
  # A restoration that waits for its proof.

  finish @0 (signatures :List(Data)) -> (cap :Capability);
  # As `Restorer.restore`. One Ed25519 signature for each holder's key, in the ascending order of
  # the keys, over
  #   "capstead holder proof v1" || cluster [32] || SHA-256(the bytes of the reference)
  #   || challenge [32]
}

interface Namespace @0xe37b60d8a15c94f2 {
  # All objects of one class. Holding this capability is the right to reach each of them, and to
  # make new ones. There is no other way from a name to an object.

  byName @0 (key :Text) -> (object :Capability);
  # The object called `key`: for the same name the same object, always, for every caller on every
  # host.
  #
  # Names are equal when their bytes are: they are neither folded nor normalised. Asking creates
  # nothing: the object exists from its first durable write. Fails if the name is empty or longer
  # than 1,024 bytes. Calls on `object` may be sent before this returns.

  tryGet @1 (key :Text) -> (object :Capability);
  # As `byName`, but null when no such object exists. Never creates one, and wakes none.

  create @2 () -> (object :Capability);
  # A new object without a name. No other call ever yields it again: a caller that drops `object`
  # without having saved a reference has lost it. It exists from its first durable write.

  describe @3 () -> (class :Text, interface :UInt64, schema :Data);
  # The name of the class, the id of its interface, and the schema of that with all that it speaks
  # of: a `CodeGeneratorRequest` of `/capnp/schema.capnp`. By it a gateway, or a tool, calls methods
  # for which it has no code. No object wakes, and the answer stays the same while the server runs.
}
