// A connection to the listener that a reference names, for the clients in C++.
//
// It knows the schemas and Cap'n Proto's own library, and nothing of Capstead besides.

#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <stdexcept>
#include <string>

#include "capstead/restorer.capnp.h"
#include "reasons.h"
#include "text.h"

inline void require(bool condition, const std::string& difference) {
  if (!condition) throw std::runtime_error(difference);
}

// The part between the scheme and the fragment.
inline std::string addressOf(const std::string& reference) {
  text::check(reference);
  const std::string scheme = "capstead://";
  auto end = reference.find("/#");
  require(reference.rfind(scheme, 0) == 0 && end != std::string::npos, "no text of a reference");
  return reference.substr(scheme.size(), end - scheme.size());
}

// Whether the listener there answers what is no TLS with an alert of TLS.
inline bool speaksTls(kj::AsyncIoContext& io, const std::string& address) {
  constexpr uint8_t ALERT = 21;
  auto& network = io.provider->getNetwork();
  auto stream =
      network.parseAddress(address.c_str()).wait(io.waitScope)->connect().wait(io.waitScope);
  uint8_t bytes[16] = {};
  stream->write(bytes, sizeof bytes).wait(io.waitScope);
  auto answered = stream->tryRead(bytes, 1, 1);
  auto late = io.provider->getTimer().afterDelay(1 * kj::SECONDS).then([] { return size_t(0); });
  return answered.exclusiveJoin(kj::mv(late)).wait(io.waitScope) == 1 && bytes[0] == ALERT;
}

// The connection ends with this.
class Session {
 public:
  Session(kj::AsyncIoContext& io, const std::string& reference)
      : scope_(io.waitScope),
        stream_(io.provider->getNetwork()
                    .parseAddress(addressOf(reference).c_str())
                    .wait(scope_)
                    ->connect()
                    .wait(scope_)),
        client_(*stream_) {
    // Shows a listener of another kind before anything else is asked.
    auto request = client_.bootstrap().castAs<Restorer>().locateRequest();
    request.setSturdyRef(reference.c_str());
    try {
      request.send().wait(scope_);
    } catch (const kj::Exception&) {
      require(!speaksTls(io, addressOf(reference)),
              "the listener there speaks TLS alone: take the capstead+tls reference that its server "
              "gives out");
      throw;
    }
  }

  // The address of the host that has the object.
  std::string ownerOf(const std::string& reference) {
    auto request = client_.bootstrap().castAs<Restorer>().locateRequest();
    request.setSturdyRef(reference.c_str());
    return request.send().wait(scope_).getAddress().cStr();
  }

  // Nothing is waited for: calls may be made on what is not there yet.
  template <typename Interface>
  typename Interface::Client restore(const std::string& reference) {
    auto request = client_.bootstrap().castAs<Restorer>().restoreRequest();
    request.setSturdyRef(reference.c_str());
    return request.send().getCap().template castAs<Interface>();
  }

  // The object of that name, among those that the reference stands for.
  template <typename Interface>
  typename Interface::Client byName(const std::string& reference, const std::string& name) {
    auto request = restore<Namespace>(reference).byNameRequest();
    request.setKey(name.c_str());
    return request.send().getObject().template castAs<Interface>();
  }

  kj::WaitScope& scope() { return scope_; }

 private:
  kj::WaitScope& scope_;
  kj::Own<kj::AsyncIoStream> stream_;
  capnp::TwoPartyClient client_;
};
