// A client in C++: it saves a reference, and others restore it, use it and see it revoked.
//
// It knows the schemas and Cap'n Proto's own library, and nothing of Capstead besides. Each run is one
// process with connections of its own; `run` says in which order. Anything unexpected ends it with 1
// and a line about what was different. Of a reference it looks at the layout alone.

#include <capnp/persistent.capnp.h>

#include <iostream>
#include <set>
#include <stdexcept>
#include <string>

#include "capstead/facet.capnp.h"
#include "counter.capnp.h"
#include "session.h"

namespace {

// The library's standard interface, with what it is about here.
using Savable = capnp::Persistent<capnp::Text, Terms>;

constexpr int64_t VALUE = 41;
constexpr uint16_t READ = 2;

Counter::Client byName(Session& session, const std::string& counters) {
  return session.byName<Counter>(counters, "from C++");
}

int64_t increment(Session& session, Counter::Client& counter, int64_t by) {
  auto request = counter.incrementRequest();
  request.setBy(by);
  return request.send().wait(session.scope()).getValue();
}

int64_t read(Session& session, Counter::Client& counter) {
  return counter.readRequest().send().wait(session.scope()).getValue();
}

template <typename Call>
kj::Exception errorOf(const std::string& what, Call&& call) {
  try {
    call();
  } catch (const kj::Exception& error) {
    return error;
  }
  throw std::runtime_error(what + " was not refused");
}

// As if the counter had no such method.
void requireReadOnly(Session& session, Counter::Client& counter) {
  auto error = errorOf("increment", [&] { increment(session, counter, 1); });
  require(error.getType() == kj::Exception::Type::UNIMPLEMENTED,
          std::string("not unimplemented, but: ") + error.getDescription().cStr());
  require(read(session, counter) == VALUE, "the counter has another value");
}

template <typename Call>
void requireRevoked(const std::string& what, Call&& call) {
  auto error = errorOf(what, call);
  require(reasonOf(error) == "revoked", what + " says: " + error.getDescription().cStr());
}

void onlyRead(Caveats::Builder caveats) {
  auto methods = caveats.initMethods(1);
  methods[0].setInterface(capnp::typeId<Counter>());
  methods[0].initOrdinals(1).set(0, READ);
}

// Increments the counter, and prints a reference by which it can be read alone.
void save(kj::AsyncIoContext& io, const std::string& counters) {
  Session session(io, counters);
  auto counter = byName(session, counters);
  require(increment(session, counter, VALUE) == VALUE, "the counter was not new");

  auto attenuate = counter.castAs<Facet>().attenuateRequest();
  onlyRead(attenuate.initCaveats());
  auto narrow = attenuate.send().getFacet().castAs<Counter>();
  requireReadOnly(session, narrow);

  auto request = counter.castAs<Savable>().saveRequest();
  auto terms = request.initSealFor();
  terms.setLabel("reader");
  onlyRead(terms.initCaveats());
  std::cout << request.send().wait(session.scope()).getSturdyRef().cStr() << std::endl;
}

void use(kj::AsyncIoContext& io, const std::string& reference) {
  Session session(io, reference);
  auto counter = session.restore<Counter>(reference);
  requireReadOnly(session, counter);
}

// The counters of which each host has some.
std::string nameOf(int number) { return "of a host " + std::to_string(number); }
constexpr int OBJECTS = 16;

// Increments counters of all hosts, each to another value, and prints a reference to each.
void saveAll(kj::AsyncIoContext& io, const std::string& counters, size_t hosts) {
  Session session(io, counters);
  std::set<std::string> owners;
  for (int number = 0; number < OBJECTS; ++number) {
    auto counter = session.byName<Counter>(counters, nameOf(number));
    increment(session, counter, number + 1);
    auto saved = counter.castAs<Savable>().saveRequest().send().wait(session.scope());
    std::string reference = saved.getSturdyRef().cStr();
    owners.insert(session.ownerOf(reference));
    std::cout << reference << std::endl;
  }
  require(owners.size() == hosts, "not each host has one of the counters");
}

// Restores these references as they are, in their order.
void readAll(kj::AsyncIoContext& io, int count, char** references) {
  require(count == OBJECTS, "there are not as many references");
  for (int number = 0; number < OBJECTS; ++number) {
    Session session(io, references[number]);
    auto counter = session.restore<Counter>(references[number]);
    require(read(session, counter) == number + 1, nameOf(number) + " has another value");
  }
}

// The owner revokes, on another connection, what another one holds.
void revoke(kj::AsyncIoContext& io, const std::string& counters, const std::string& reference) {
  Session holders(io, reference), owners(io, counters);
  auto held = holders.restore<Counter>(reference);
  requireReadOnly(holders, held);

  auto owned = byName(owners, counters);
  auto listed = owned.castAs<Facet>().grantsRequest().send().wait(owners.scope());
  require(listed.getGrants().size() == 1, "the saved grant is not the only one");
  auto grant = listed.getGrants()[0];
  require(grant.getLabel() == "reader", "the grant has another label");
  auto request = owned.castAs<Facet>().revokeRequest();
  request.setGrant(grant.getId());
  request.send().wait(owners.scope());

  requireRevoked("what is held", [&] { read(holders, held); });
  requireRevoked("the reference", [&] {
    auto again = holders.restore<Counter>(reference);
    read(holders, again);
  });
  require(read(owners, owned) == VALUE, "the owner's counter has another value");
}

void runVerb(kj::AsyncIoContext& io, int count, char** args) {
  const std::string verb = count > 1 ? args[1] : "";
  if (verb == "save" && count == 3) return save(io, args[2]);
  if (verb == "use" && count == 3) return use(io, args[2]);
  if (verb == "saveAll" && count == 4) return saveAll(io, args[2], std::stoul(args[3]));
  if (verb == "readAll") return readAll(io, count - 2, args + 2);
  if (verb == "revoke" && count == 4) return revoke(io, args[2], args[3]);
  throw std::runtime_error("usage: client save COUNTERS | use REFERENCE | revoke COUNTERS REFERENCE | "
                           "saveAll COUNTERS HOSTS | readAll REFERENCE...");
}

}  // namespace

int main(int count, char** args) {
  auto io = kj::setupAsyncIo();
  try {
    runVerb(io, count, args);
  } catch (const kj::Exception& error) {
    std::cerr << "client: an unexpected error: " << error.getDescription().cStr() << std::endl;
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "client: " << error.what() << std::endl;
    return 1;
  }
  return 0;
}
