// The keys of the page, and the list of them.

import { byId, make } from "./dom.js";

// key as the browser names it -> what is done; the list shows the first name of each
const KEYS = [
  [["o"], "opacity of the mask: 0, 25, 50, 75, 100 %", "opacity"],
  [["m"], "mask on and off", "mask"],
  [["l"], "outlines only", "outline"],
  [["1", "2", "3", "4", "5", "6", "7", "8", "9"], "class 1 to 9 on and off", "class"],
  [["0"], "all classes on", "all"],
  [["PageUp", "PageDown"], "next and previous slice", "slice"],
  [["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], "move the crosshair, the picture, or turn the 3D view", "move"],
  [["+", "-", "f"], "larger, smaller, fit", "zoom"],
  [["v"], "next layout: all, axial, coronal, sagittal, 3D", "layout"],
  [["[", "]"], "previous and next study", "study"],
  [["d"], "download the mask", "download"],
  [["n"], "choose a file to send", "new"],
  [["t"], "light and dark", "theme"],
  [["?"], "this list", "help"],
];
const NAMES = { PageUp: "Page ↑", PageDown: "Page ↓", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

export function listKeys(missing) {
  const rows = KEYS.filter(([, , action]) => !missing.includes(action)).map(([keys, text, action]) => {
    const shown = action === "class" ? ["1", "…", "9"] : keys;
    return [make("dt", {}, ...shown.map((key) => make("kbd", { text: NAMES[key] ?? key }))), make("dd", { text })];
  });
  byId("keys").replaceChildren(...rows.flat());
}

// what a control does with a key itself is left to it
function takes(target, key) {
  if (target.matches?.("input[type=password], select")) return true;
  const arrows = key.startsWith("Arrow") || key.startsWith("Page");
  return arrows && (target.matches?.("input[type=range]") || target.closest?.("#side, dialog"));
}

export function listenToKeys(actions) {
  const known = new Map(KEYS.flatMap(([keys, , action]) => keys.map((key) => [key, action])));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || takes(event.target, event.key)) return;
    const action = known.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    if (event.target.closest?.("#canvas") && event.key !== "Tab") event.stopPropagation(); // NiiVue has keys of its own
    if (!action || !actions[action]) return;
    event.preventDefault();
    actions[action](event.key);
  }, { capture: true });
}
