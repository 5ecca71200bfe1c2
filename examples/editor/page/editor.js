// The page of one document: CodeMirror on a text of Yjs, which y-websocket keeps like everybody's.
import { defaultKeymap, indentWithTab } from "@codemirror/commands";
import { EditorState } from "@codemirror/state";
import { EditorView, drawSelection, keymap, placeholder } from "@codemirror/view";
import { yCollab, yUndoManagerKeymap } from "y-codemirror.next";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";

const COLOURS = ["#b5446e", "#3d6fb6", "#2f855a", "#b7591f", "#6b4fbb", "#0f7c85", "#8a5a2b", "#a33b3b"];
const NAME_LETTERS_MAX = 32;
const COLOUR = /^#[0-9a-f]{6}$/;
/** Twelve bits, four for each part of a colour. */
const spread = (number) => (number & 0xf) | ((number & 0xf0) << 4) | ((number & 0xf00) << 8);

const element = (id) => document.getElementById(id);
const path = location.pathname.replace(/\/+$/, "").split("/");
const room = path.pop();
const title = decodeURIComponent(room);
document.title = title;
element("name").textContent = title;

const doc = new Y.Doc();
const text = doc.getText("text");
const server = location.origin.replace(/^http/, "ws") + path.join("/");
// Tabs of one browser talk by the server, too: what one shows as told to others is then true of all.
const provider = new WebsocketProvider(server, room, doc, { disableBc: true });
const { awareness } = provider;

// Of one's own: y-codemirror tells cursors of one colour apart by nothing else, and mixes up their names.
const own = parseInt(COLOURS[doc.clientID % COLOURS.length].slice(1), 16) ^ spread(doc.clientID >>> 3);
const colour = "#" + own.toString(16).padStart(6, "0");
let name = localStorage.getItem("name") || "Guest " + (doc.clientID % 1000);
const introduce = () => awareness.setLocalStateField("user", { name, color: colour, colorLight: colour + "40" });
element("you").value = name;
element("you").addEventListener("change", (event) => {
  name = event.target.value.trim().slice(0, NAME_LETTERS_MAX) || name;
  event.target.value = name;
  localStorage.setItem("name", name);
  introduce();
});
introduce();

awareness.on("change", () => {
  const people = [...awareness.getStates()].filter(([, state]) => state.user);
  element("people").replaceChildren(...people.map(([id, { user }]) => {
    const item = document.createElement("li");
    const own = id === doc.clientID;
    item.textContent = String(user.name).slice(0, NAME_LETTERS_MAX) + (own ? " (you)" : "");
    item.style.background = COLOUR.test(user.color) ? user.color : "#666";
    return item;
  }));
});

let wasConnected = false;
const show = (is, words) => {
  element("state").dataset.is = is;
  element("state").textContent = words;
};
provider.on("status", ({ status }) => {
  if (status !== "connected") {
    // Each try is told as one; what counts is that there was a connection, and words since then.
    show("waiting", wasConnected ? "no connection: what you write is kept in this window" : "connecting…");
    return;
  }
  wasConnected = true;
  show("waiting", "loading…");
  // Others have heard that this one left: the next number tells them that it is back.
  introduce();
});
provider.on("sync", (isSynced) => isSynced && show("connected", "connected"));
// For good: the server says why.
provider.on("closed", ({ reason }) => show("refused", reason || "the server refused this window: reload"));

const undoManager = new Y.UndoManager(text);
new EditorView({
  parent: element("text"),
  state: EditorState.create({
    doc: text.toString(),
    extensions: [
      keymap.of([...yUndoManagerKeymap, ...defaultKeymap, indentWithTab]),
      drawSelection(),
      EditorView.lineWrapping,
      placeholder("Write something. Everybody who opens this page writes along."),
      yCollab(text, awareness, { undoManager }),
    ],
  }),
}).focus();
