@0xc85e1f7a2b90d346;

using Http = import "/capstead/http.capnp";
using Slot = import "slot.capnp".Slot;

interface Forwarder extends (Slot, Http.HttpService) {
  # An object that passes its HTTP requests on to the service in its slot, a client's perhaps.
}
