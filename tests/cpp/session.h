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

inline void require(bool condition, const std::string& difference) {
  if (!condition) throw std::runtime_error(difference);
}

// The part between the scheme and the fragment.
inline std::string addressOf(const std::string& reference) {
  const std::string scheme = "capstead://";
  auto end = reference.find("/#");
  require(reference.rfind(scheme, 0) == 0 && end != std::string::npos, "no text of a reference");
  return reference.substr(scheme.size(), end - scheme.size());
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
        client_(*stream_) {}

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
