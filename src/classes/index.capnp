@0xe6b1940f7d3ac258;

using Http = import "/capstead/http.capnp";

interface Index extends(Http.HttpService) {
  # The page that shows what a server has.
}
