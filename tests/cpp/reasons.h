// The words with which Capstead's errors begin: docs/errors.md says of each what to do, and what is
// then true. A test compares them with those for Rust in `client/src/reason.rs`.
//
// It needs KJ alone, so that a program can take this file as it is.

#pragma once

#include <kj/exception.h>

#include <string>

inline constexpr const char* REASONS[] = {
    "not-begun",
    "revoked",
    "expired",
    "conflict",
    "deadlock",
    "overloaded",

    "unknown",
    "request-id-reused",
    "request-id-length",
    "too-many-request-ids",
    "reply-not-storable",
    "not-repeatable",

    "too-large",
    "too-many-capabilities",
    "too-many-hops",
    "malformed",

    "key-length",
    "value-length",
    "batch-size",
    "over-quota",
    "low-space",
    "outside-turn",
    "wrong-type",
    "damaged",
    "live-capability",
    "sealed-elsewhere",
    "import-unfinished",

    "not-a-reference",
    "no-such-grant",
    "not-allowed",
    "too-deep",
    "too-many-grants",
    "too-many-holders",
    "too-many-methods",

    "unbound",
    "storage-failed",
};

// The word that an error of the server begins with, however often the error was passed on; nothing
// if it begins with none of them.
inline std::string reasonOf(const kj::Exception& error) {
  const std::string remote = "remote exception: ";
  std::string text = error.getDescription().cStr();
  while (text.rfind(remote, 0) == 0) text.erase(0, remote.size());
  for (const std::string word : REASONS) {
    if (text.rfind(word + ": ", 0) == 0) return word;
  }
  return "";
}
