@0xa96bd5a0f41c7e35;

using Http = import "/capstead/http.capnp";

interface Counter extends(Http.HttpService) {
  # A number that survives everything.

  increment @0 (by :Int64 = 1) -> (value :Int64);
  # Adds `by` and returns the new value.

  decrement @1 (by :Int64 = 1) -> (value :Int64);
  # Subtracts `by` and returns the new value.

  read @2 () -> (value :Int64);
  # Returns the value.
}
