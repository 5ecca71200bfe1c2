"""The chat, the counter and the documents as people have them: windows of Chromium, and a server that is killed meanwhile."""

import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")
CAPSTEAD = os.environ.get("CAPSTEAD_BIN", TARGET / "debug/capstead")
CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "chromium")
PICTURES = TARGET / "pictures"
DEADLINE_MS = 60_000
# The text of an editor, without the names of others' cursors.
LINES = """() => [...document.querySelectorAll(".cm-line")].map((line) => {
  const words = line.cloneNode(true);
  words.querySelectorAll(".cm-ySelectionCaret").forEach((cursor) => cursor.remove());
  return words.textContent.replace(/[\u200b\u2060]/g, "");
}).join("\\n")"""


class Server:
    """A server that can be killed, and comes back at the same addresses."""

    def __init__(self, data, flags=()):
        self.data = data
        self.flags = list(flags)
        self.http = "127.0.0.1:0"
        self.start()

    def start(self):
        command = [CAPSTEAD, "serve", "--json", "--data", self.data, "--listen", "127.0.0.1:0"]
        command += ["--http", self.http, *self.flags]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL)
        self.url = json.loads(self.process.stdout.readline())["http"]
        self.http = self.url.removeprefix("http://")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Stranger(http.server.BaseHTTPRequestHandler):
    """A page of another origin that tries to count, and to listen."""

    target = ""

    def do_GET(self):
        script = """
            const tried = [];
            const server = "%s";
            const counter = server + "/counter/visits";
            fetch(counter + "/increment", { method: "POST", mode: "no-cors" })
              .then(() => tried.push("fetched"), () => tried.push("failed"));
            const socket = new WebSocket(counter.replace("http", "ws") + "/live");
            socket.onopen = () => tried.push("open");
            socket.onclose = () => tried.push("closed");
            const editor = new WebSocket(server.replace("http", "ws") + "/editor/notes");
            editor.onopen = () => tried.push("edits");
            editor.onclose = () => tried.push("kept out");
            setInterval(() => { document.title = tried.sort().join(" "); }, 20);
        """ % self.target
        page = f"<!doctype html><script>{script}</script>".encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """An empty page of another origin, and the requests for it."""

    asked = None

    def do_GET(self):
        self.asked.append(f"{self.path}\n{self.headers}")
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", "15")
        self.end_headers()
        self.wfile.write(b"<!doctype html>")

    def log_message(self, *_):
        pass


# What a page gets of a request: the status and the text, or that it may read nothing.
FETCH = """async ([url, options]) => {
  try {
    const answer = await fetch(url, options);
    return [answer.status, await answer.text()];
  } catch {
    return "unreadable";
  }
}"""
# The first message of a socket, or that there is none.
LISTEN = """([url, protocols]) => new Promise((resolve) => {
  const socket = new WebSocket(url.replace("http", "ws"), protocols);
  socket.onmessage = (message) => resolve(message.data);
  socket.onclose = () => resolve("closed");
})"""


class Pages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        PICTURES.mkdir(parents=True, exist_ok=True)
        cls.playwright = sync_playwright().start()
        cls.addClassCleanup(cls.playwright.stop)
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        cls.addClassCleanup(cls.browser.close)
        expect.set_options(timeout=DEADLINE_MS)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.server = Server(Path(folder.name, "capstead.data"))
        self.addCleanup(lambda: self.server.kill())
        self.wrong = []

    def tearDown(self):
        self.assertEqual(self.wrong, [], "no page reports an error of its own")

    def window(self, path, **options):
        """A window that shares nothing with others."""
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        context.set_default_timeout(DEADLINE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.goto(self.server.url + path)
        return page

    def enter(self, name, room, path="/chat", **options):
        page = self.window(path, **options)
        page.get_by_label("Your name").fill(name)
        if room:
            page.get_by_label("Room").fill(room)
        page.get_by_role("button", name="Enter").click()
        self.connected(page)
        return page

    def connected(self, page):
        expect(page.locator("#state")).to_have_text("connected")

    def say(self, page, text):
        page.get_by_label("Message").fill(text)
        page.get_by_role("button", name="Send").click()

    def test_two_windows_talk_across_the_death_of_the_server(self):
        ada = self.enter("Ada", "tea room", viewport={"width": 1100, "height": 700})
        bob = self.enter("Bob", "tea room", viewport={"width": 390, "height": 800})
        for page in (ada, bob):
            expect(page.locator("#here li")).to_have_text(["Ada", "Bob"])
        said = []
        for number in range(3):
            for page, name in ((ada, "Ada"), (bob, "Bob")):
                said.append(f"{name} says {number}")
                self.say(page, said[-1])
                for reader in (ada, bob):
                    expect(reader.locator(".said")).to_have_text(said)
        # Markup is text.
        said.append("<img src=x onerror=alert(1)> & so on")
        self.say(ada, said[-1])
        expect(bob.locator(".said")).to_have_text(said)
        ada.screenshot(path=PICTURES / "chat.png")
        bob.screenshot(path=PICTURES / "chat-phone.png")

        # Durable, and with it what was said before.
        self.assertEqual(bob.request.post(f"{self.server.url}/counter/x/increment").text(), "1")
        self.server.kill()
        for page in (ada, bob):
            expect(page.locator("#state")).to_have_text("reconnecting")
        ada.screenshot(path=PICTURES / "chat-lost.png")
        self.server.start()
        for page in (ada, bob):
            self.connected(page)
            expect(page.locator("#here li")).to_have_count(2)
            expect(page.locator(".said")).to_have_text(said)
        said.append("we are back")
        self.say(bob, said[-1])
        for page in (ada, bob):
            expect(page.locator(".said")).to_have_text(said)
        late = self.enter("Cyd", "tea room", color_scheme="dark")
        expect(late.locator(".said")).to_have_text(said)
        late.screenshot(path=PICTURES / "chat-dark.png")
        bob.get_by_role("button", name="Leave").click()
        expect(ada.locator("#here li")).to_have_text([re.compile("^(Ada|Cyd)$")] * 2)

    def test_a_private_room_is_entered_by_its_address(self):
        one = self.window("/chat")
        one.get_by_label("Your name").fill("Ada")
        one.get_by_role("button", name="Make a private room").click()
        self.connected(one)
        expect(one.locator("#title")).to_have_text("A private room")
        path, room = one.url.removeprefix(self.server.url).split("#")
        self.assertRegex(room, "^[0-9a-f]{64}$")
        other = self.enter("Bob", "", path=f"{path}#{room}")
        self.say(other, "only us")
        expect(one.locator(".said")).to_have_text(["only us"])
        public = self.enter("Eve", "")
        expect(public.locator("#here li")).to_have_text(["Eve"])

    def test_every_window_of_a_counter_shows_its_number(self):
        index = self.window("/")
        index.screenshot(path=PICTURES / "index.png")
        index.get_by_role("link", name="Counter").click()
        other = self.window("/counter/visits/page")
        for page in (index, other):
            expect(page.locator("#value")).to_have_text("0")
        index.get_by_role("button", name="One more").click()
        other.get_by_role("button", name="One more").click()
        for page in (index, other):
            expect(page.locator("#value")).to_have_text("2")
        self.server.kill()
        expect(other.locator("#state")).to_have_text("reconnecting")
        self.server.start()
        other.request.post(f"{self.server.url}/counter/visits/increment")
        for page in (index, other):
            expect(page.locator("#state")).to_have_text("live")
            expect(page.locator("#value")).to_have_text("3")
        index.screenshot(path=PICTURES / "counter.png")

    def test_a_page_of_another_origin_neither_counts_nor_listens_nor_edits(self):
        handler = type("Handler", (Stranger,), {"target": self.server.url})
        stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        self.addCleanup(stranger.server_close)
        self.addCleanup(stranger.shutdown)
        context = self.browser.new_context()
        self.addCleanup(context.close)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{stranger.server_port}/")
        # The answer to the fetch can't be read, and is a refusal.
        expect(page).to_have_title("closed fetched kept out")
        self.assertEqual(page.request.get(f"{self.server.url}/counter/visits").text(), "0")

    def write(self, name, path="/editor/notes", **options):
        page = self.window(path, **options)
        self.connected(page)
        page.get_by_label("You are").fill(name)
        # Enter, as a person would: the field says so when it is left.
        page.get_by_label("You are").press("Enter")
        page.locator(".cm-content").click()
        return page

    def text(self, name="notes"):
        with urllib.request.urlopen(f"{self.server.url}/editor/{name}/text") as answer:
            return answer.read().decode()

    def alike(self, *pages):
        """Waits until all windows show what the server has, and returns it."""
        deadline = time.monotonic() + DEADLINE_MS / 1000
        while True:
            text = self.text()
            shown = {page.evaluate(LINES) for page in pages}
            if shown == {text}:
                return text
            self.assertLess(time.monotonic(), deadline, f"{shown} and {text!r}")

    def test_two_windows_write_one_text_across_the_death_of_the_server(self):
        first = self.window("/")
        first.get_by_role("link", name="Documents").click()
        expect(first).to_have_title("Documents")
        first.screenshot(path=PICTURES / "documents.png")
        first.get_by_role("button", name="Open").click()
        expect(first).to_have_title("notes")
        first.close()
        ada = self.write("Ada", viewport={"width": 1100, "height": 700})
        bob = self.write("Bob", viewport={"width": 390, "height": 800})
        for page in (ada, bob):
            expect(page.locator("#people li")).to_have_text([re.compile("^(Ada|Bob)( .you.)?$")] * 2)
        ada.keyboard.type("Things to bring\n\nA tent, two sleeping bags and a stove.\n")
        expect(bob.locator(".cm-content")).to_contain_text("stove")
        bob.keyboard.press("Control+Home")
        bob.keyboard.press("ArrowDown")
        # At once, a key each.
        for one, other in zip("Matches, and a torch each.", "We go by train, on Friday."):
            ada.keyboard.press(one)
            bob.keyboard.press(other)
        text = "Things to bring\nWe go by train, on Friday.\nA tent, two sleeping bags and a stove.\n"
        text += "Matches, and a torch each."
        self.assertEqual(self.alike(ada, bob), text)
        # Each sees where the other is.
        expect(ada.locator(".cm-ySelectionInfo")).to_have_text("Bob")
        expect(bob.locator(".cm-ySelectionInfo")).to_have_text("Ada")
        ada.keyboard.press("Shift+Home")
        expect(bob.locator(".cm-ySelection").first).to_be_visible()
        ada.screenshot(path=PICTURES / "editor.png")
        bob.screenshot(path=PICTURES / "editor-phone.png")

        self.server.kill()
        ada.keyboard.press("Control+End")
        ada.keyboard.type(" While it was gone.")
        bob.keyboard.press("Control+Home")
        bob.keyboard.type("Now: ")
        for page in (ada, bob):
            expect(page.locator("#state")).to_contain_text("kept in this window")
        bob.screenshot(path=PICTURES / "editor-lost.png")
        self.server.start()
        for page in (ada, bob):
            self.connected(page)
        again = f"Now: {text} While it was gone."
        for page in (ada, bob):
            expect(page.locator(".cm-content")).to_contain_text("While it was gone.")
            expect(page.locator(".cm-content")).to_contain_text("Now: ")
        self.assertEqual(self.alike(ada, bob), again)
        late = self.write("Cyd", color_scheme="dark", viewport={"width": 1100, "height": 700})
        self.assertEqual(self.alike(late), again)
        expect(late.locator(".cm-ySelectionInfo")).to_have_count(2)
        late.screenshot(path=PICTURES / "editor-dark.png")
        # All that a page has to load comes from the server alone.
        loaded = late.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
        self.assertEqual([url for url in loaded if not url.startswith(self.server.url)], [])

    def without_a_built_script(self, context, serve):
        """Has a context see the page as a server gives it that was built without the script."""
        folder = REPOSITORY / "examples/editor/page"
        import_map = (folder / "import-map.json").read_text()
        element = f'<script type="importmap">\n{import_map}</script>\n'
        html = (folder / "page.html").read_text().replace("<!-- import map -->\n", element)
        packages = sorted({re.match(r".*@[^/]+/", url)[0] for url in json.loads(import_map)["integrity"]})
        policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
        policy += f"script-src 'self' 'unsafe-inline' {' '.join(packages)}"
        headers = {"content-security-policy": policy, "content-type": "text/html"}
        page_url, script_url = (f"{self.server.url}/editor/notes{end}" for end in ("", "/editor.js"))
        context.route(page_url, lambda route: route.fulfill(body=html, headers=headers))
        context.route(script_url, lambda route: route.fulfill(path=folder / "editor.js"))
        context.route(re.compile("^https://"), lambda route: serve(route, folder / "node_modules"))
        page = context.new_page()
        page.goto(page_url)
        return page

    def test_without_a_built_script_the_page_takes_the_same_files_from_elsewhere(self):
        def serve(route, modules):
            name = route.request.url.removeprefix("https://cdn.jsdelivr.net/npm/")
            self.assertNotEqual(name, route.request.url)
            file = modules / re.sub(r"(?<=.)@[^/]+", "", name, count=1)
            headers = {"access-control-allow-origin": "*", "content-type": "text/javascript"}
            body = file.read_bytes() + (b" " if name.startswith(changed) else b"")
            route.fulfill(body=body, headers=headers)

        changed = "none"
        # For Chromium the page, which isn't the server's here, comes from the world outside.
        options = {"permissions": ["local-network-access"]}
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        page = self.without_a_built_script(context, serve)
        self.connected(page)
        page.locator(".cm-content").click()
        page.keyboard.type("Hello.")
        self.assertEqual(self.alike(page), "Hello.")
        # A server that gives other files, or none, is of no use to anybody.
        for changed, serving in (("yjs@", serve), ("", lambda route, _: route.abort())):
            context = self.browser.new_context(**options)
            self.addCleanup(context.close)
            page = self.without_a_built_script(context, serving)
            expect(page.locator("#state")).to_contain_text("run examples/editor/page/build")
            expect(page.locator(".cm-content")).to_have_count(0)
        page.screenshot(path=PICTURES / "editor-no-script.png")

    def routed(self, more=""):
        """A server with a route for those who show a reference, and a reference to a counter that shows 7."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        routes = folder / "routes.toml"
        routes.write_text(
            '[[route]]\npath = "/link"\nkind = "link"\nto = "/mine"\naccess = "public"\n'
            '[[route]]\npath = "/mine/*"\naccess = "bearer"\n'
            '[[route]]\npath = "/hits/*"\nclass = "Counter"\nname = "hits"\naccess = "public"\n' + more
        )
        routes.chmod(0o600)
        server = Server(folder / "capstead.data", ["--routes", routes])
        self.addCleanup(server.kill)
        increment = urllib.request.Request(f"{server.url}/hits/increment?by=7", method="POST")
        urllib.request.urlopen(increment).close()
        grant = [CAPSTEAD, "grant", "--data", folder / "capstead.data", "Counter/hits"]
        reference = subprocess.run(grant, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
        return server, reference

    def test_a_page_opens_a_socket_by_its_reference(self):
        server, reference = self.routed()
        context = self.browser.new_context()
        self.addCleanup(context.close)
        page = context.new_page()
        page.goto(f"{server.url}/link")
        heard = page.evaluate(
            """(secret) => new Promise((resolve) => {
                const url = location.origin.replace("http", "ws") + "/mine/live";
                const socket = new WebSocket(url, ["capstead", "capstead.bearer." + secret]);
                socket.onmessage = (message) => resolve([message.data, socket.protocol]);
                socket.onclose = () => resolve("closed");
            })""",
            reference.split("#")[1],
        )
        self.assertEqual(heard, ["7", "capstead"])

    def test_a_link_shows_its_reference_to_its_own_server_alone(self):
        server, reference = self.routed()
        context = self.browser.new_context()
        self.addCleanup(context.close)
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.goto(f"{server.url}/link#{reference}")
        expect(page.locator("#answer")).to_have_text("7")
        expect(page.locator("#said")).to_have_text("")
        secret = reference.split("#")[1]
        self.assertEqual(page.url, f"{server.url}/link", "neither the address bar nor the history keeps it")
        sent = [(request.url, request.all_headers()) for request in asked]
        pages = [(url, headers) for url, headers in sent if not url.endswith("/favicon.ico")]
        urls = [url.split("#")[0] for url, _ in pages]
        self.assertEqual(urls, [f"{server.url}/link", f"{server.url}/mine"])
        shown = [url for url, headers in pages if secret in headers.get("authorization", "")]
        self.assertEqual(shown, [f"{server.url}/mine"])
        self.assertEqual([headers.get("referer") for _, headers in pages], [None, None])
        other = context.new_page()
        other.goto(f"{server.url}/link#{reference[:-4]}AAAA")
        expect(other.locator("#said")).to_have_text("The server refuses the link (401).")
        other.goto("about:blank")
        other.goto(f"{server.url}/link")
        expect(other.locator("#said")).to_contain_text("no reference")

    def elsewhere(self):
        """A page of another origin, its origin, and the list of all that it was asked."""
        asked = []
        handler = type("Handler", (Elsewhere,), {"asked": asked})
        stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        self.addCleanup(stranger.server_close)
        self.addCleanup(stranger.shutdown)
        origin = f"http://127.0.0.1:{stranger.server_port}"
        context = self.browser.new_context()
        self.addCleanup(context.close)
        context.set_default_timeout(DEADLINE_MS)
        page = context.new_page()
        page.goto(origin)
        return page, origin, asked

    def test_a_page_of_another_origin_takes_the_three_ways_in_only_where_a_route_names_it(self):
        page, origin, asked = self.elsewhere()
        named = f'origins = ["{origin}"]\n'
        server, reference = self.routed(
            '[[route]]\npath = "/open/*"\nclass = "Counter"\nname = "hits"\naccess = "public"\n' + named
            + '[[route]]\npath = "/ours/*"\naccess = "bearer"\n' + named
        )
        secret = reference.split("#")[1]

        def fetch(path, **options):
            return page.evaluate(FETCH, [server.url + path, options])

        def listen(path, protocols=()):
            return page.evaluate(LISTEN, [f"{server.url}{path}/live", list(protocols)])

        # A public route.
        self.assertEqual(fetch("/hits"), "unreadable")
        for mode in ("cors", "no-cors"):
            fetch("/hits/increment", method="POST", mode=mode)
        self.assertEqual(listen("/hits"), "closed")
        self.assertEqual(fetch("/open"), [200, "7"])
        self.assertEqual(fetch("/open/increment", method="POST"), [200, "8"])
        self.assertEqual(listen("/open"), "8")
        # A reference that the page shows.
        shown = {"Authorization": f"Bearer {reference}"}
        offered = ["capstead", f"capstead.bearer.{secret}"]
        for options in ({"headers": shown}, {"headers": shown, "method": "POST"}):
            self.assertEqual(fetch("/mine", **options), "unreadable")
        self.assertEqual(listen("/mine", offered), "closed")
        self.assertEqual(fetch("/ours", headers=shown), [200, "8"])
        self.assertEqual(fetch("/ours/increment", headers=shown, method="POST"), [200, "9"])
        self.assertEqual(listen("/ours", offered), "9")
        self.assertEqual(fetch("/ours")[0], 401)
        wrong = {"Authorization": f"Bearer {reference[:-4]}AAAA"}
        self.assertEqual(fetch("/ours", headers=wrong)[0], 401)
        # A link that it has: whoever opens it sees what is there, and the page nothing of it.
        link = f"{server.url}/link#{reference}"
        page.evaluate(
            """(link) => new Promise((loaded) => {
                const frame = document.createElement("iframe");
                frame.onload = () => loaded();
                frame.src = link;
                document.body.append(frame);
            })""",
            link,
        )
        expect(page.frame_locator("iframe").locator("#answer")).to_have_count(0)
        with page.expect_popup() as opened:
            page.evaluate("(link) => { window.opened = window.open(link); }", link)
        window = opened.value
        expect(window.locator("#answer")).to_have_text("9")
        self.assertEqual(window.url, f"{server.url}/link")
        read = "() => { try { return window.opened.document.title; } catch { return 'unreadable'; } }"
        self.assertEqual(page.evaluate(read), "unreadable")
        page.evaluate("(link) => { location = link; }", link)
        expect(page.locator("#answer")).to_have_text("9")
        self.assertEqual(page.url, f"{server.url}/link")
        self.assertEqual(page.evaluate("document.referrer"), f"{origin}/", "as the page's own policy has it")
        self.assertEqual([said for said in asked if secret in said], [])


if __name__ == "__main__":
    unittest.main()
