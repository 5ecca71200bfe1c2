@0xe5d0b1a7c94f3826;

interface Trial {
  # The class of the host's tests. Every method first notes its number in the object's log.

  note @0 (n :UInt64) -> (n :UInt64);
  # Nothing more.

  write @1 (n :UInt64) -> (n :UInt64);
  # Writes n under "n".

  read @2 () -> (n :UInt64);
  # The value that is stored under "n".

  later @3 (n :UInt64, cap :Trial) -> (cap :Trial);
  # Returns `cap` after n further polls, and then notes 1000.

  child @4 () -> (cap :Trial);
  # A capability that the object makes itself; it notes in the same log.

  relay @5 (to :Trial, n :UInt64) -> ();
  # Writes n, then calls to.note(n), to.child().cap.note(n + 1) and to.note(n + 2), and returns
  # without waiting for them.

  panic @6 (n :UInt64) -> ();
  # Writes n and panics.

  ask @8 (of :Trial) -> ();
  # Waits for the answer of of.read().

  abort @9 (n :UInt64) -> ();
  # Writes n, aborts, and writes n + 1. If n is 0 it returns no error.

  linger @10 (n :UInt64) -> ();
  # Leaves a task behind that holds the object for n polls.

  pass @11 (one :List(Trial), two :List(Trial)) -> ();
  # Notes 2000 and waits for two polls. Then for each list that isn't empty calls its first one's
  # note(2001), waits, and calls its pass with the rest as `one`. At last waits for all of these.

  offer @12 (times :UInt64) -> (cap :Trial);
  # Offers a capability of its own so many times ahead of its answer, with a poll after each.

  stray @7 () -> ();
  # Writes outside of a turn, and returns the error of that.
}
