// A client in C++ that passes promises, which lead to objects of the server at last, and tail-calls.
//
// Each round makes a way to an object: through promises that are kept later, through servers of its own
// that hand calls on, through results that aren't there yet. An object, or the client itself, makes
// calls by that way. They must start in order, each must get its own answer, and nothing of all that may
// cost the connection. Many rounds are under way at a time, and what is due next is drawn by lot.
//
// The library reflects calls unasked: `sendResultsTo.yourself` and `takeFromOtherQuestion` on the wire.

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "passing.capnp.h"
#include "session.h"

namespace {

constexpr size_t OBJECTS = 12;  // of each kind; every host has some
constexpr size_t ROUNDS_AT_A_TIME = 12;
constexpr size_t BROKEN = SIZE_MAX;  // a way that leads to no object
constexpr unsigned DEPTH_MAX = 4;
constexpr auto STALL = std::chrono::seconds(20);
const std::string WHY = "the promise is broken, as was agreed";

// Hands calls on in the place of the answer.
class Tail final : public Passer::Server {
 public:
  explicit Tail(Passer::Client to) : to_(kj::mv(to)) {}

 protected:
  kj::Promise<void> note(NoteContext context) override {
    auto request = to_.noteRequest();
    request.setStub(context.getParams().getStub());
    request.setN(context.getParams().getN());
    context.releaseParams();
    return context.tailCall(kj::mv(request));
  }

  kj::Promise<void> echo(EchoContext context) override {
    auto request = to_.echoRequest();
    request.setCap(context.getParams().getCap());
    context.releaseParams();
    return context.tailCall(kj::mv(request));
  }

 private:
  Passer::Client to_;
};

// Hands calls on, and answers when it is answered.
class Forward final : public Passer::Server {
 public:
  explicit Forward(Passer::Client to) : to_(kj::mv(to)) {}

 protected:
  kj::Promise<void> note(NoteContext context) override {
    auto request = to_.noteRequest();
    request.setStub(context.getParams().getStub());
    request.setN(context.getParams().getN());
    return request.send().then([context](capnp::Response<Passer::NoteResults> noted) mutable {
      context.getResults().setN(noted.getN());
    });
  }

  kj::Promise<void> echo(EchoContext context) override {
    auto request = to_.echoRequest();
    request.setCap(context.getParams().getCap());
    // A promise: the result of a call that has no answer yet.
    context.getResults().setCap(request.send().getCap());
    return kj::READY_NOW;
  }

 private:
  Passer::Client to_;
};

// Something to call, and where that leads.
struct Way {
  Passer::Client cap;
  size_t end;
  std::string text;
};

// The effects that the calls of a round must have.
struct Calls {
  enum Which { ALL, LAST };  // those that aren't given up

  uint64_t stub;
  uint32_t count;
  Which which;
};

class Player {
 public:
  Player(kj::AsyncIoContext& io, const std::string& plain, const std::string& exclusive,
         uint64_t seed)
      : session_(io, plain), timer_(io.provider->getTimer()), random_(seed), stub_(seed << 32) {
    for (auto& kind : {plain, exclusive, exclusive}) {
      const std::string prefix = objects_.size() < 2 * OBJECTS ? "called" : "caller";
      for (size_t at = 0; at < OBJECTS; ++at) {
        objects_.push_back(session_.byName<Passer>(kind, prefix + std::to_string(at)));
      }
    }
  }

  void play(uint64_t rounds) {
    auto progress = std::chrono::steady_clock::now();
    for (uint64_t done = 0, seen = 0; done < rounds; done = started_ - running_.size()) {
      if (done > seen) progress = std::chrono::steady_clock::now();
      seen = done;
      require(std::chrono::steady_clock::now() - progress < STALL, "no end of " + allRunning());
      if (running_.size() < ROUNDS_AT_A_TIME && started_ < rounds && lot(2)) start();
      if (!due_.empty() && lot(2)) doOne();
      pause();
      require(failure_.empty(), failure_);
    }
    while (!due_.empty()) doOne();
    // The connection is there, and so is every object.
    for (auto& object : objects_) object.notesRequest().send().wait(session_.scope());
  }

 private:
  uint64_t lot(uint64_t among) { return random_() % among; }

  // One that is called, and calls nobody: if it is exclusive, nothing waits for long.
  size_t called() { return lot(2 * OBJECTS); }

  // One that calls. Exclusive ones aren't called by others meanwhile.
  size_t caller() { return lot(2) ? lot(OBJECTS) : 2 * OBJECTS + lot(OBJECTS); }

  std::string nameOf(size_t object) {
    const char* kinds[] = {"plain", "exclusive", "caller"};
    return kinds[object / OBJECTS] + std::to_string(object % OBJECTS);
  }

  void doOne() {
    auto at = lot(due_.size());
    auto one = kj::mv(due_[at]);
    due_[at] = kj::mv(due_.back());
    due_.pop_back();
    one();
  }

  void pause() {
    switch (lot(6)) {
      case 0:
        return timer_.afterDelay(lot(300) * kj::MICROSECONDS).wait(session_.scope());
      case 1:
        objects_[lot(objects_.size() - OBJECTS)].notesRequest().send().wait(session_.scope());
        return;
      default:
        return kj::evalLater([] {}).wait(session_.scope());
    }
  }

  Way lead(unsigned depth) {
    if (depth == 0) return lot(10) > 0 ? object(called()) : nowhere();
    auto next = lead(depth - 1);
    switch (lot(7)) {
      case 0:
        return tail(kj::mv(next));
      case 1:
        return forward(kj::mv(next));
      case 2:
        return echo(echoer(depth), kj::mv(next));
      case 3:
        return promised(echoer(depth), kj::mv(next));
      case 4: {
        auto of = lot(OBJECTS);
        return until(of, "later", objects_[of].laterRequest(), kj::mv(next));
      }
      case 5: {
        auto of = lot(OBJECTS);
        return until(of, "early", objects_[of].earlyRequest(), kj::mv(next));
      }
      default:
        return promise(kj::mv(next));
    }
  }

  Way object(size_t at) { return {objects_[at], at, nameOf(at)}; }

  Way nowhere() {
    auto broken = kj::newPromiseAndFulfiller<Passer::Client>();
    due_.push_back([fulfiller = kj::mv(broken.fulfiller)]() mutable {
      fulfiller->reject(kj::Exception(kj::Exception::Type::FAILED, __FILE__, __LINE__,
                                      kj::str(WHY)));
    });
    return {kj::mv(broken.promise), BROKEN, "nowhere"};
  }

  Way tail(Way to) { return {kj::heap<Tail>(kj::mv(to.cap)), to.end, "tail to " + to.text}; }

  Way forward(Way to) {
    return {kj::heap<Forward>(kj::mv(to.cap)), to.end, "forward to " + to.text};
  }

  Way promise(Way to) { return {kept(kj::mv(to.cap)), to.end, "promise of " + to.text}; }

  Way echo(Way by, Way to) {
    auto request = by.cap.echoRequest();
    request.setCap(kj::mv(to.cap));
    return {request.send().getCap(), to.end, "echo by (" + by.text + ") of " + to.text};
  }

  Way promised(Way by, Way to) {
    auto of = called();
    auto request = objects_[of].promisedRequest();
    request.setBy(kj::mv(by.cap));
    request.setCap(kj::mv(to.cap));
    auto text = "promised by " + nameOf(of) + ", an echo by (" + by.text + ") of " + to.text;
    return {request.send().getCap(), to.end, text};
  }

  template <typename Request>
  Way until(size_t of, const std::string& how, Request request, Way to) {
    request.setCap(kj::mv(to.cap));
    request.setUntil(kept(objects_[called()]));
    return {request.send().getCap(), to.end, how + " by " + nameOf(of) + ", " + to.text};
  }

  // Something whose `echo` is answered, by whatever way.
  Way echoer(unsigned depth) {
    auto way = lead(lot(depth));
    return way.end == BROKEN ? object(called()) : kj::mv(way);
  }

  // A promise of a capability. It is kept when its turn comes.
  Passer::Client kept(Passer::Client cap) {
    auto promise = kj::newPromiseAndFulfiller<Passer::Client>();
    due_.push_back([fulfiller = kj::mv(promise.fulfiller), cap = kj::mv(cap)]() mutable {
      fulfiller->fulfill(kj::mv(cap));
    });
    return kj::mv(promise.promise);
  }

  void start() {
    ++started_;
    auto by = caller();
    if (lot(4) == 0) return startTrap(lot(OBJECTS));
    auto way = lead(lot(DEPTH_MAX + 1));
    switch (lot(8)) {
      case 0:
        return call(by, "gives up", objects_[by].giveUpRequest(), kj::mv(way), Calls::LAST);
      case 1: {
        auto request = objects_[by].relayRequest();
        request.setTo(objects_[lot(OBJECTS)]);
        return call(by, "relays", kj::mv(request), kj::mv(way), Calls::ALL);
      }
      case 2:
        return callPromised(by, echoer(DEPTH_MAX), kj::mv(way));
      case 3:
        return callIt(kj::mv(way), lot(2) ? Calls::ALL : Calls::LAST);
      case 4:
        return drop(by, kj::mv(way));
      default:
        return call(by, "calls", objects_[by].callRequest(), kj::mv(way), Calls::ALL);
    }
  }

  // Paths that turn back, or change under way: each of these was found by lot once.
  void startTrap(size_t by) {
    switch (lot(5)) {
      case 0: {
        auto through = tail(forward(object(called())));
        return callPromised(by, kj::mv(through), promise(object(called())));
      }
      case 1: {
        auto through = tail(forward(object(called())));
        return callPromised(by, kj::mv(through), tail(object(called())));
      }
      case 2: {
        auto way = promised(tail(object(called())), tail(object(called())));
        return call(by, "calls", objects_[by].callRequest(), kj::mv(way), Calls::ALL);
      }
      case 3: {
        auto way = promised(promise(object(called())), tail(object(called())));
        return call(by, "calls", objects_[by].callRequest(), kj::mv(way), Calls::ALL);
      }
      default: {
        auto way = tail(promised(tail(object(called())), tail(object(called()))));
        return call(by, "calls", objects_[by].callRequest(), kj::mv(way), Calls::ALL);
      }
    }
  }

  void callPromised(size_t by, Way through, Way way) {
    auto request = objects_[by].callPromisedRequest();
    request.setBy(kj::mv(through.cap));
    way.text = "an echo by (" + through.text + ") of " + way.text;
    call(by, "calls", kj::mv(request), kj::mv(way), Calls::ALL);
  }

  // An object makes calls, and the client waits for them.
  template <typename Request>
  void call(size_t by, const std::string& does, Request request, Way way, Calls::Which which) {
    auto calls = newCalls(which);
    auto made = fill(request, kj::mv(way.cap), calls).send().ignoreResult();
    auto text = nameOf(by) + " " + does + " " + way.text;
    run(calls.stub, text, judge(kj::mv(made), way.end, calls));
  }

  // An object makes calls, and the client doesn't wait for the end.
  void drop(size_t by, Way way) {
    auto calls = newCalls(Calls::ALL);
    auto request = objects_[by].callRequest();
    auto made = fill(request, kj::mv(way.cap), calls).send();
    running_[calls.stub] = "dropped: " + nameOf(by) + " calls " + way.text;
    due_.push_back([this, made = kj::mv(made), stub = calls.stub]() mutable {
      auto gone = kj::mv(made);
      running_.erase(stub);
    });
  }

  // The client makes the calls itself.
  void callIt(Way way, Calls::Which which) {
    auto calls = newCalls(which);
    auto made = kj::Vector<kj::Promise<void>>();
    for (uint32_t n = 0; n < calls.count; ++n) {
      auto request = way.cap.noteRequest();
      request.setStub(calls.stub);
      request.setN(n);
      auto noted = request.send().then([n](capnp::Response<Passer::NoteResults> found) {
        require(found.getN() == n, "another call's answer");
      });
      if (which == Calls::ALL || n + 1 == calls.count) made.add(kj::mv(noted));
    }
    auto all = kj::joinPromises(made.releaseAsArray());
    run(calls.stub, "the client calls " + way.text, judge(kj::mv(all), way.end, calls));
  }

  Calls newCalls(Calls::Which which) {
    return {++stub_, static_cast<uint32_t>(1 + lot(6)), which};
  }

  template <typename Request>
  Request& fill(Request& request, Passer::Client on, Calls calls) {
    request.setOn(kj::mv(on));
    request.setStub(calls.stub);
    request.setCount(calls.count);
    return request;
  }

  kj::Promise<void> judge(kj::Promise<void> made, size_t end, Calls calls) {
    if (end == BROKEN) {
      return made.then([] { throw std::runtime_error("calls on a broken promise succeed"); },
                       [](kj::Exception&& error) { requireReason(error); });
    }
    return made.then([this, end, calls]() {
      auto request = objects_[end].notesRequest();
      request.setStub(calls.stub);
      return request.send().then([calls](capnp::Response<Passer::NotesResults> found) {
        requireOrder(found.getNotes(), calls);
      });
    });
  }

  static void requireReason(const kj::Exception& error) {
    const std::string remote = "remote exception: ", said = error.getDescription().cStr();
    auto own = said.rfind(remote, 0) == 0 ? said.substr(remote.size()) : said;
    require(own == WHY, "not the reason of a broken promise: " + said);
  }

  static void requireOrder(capnp::List<uint64_t>::Reader notes, Calls calls) {
    std::string all;
    bool inOrder = notes.size() > 0 && notes[notes.size() - 1] == calls.count - 1;
    for (size_t at = 0; at < notes.size(); ++at) {
      inOrder = inOrder && (at == 0 || notes[at - 1] < notes[at]);
      all += " " + std::to_string(notes[at]);
    }
    auto whole = calls.which == Calls::LAST || notes.size() == calls.count;
    require(inOrder && whole, std::to_string(calls.count) + " calls started as" + all);
  }

  void run(uint64_t stub, const std::string& text, kj::Promise<void> round) {
    running_[stub] = text;
    tasks_.push_back(round
                         .then([this, stub] { running_.erase(stub); },
                               [this, stub](kj::Exception&& error) {
                                 failure_ = running_[stub] + ": " + error.getDescription().cStr();
                                 running_.erase(stub);
                               })
                         .eagerlyEvaluate(nullptr));
  }

  std::string allRunning() {
    std::string all;
    for (auto& [stub, text] : running_) all += "\n  " + std::to_string(stub) + ": " + text;
    return all;
  }

  Session session_;
  kj::Timer& timer_;
  std::mt19937_64 random_;
  // Plain ones, exclusive ones that are called, exclusive ones that call.
  std::vector<Passer::Client> objects_;
  uint64_t started_ = 0;
  uint64_t stub_;  // unlike those of other seeds
  std::map<uint64_t, std::string> running_;
  std::vector<kj::Promise<void>> tasks_;
  std::string failure_;
  // Later events: promises are kept, or broken; calls that somebody waits for are given up.
  std::vector<kj::Function<void()>> due_;
};

}  // namespace

int main(int count, char** args) {
  if (count != 5) {
    std::cerr << "usage: passing PLAIN EXCLUSIVE SEED ROUNDS" << std::endl;
    return 2;
  }
  auto io = kj::setupAsyncIo();
  try {
    Player(io, args[1], args[2], std::stoull(args[3])).play(std::stoull(args[4]));
  } catch (const kj::Exception& error) {
    std::cerr << "passing: seed " << args[3] << ": " << kj::str(error).cStr() << std::endl;
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "passing: seed " << args[3] << ": " << error.what() << std::endl;
    return 1;
  }
  return 0;
}
