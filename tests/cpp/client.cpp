// A client in C++: it saves a reference, and others restore it, use it and see it revoked.
//
// It knows the schemas and Cap'n Proto's own library, and nothing of Capstead besides. Each run is one
// process with connections of its own; `run` says in which order. Anything unexpected ends it with 1
// and a line about what was different. It never looks into a reference, except for the address.

#include <capnp/persistent.capnp.h>
#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <iostream>
#include <stdexcept>
#include <string>

#include "capstead/facet.capnp.h"
#include "capstead/restorer.capnp.h"
#include "counter.capnp.h"

namespace {

// The library's standard interface, with what it is about here.
using Savable = capnp::Persistent<capnp::Text, Terms>;

constexpr int64_t VALUE = 41;
constexpr uint16_t READ = 2;

void require(bool condition, const std::string& difference) {
  if (!condition) throw std::runtime_error(difference);
}

// What stands between the scheme and the fragment.
std::string addressOf(const std::string& reference) {
  const std::string scheme = "capstead://";
  auto end = reference.find("/#");
  require(reference.rfind(scheme, 0) == 0 && end != std::string::npos, "no text of a reference");
  return reference.substr(scheme.size(), end - scheme.size());
}

// A connection to the listener that a reference names. It ends with this.
class Session {
 public:
  Session(kj::AsyncIoContext& io, const std::string& reference)
      : scope_(io.waitScope),
        stream_(io.provider->getNetwork()
                    .parseAddress(addressOf(reference).c_str())
                    .wait(scope_)
                    ->connect()
                    .wait(scope_)),
        client_(*stream_) {}

  // Nothing is waited for: calls may be made on what is not there yet.
  template <typename Interface>
  typename Interface::Client restore(const std::string& reference) {
    auto request = client_.bootstrap().castAs<Restorer>().restoreRequest();
    request.setSturdyRef(reference.c_str());
    return request.send().getCap().template castAs<Interface>();
  }

  Counter::Client byName(const std::string& reference) {
    auto request = restore<Namespace>(reference).byNameRequest();
    request.setKey("from C++");
    return request.send().getObject().castAs<Counter>();
  }

  int64_t increment(Counter::Client& counter, int64_t by) {
    auto request = counter.incrementRequest();
    request.setBy(by);
    return request.send().wait(scope_).getValue();
  }

  int64_t read(Counter::Client& counter) {
    return counter.readRequest().send().wait(scope_).getValue();
  }

  kj::WaitScope& scope() { return scope_; }

 private:
  kj::WaitScope& scope_;
  kj::Own<kj::AsyncIoStream> stream_;
  capnp::TwoPartyClient client_;
};

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
  auto error = errorOf("increment", [&] { session.increment(counter, 1); });
  require(error.getType() == kj::Exception::Type::UNIMPLEMENTED,
          std::string("not unimplemented, but: ") + error.getDescription().cStr());
  require(session.read(counter) == VALUE, "the counter has another value");
}

template <typename Call>
void requireRevoked(const std::string& what, Call&& call) {
  auto error = errorOf(what, call);
  std::string said = error.getDescription().cStr();
  require(said.find("revoked:") != std::string::npos, what + " says: " + said);
}

void onlyRead(Caveats::Builder caveats) {
  auto methods = caveats.initMethods(1);
  methods[0].setInterface(capnp::typeId<Counter>());
  methods[0].initOrdinals(1).set(0, READ);
}

// Increments the counter, and prints a reference by which it can be read alone.
void save(kj::AsyncIoContext& io, const std::string& counters) {
  Session session(io, counters);
  auto counter = session.byName(counters);
  require(session.increment(counter, VALUE) == VALUE, "the counter was not new");

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

// The owner, on a connection of his own, revokes what another one holds.
void revoke(kj::AsyncIoContext& io, const std::string& counters, const std::string& reference) {
  Session holders(io, reference), owners(io, counters);
  auto held = holders.restore<Counter>(reference);
  requireReadOnly(holders, held);

  auto owned = owners.byName(counters);
  auto listed = owned.castAs<Facet>().grantsRequest().send().wait(owners.scope());
  require(listed.getGrants().size() == 1, "the saved grant is not the only one");
  auto grant = listed.getGrants()[0];
  require(grant.getLabel() == "reader", "the grant has another label");
  auto request = owned.castAs<Facet>().revokeRequest();
  request.setGrant(grant.getId());
  request.send().wait(owners.scope());

  requireRevoked("what is held", [&] { holders.read(held); });
  requireRevoked("the reference", [&] {
    auto again = holders.restore<Counter>(reference);
    holders.read(again);
  });
  require(owners.read(owned) == VALUE, "the owner's counter has another value");
}

void runVerb(kj::AsyncIoContext& io, int count, char** args) {
  const std::string verb = count > 1 ? args[1] : "";
  if (verb == "save" && count == 3) return save(io, args[2]);
  if (verb == "use" && count == 3) return use(io, args[2]);
  if (verb == "revoke" && count == 4) return revoke(io, args[2], args[3]);
  throw std::runtime_error("usage: client save COUNTERS | use REFERENCE | revoke COUNTERS REFERENCE");
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
