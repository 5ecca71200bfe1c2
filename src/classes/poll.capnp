@0xc2f06a1b94e7d853;

interface Poll {
  # A poll whose options are counters: each option's votes are an object of their own.

  vote @0 (option :Text) -> (votes :Int64);
  # Votes for an option, and returns how many votes it has now. A new option is refused
  # (`too-many-options:`) where there are 1,000.

  results @1 () -> (options :List(Option));
  # All options that were voted for, in the order of their names.

  struct Option {
    name @0 :Text;
    votes @1 :Int64;
  }
}
