@0xf2a61d0c9be84537;

interface Slot {
  # Takes a capability, for which it then stands.

  fill @0 (with :Capability) -> ();
  # From now on, until this object sleeps.
}
