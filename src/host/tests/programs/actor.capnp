@0xb1f4a7d2c3e86059;

struct Step {
  # The task of an actor. Its sender fills in the first four fields.

  stub @0 :UInt32;
  # Every capability that somebody holds has a number of its own, and so has every call on it.

  sequence @1 :UInt32;

  sender @2 :UInt32;
  # The object that sends the step; none for a client.

  wrote @3 :UInt32;
  # The number of writes that the sender had made by then.

  writes @4 :UInt8;
  # It writes so often,

  calls @5 :UInt8;
  # calls `on` so often with `next`,

  polls @6 :UInt8;
  # and goes on after so many polls,

  awaits @7 :Bool;
  # and after the answers to its calls.

  early @8 :Bool;
  # It offers what it returns before it waits.

  keep @9 :Bool;
  # It keeps `gift` in memory.

  useKept @10 :Bool;
  # It calls what it keeps, if it keeps something, instead of `on`.

  streams @11 :Bool;
  # Its calls are streaming ones.

  answer @12 :Answer;

  ending @13 :Ending;

  next @14 :Step;

  on @15 :Actor;

  gift @16 :Actor;
  # It is also passed to `on`, as its `on`,

  passesGift @17 :Bool;
  # and as its `gift`. If there is none, the actor passes a capability that it makes.

  tails @18 :Bool;
  # The call on `on` answers this one, if the actor asked can do that.

  kibibytes @19 :UInt32;
  # So large are what it returns and the text of its error,

  caps @20 :UInt32;
  # and it returns a list of so many capabilities beside the one.
}

enum Answer {
  # The capability that is returned.

  nothing @0;

  gift @1;

  child @2;
  # One that the actor makes.

  itself @3;

  promised @4;
  # The result of the first call to `on`.

  kept @5;
}

enum Ending {
  return @0;
  fail @1;
  panic @2;
  abort @3;

  blank @4;
  # It fails, and doesn't say why.
}

interface Actor {
  # One that takes part in a program: an object, a capability that one made, or a client's callback.

  act @0 Step -> (sender :UInt32, wrote :UInt32, cap :Actor, bulk :Data, caps :List(Actor));

  stream @1 Step -> stream;
}

interface Door {
  # A vat's entrance for one client.

  open @0 (object :UInt32, stub :UInt32) -> (cap :Actor);
  # A new facet of an object, to be called as `stub`.

  look @1 (cap :Actor) -> (facet :UInt64);
  # The number of the facet in its vat, if it is one.
}
