// Unchanged clients of y-websocket on a real server, which is killed under them.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import WebSocket from "ws";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";

const SERVER = process.env.EDITOR_SERVER;
const LIMIT = { timeout: 120_000 };
const ANY = "127.0.0.1:0";
const folder = await mkdtemp(join(tmpdir(), "editor-"));
const running = new Set();

after(async () => {
  await Promise.all([...running].map(kill));
  await rm(folder, { recursive: true });
});

/** Starts a server on the data of that name, and waits until it is ready. */
async function serve(name, http = ANY) {
  const options = ["serve", "--json", "--listen", ANY, "--http", http, "--data", join(folder, name)];
  const server = spawn(SERVER, options, { stdio: ["ignore", "pipe", "inherit"] });
  running.add(server);
  for await (const line of createInterface(server.stdout)) {
    return { server, http: JSON.parse(line).http };
  }
  throw new Error("the server has ended");
}

async function kill(server) {
  const ended = once(server, "exit");
  server.kill("SIGKILL");
  await ended;
  running.delete(server);
}

/** As a page does it. Two of one process don't talk beside the server. */
function open(http, room) {
  const doc = new Y.Doc();
  const url = http.replace("http", "ws") + "/editor";
  const provider = new WebsocketProvider(url, room, doc, { WebSocketPolyfill: WebSocket, disableBc: true });
  return { doc, text: doc.getText("text"), provider };
}

/** Waits until it is so; looks again whenever one of the clients has heard something. */
async function until(clients, isSo) {
  while (!isSo()) {
    await new Promise((resolve) => {
      const heard = () => {
        for (const { doc, provider } of clients) {
          doc.off("update", heard);
          provider.off("sync", heard);
          provider.awareness.off("update", heard);
        }
        resolve();
      };
      for (const { doc, provider } of clients) {
        doc.on("update", heard);
        provider.on("sync", heard);
        provider.awareness.on("update", heard);
      }
    });
  }
}

const close = (clients) => clients.forEach(({ doc, provider }) => (provider.destroy(), doc.destroy()));

test("two clients converge, also across a kill", LIMIT, async () => {
  const { server, http } = await serve("kill");
  const clients = [open(http, "room"), open(http, "room")];
  const [ada, bob] = clients;
  await until(clients, () => clients.every(({ provider }) => provider.synced));
  const both = () => [ada, bob].map(({ text }) => text.toString());
  const write = (from, to) => {
    for (let key = from; key < to; key++) {
      ada.text.insert(ada.text.length >> 1, "a");
      bob.text.insert(bob.text.length >> 1, "b");
    }
  };
  const haveAll = (keys) => () => both().every((words) => words.length === 2 * keys) && both()[0] === both()[1];
  write(0, 100);
  await until(clients, haveAll(100));
  // Some of this has reached the server when it is killed, and some is written while there is none.
  write(100, 200);
  await kill(server);
  write(200, 300);
  const again = await serve("kill", http.replace("http://", ""));
  assert.equal(again.http, http);
  await until(clients, haveAll(300));
  await until(clients, () => clients.every(({ provider }) => provider.synced));
  const late = open(http, "room");
  await until([late], () => late.text.length === 600);
  assert.equal(late.text.toString(), both()[0]);
  assert.equal(await (await fetch(http + "/editor/room/text")).text(), both()[0]);
  close([...clients, late]);
  await kill(again.server);
});

test("cursors reach the others and their own client, and leave with it", LIMIT, async () => {
  const { server, http } = await serve("cursors");
  const clients = [open(http, "room"), open(http, "room")];
  const [ada, bob] = clients;
  await until(clients, () => clients.every(({ provider }) => provider.synced));
  const echoed = new Promise((resolve) => {
    const handlers = ada.provider.messageHandlers;
    const awareness = handlers[1];
    handlers[1] = (...all) => (resolve(), awareness(...all));
  });
  ada.provider.awareness.setLocalStateField("user", { name: "Ada" });
  await echoed;
  const seen = () => bob.provider.awareness.getStates().get(ada.doc.clientID);
  await until(clients, () => seen()?.user?.name === "Ada");
  close([ada]);
  await until([bob], () => !seen());
  close([bob]);
  await kill(server);
});

test("a client that is refused for good does not come again", LIMIT, async () => {
  const { server, http } = await serve("refused");
  const client = open(http, "room");
  await until([client], () => client.provider.synced);
  const closed = new Promise((resolve) => client.provider.once("closed", resolve));
  client.provider.ws.send("no message of Yjs");
  assert.equal((await closed).code, 4400);
  assert.equal(client.provider.shouldConnect, false);
  close([client]);
  await kill(server);
});

test("the import map has the files of the build", LIMIT, async () => {
  const [made, committed] = await Promise.all(["dist/import-map.json", "import-map.json"].map((path) => readFile(path, "utf8")));
  assert.equal(committed, made, "run page/build, then copy dist/import-map.json to import-map.json");
});

test("the page is served with its script", LIMIT, async () => {
  const { server, http } = await serve("page");
  const page = await fetch(http + "/editor/room");
  assert.match(page.headers.get("content-type"), /^text\/html/);
  assert.match(await page.text(), /editor\.js/);
  const script = await fetch(http + "/editor/room/editor.js");
  assert.match(script.headers.get("content-type"), /^text\/javascript/);
  assert.ok((await script.text()).length > 100_000, "the script was built, and then the server");
  await kill(server);
});
