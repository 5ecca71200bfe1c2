@0xc289aae831a86734;

interface Tally {
  add @0 (by :Int64 = 1) -> (total :Int64);
  # Adds `by`, and returns the new total.
}
