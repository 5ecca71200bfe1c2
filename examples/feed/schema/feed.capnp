@0x86b368d82c3cdf59;

interface Feed {
  # The posts of one author, for everybody who holds the feed. Somebody who is to read and not to
  # post is given a reference that allows `latest` and `subscribe` alone.

  post @0 (text :Text) -> (number :UInt64);
  # Adds a post, of 1 to 4,096 bytes. It is durable when the answer comes; the first one has the
  # number 1, and each one that of the last one plus 1.

  latest @1 (after :UInt64 = 0, limit :UInt16 = 100) -> (posts :List(Post));
  # The last `limit` posts, and never more than 100, of those with greater numbers than `after`, the
  # oldest of them first.

  subscribe @2 (follower :Follower, after :UInt64 = 0) -> (subscription :Subscription);
  # Tells `follower` once that there is a post with a greater number than `after`: at once if there
  # is one, else when it is made.
  #
  # Then the subscription has done its work. A client that wants to be told again subscribes again,
  # which takes a capability to the feed that is still good.
}

interface Follower {
  # Somebody who wants to know of new posts.

  posted @0 ();
  # There is something new: read it. The feed doesn't wait for the answer.
}

interface Subscription {
  # Holding it keeps the subscription, and the feed in memory; dropping it ends the subscription.
}

interface User {
  # Somebody who follows feeds, and has read what is in the timeline.

  follow @0 (name :Text, feed :Feed) -> ();
  # Keeps a reference to `feed` that allows to read and to subscribe and nothing else, whatever
  # `feed` allows. `name`, of 1 to 100 bytes, is what this user calls it; one that is taken is
  # refused (`conflict:`). Fails if `feed` is no object of this cluster. A user follows at most
  # 1,000 feeds.

  unfollow @1 (name :Text) -> ();
  # Forgets the feed of that name, and fails if there is none. Its entries in the timeline stay
  # there.

  following @2 () -> (names :List(Text));
  # The feeds that are followed, by their names.

  feed @3 (name :Text) -> (feed :Feed);
  # The reference that the user keeps: it may do what the user may do.

  timeline @4 (limit :UInt16 = 100) -> (entries :List(Entry), failures :List(Failure));
  # The last `limit` entries, and never more than 100, the oldest of them first, after everything
  # new was read from all feeds. A reader that was away for more than 100 posts of a feed gets the
  # last 100.

  watch @5 (watcher :Watcher) -> (watching :Watching);
  # Shows `watcher` what is added to the timeline from now on. While somebody watches, the user
  # subscribes to the feeds.
}

struct Post {
  number @0 :UInt64;
  text @1 :Text;
}

struct Entry {
  place @0 :UInt64;
  # Later entries of a timeline have greater places.

  feed @1 :Text;
  # The name that the user gave it then.

  post @2 :Post;
}

struct Failure {
  # A feed that could not be read, because the reference to it was revoked, for instance.

  feed @0 :Text;
  why @1 :Text;
}

interface Watcher {
  # Somebody who looks at a timeline.

  added @0 (entries :List(Entry));
  # These are in the timeline now, for good. The user doesn't wait for the answer.
}

interface Watching {
  # Holding it keeps the user awake and subscribed; dropping it ends that.
}
