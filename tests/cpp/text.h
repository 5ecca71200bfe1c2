// Reads the text of a reference as far as its layout goes, without a library for signatures.
//
// A text that lost its end is told apart from one that is no reference, before any server learns of
// it, in the words of the client in Rust. docs/sturdyref.md has the layout.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace text {

inline const std::string CUT = "it is cut off: its end is missing";
inline const std::string NO_TEXT = "the text is not that of a reference";
inline const std::string LAYOUT = "the bytes are not laid out as a reference";
inline const std::string VERSION = "the version of the layout is unknown";

constexpr size_t TEXT_BYTES_MAX = 8192, KEY = 32, SIGNATURE = 64, CAVEATS_MAX = 16, LINKS_MAX = 16;

[[noreturn]] inline void refuse(const std::string& why) {
  throw std::runtime_error("the reference was refused: " + why + "; copy the whole text once more");
}

inline void require(bool condition, const std::string& why) {
  if (!condition) refuse(why);
}

// Of base64url, without padding and with no bits left over.
inline std::string decoded(const std::string& fragment) {
  const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (char letter : fragment) {
    auto value = letters.find(letter);
    require(value != std::string::npos, NO_TEXT);
    bits = (bits << 6) | value;
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count));
      bits &= (1u << count) - 1;
    }
  }
  // All letters are good, so the end is what is wrong.
  require(count != 6 && bits == 0, CUT);
  return bytes;
}

// Takes bytes from the front.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}

  void skip(size_t length) {
    require(length <= bytes_.size() - at_, CUT);
    at_ += length;
  }

  size_t number(int length) {
    size_t number = 0;
    for (skip(length); length > 0; --length) {
      number = number << 8 | static_cast<uint8_t>(bytes_[at_ - length]);
    }
    return number;
  }

  bool isAtEnd() const { return at_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

inline void skipCaveats(Reader& reader) {
  size_t count = reader.number(1), last = 0;
  require(count <= CAVEATS_MAX, LAYOUT);
  for (size_t caveat = 0; caveat < count; ++caveat) {
    size_t kind = reader.number(1);
    require(caveat == 0 || kind > last, LAYOUT);
    last = kind;
    reader.skip(reader.number(2));
  }
}

// Throws a sentence that says what is wrong with the text, if its layout shows it.
inline void check(const std::string& text) {
  auto scheme = text.find("://"), fragment = text.find("/#");
  require(text.size() <= TEXT_BYTES_MAX, NO_TEXT);
  require(scheme != std::string::npos && fragment != std::string::npos, NO_TEXT);
  auto name = text.substr(0, scheme);
  require(name == "capstead" || name == "capstead+tls", NO_TEXT);
  require(fragment > scheme + 3, NO_TEXT);
  auto bytes = decoded(text.substr(fragment + 2));
  Reader reader(bytes);
  require(reader.number(1) == 1, VERSION);
  reader.skip(KEY + 8);  // cluster and signing key
  auto kind = reader.number(1);
  reader.skip(16);  // target
  require(kind == 1 || kind == 2, LAYOUT);
  reader.skip(16);  // grant
  skipCaveats(reader);
  reader.skip(KEY + SIGNATURE);
  auto links = reader.number(1);
  require(links <= LINKS_MAX, LAYOUT);
  for (size_t link = 0; link < links; ++link) {
    skipCaveats(reader);
    reader.skip(KEY + SIGNATURE);
  }
  auto proof = reader.number(1);
  require(proof == 1 || proof == 2, LAYOUT);
  reader.skip(proof == 1 ? KEY : SIGNATURE);
  require(reader.isAtEnd(), LAYOUT);
}

}  // namespace text
