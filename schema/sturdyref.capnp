@0xb94d7f1e63a80c25;
# The reference: signed bytes that stand for an object and outlive every process and connection.
#
# Holding the text of a reference is the right to use it: it is a secret. Its form is fixed bytes
# and not a Cap'n Proto message, because there must be one encoding only: what is signed is what is
# parsed. All integers are big-endian. The constants below are the numbers that appear in it.
#
# A reference is  payload, signature [64], links, proof.  Nothing may follow.
#
#   payload:
#     version            u8     `version`
#     cluster            [32]   SHA-256("capstead cluster v1" || public key of the cluster)
#     signing key        [8]    start of SHA-256("capstead signing key v1" || public signing key)
#     kind of target     u8     `targetObject` or `targetNamespace`
#     target             [16]   an identity that means something to the cluster only
#     grant              [16]   the record at the target that keeps the reference valid
#     caveats                   as below
#     next               [32]   a fresh Ed25519 public key, whose secret the holder has
#
#   signature: by the signing key, over  "capstead sturdyref v1" || payload
#
#   links: a count u8, at most `linksMax`, and for each link
#     caveats                   as below
#     next               [32]   another fresh public key
#     signature          [64]   by the next key of what comes before, over
#                               "capstead sturdyref link v1" || SHA-256(all bytes before the link)
#                               || the caveats and the next key of the link
#     "All bytes before the link" are the payload, the signature and the earlier links without the
#     count of links, which the holder raises with each link.
#
#   proof: one of
#     `proofOpen`   u8, then [32] the secret seed of the last next key. The holder can add links.
#     `proofSealed` u8, then [64] a signature by the last next key, over
#                   "capstead sturdyref seal v1" || SHA-256(all bytes before the proof)
#                   These do include the count of links. Nobody can narrow the reference further
#                   offline, and nobody can take a link away.
#
#   caveats: a count u8, at most `caveatsMax`, and for each caveat
#     kind               u8     strictly ascending, so that no kind comes twice
#     length             u16
#     value              [length]
#
# A caveat restricts. Those of the payload and of all links hold together: adding one never widens
# anything. `caveatCritical` marks kinds that must be understood: a verifier refuses a reference
# with an unknown critical caveat, and ignores other unknown ones.
#
# Two references are the same if the hash of their payloads is; signatures don't identify.
#
# Text:  capstead://HOST:PORT/#BASE64URL  without padding, and with zero in the bits left over.
# The address is a hint where a listener of the cluster may be found. It is not signed. The secret
# stands behind the `#`, which browsers don't send to servers.

const version :UInt8 = 1;
# The first byte. Another number means another layout.

const targetObject :UInt8 = 1;
# The target is one object.

const targetNamespace :UInt8 = 2;
# The target is all objects of one class: see `Namespace` in restorer.capnp.

const linksMax :UInt8 = 16;
# The number of times that a reference can be narrowed offline. Each link costs the verifier one
# signature check.

const caveatsMax :UInt8 = 16;
# The number of caveats that one list may have. There are fewer kinds than that.

const caveatCritical :UInt8 = 0x80;
# This bit of a caveat's kind says that a verifier that doesn't know the kind must refuse the
# reference.

const caveatNotAfter :UInt8 = 0x81;
# u64: the last millisecond, counted from the start of 1970 in UTC, in which the reference is valid.

const caveatMethods :UInt8 = 0x82;
# The only methods that may be called: for each its interface's id (u64) and its ordinal (u16),
# strictly ascending, so that a set has one encoding; none at all is the empty set. Of several sets
# those methods are left that are in each. The methods by which holders make capabilities and
# references that allow no more than their own don't count: `once`, `inChain`, `attenuate`, `cite`
# and `save` (facet.capnp). The objects of a namespace have their methods restricted too if the set
# names one that no namespace has: one of another interface than `Namespace`, `Facet` and
# `Persistent`. Each set of a chain is asked by itself.

const methodsMax :UInt16 = 256;
# The number of methods that one set may have.

const caveatHolder :UInt8 = 0x83;
# Ed25519 public keys ([32] each, strictly ascending, at least one): a client that restores the
# reference proves that it has the secret of each of them. See `Restorer.challenge` in
# restorer.capnp.

const caveatObjectMethods :UInt8 = 0x84;
# The only methods that may be called on what is reached through a namespace, in the form of
# `caveatMethods` and beside what that says of them. A list of caveats has it only where it says
# something: all its methods are in the other set if that one restricts objects, and it isn't the
# same set then. Of a reference to an object it says nothing. It is needed where several sets are
# put into one list: of `byName, read` and `byName`, `byName` is left of a namespace, and `byName,
# read` of its objects.

const caveatDependent :UInt8 = 0x85;
# Without a value: no grant that is made by way of the reference survives the reference's own,
# whatever that one allows. Only a grant whose maker said so allows it at all
# (`Terms.allowIndependent` in facet.capnp).

const proofOpen :UInt8 = 1;
# The proof is the secret of the last next key.

const proofSealed :UInt8 = 2;
# The proof is a signature by the last next key.
