@0xb049ac88cb683079;

interface Probe {
  # Measures its own storage from inside a method, where classes use it.

  fill @0 (entries :UInt32) -> ();
  # Writes so many entries: keys of 8 bytes, values of 21.

  pointReads @1 (count :UInt32) -> (nanoseconds :UInt64);
  # The time that so many reads of one value took, all together.

  list @2 () -> (nanoseconds :UInt64, entries :UInt32);
  # The time that it took to list all entries.

  readAll @3 (keys :UInt32) -> ();
  # Reads the first so many keys, one after the other.

  readOne @4 (key :UInt32) -> ();
  # Reads one key.

  put @5 (key :UInt32) -> ();
  # Writes a value of 100 bytes.

  putRef @6 (key :UInt32) -> ();
  # Writes a reference to an object.
}
