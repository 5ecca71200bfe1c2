@0xd4b7c1e83a5f9260;

interface Passer {
  # An object that does with capabilities all that a program may do with them: it calls them, passes
  # them on, and returns them. Clients of any language implement it too, and are called.
  #
  # The maker of calls on one stub gives that a number. Calls on one stub are numbered from 0, and
  # objects note which of them started.

  note @0 (stub :UInt64, n :UInt64) -> (n :UInt64);
  # Notes the call, and returns its number.

  notes @1 (stub :UInt64) -> (notes :List(UInt64));
  # The numbers of the calls of that stub, in the order in which they started here. Forgets them.

  echo @2 (cap :Passer) -> (cap :Passer);

  later @3 (cap :Passer, until :Passer) -> (cap :Passer);
  # Calls until.note(), and returns `cap` after the answer to that.

  early @4 (cap :Passer, until :Passer) -> (cap :Passer);
  # As `later`, but offers `cap` at once to those who call what is promised.

  promised @5 (by :Passer, cap :Passer) -> (cap :Passer);
  # Returns what by.echo(cap) will return, without waiting for it.

  call @6 (on :Passer, stub :UInt64, count :UInt32) -> ();
  # Calls on.note() so often, with the numbers from 0, all at once, and then waits for the answers.

  relay @7 (to :Passer, on :Passer, stub :UInt64, count :UInt32) -> ();
  # Waits for the answer to to.call(on, stub, count).

  callPromised @8 (by :Passer, on :Passer, stub :UInt64, count :UInt32) -> ();
  # As `call`, on what by.echo(on) will return, without waiting for that.

  giveUp @9 (on :Passer, stub :UInt64, count :UInt32) -> ();
  # As `call`, but gives each call up as soon as it is made, except for the last one.

  fail @10 (bytes :UInt32) -> ();
  # An error of as many bytes: `€` over and over.

  repeat @11 (on :Passer, bytes :UInt32) -> ();
  # The error of on.fail(bytes), with a word before it, as an error of its own.

  large @12 (bytes :UInt32, caps :UInt32) -> (data :Data, caps :List(Passer));
  # A result of as many bytes and capabilities.

  pass @13 (to :Passer, bytes :UInt32, caps :UInt32) -> ();
  # Calls `take` of `to` with as many bytes and capabilities.

  take @14 (data :Data, caps :List(Passer)) -> ();
}
