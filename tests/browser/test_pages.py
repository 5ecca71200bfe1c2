"""The chat and the counter as people have them: windows of Chromium, and a server that is killed meanwhile."""

import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
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
            const counter = "%s/counter/visits";
            fetch(counter + "/increment", { method: "POST", mode: "no-cors" })
              .then(() => tried.push("fetched"), () => tried.push("failed"));
            const socket = new WebSocket(counter.replace("http", "ws") + "/live");
            socket.onopen = () => tried.push("open");
            socket.onclose = () => tried.push("closed");
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

    def test_a_page_of_another_origin_neither_counts_nor_listens(self):
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
        expect(page).to_have_title("closed fetched")
        self.assertEqual(page.request.get(f"{self.server.url}/counter/visits").text(), "0")

    def routed(self):
        """A server with a route for those who show a reference, and a reference to a counter that shows 7."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        routes = folder / "routes.toml"
        routes.write_text(
            '[[route]]\npath = "/link"\nkind = "link"\nto = "/mine"\naccess = "public"\n'
            '[[route]]\npath = "/mine/*"\naccess = "bearer"\n'
            '[[route]]\npath = "/hits/*"\nclass = "Counter"\nname = "hits"\naccess = "public"\n'
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


if __name__ == "__main__":
    unittest.main()
