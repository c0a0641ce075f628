// The page: what was sent in this tab, the study that is shown, and what people do with both.

import { Display } from "./display.js";
import { byId, make, say } from "./dom.js";
import { facts, listClasses, listTold } from "./findings.js";
import { listenToKeys, listKeys } from "./keys.js";
import { ENDED, Server } from "./server.js";

const STAGES = { reading: "reading", predicting: "segmenting", writing: "writing the mask" };
const server = new Server();
const studies = []; // {name, state, told, progress, abort}
let about = null;
let display = null;
let limits = null;
let current = null;

// ---- what a study is doing

function doing(study) {
  const told = study.told;
  if (study.error) return study.error;
  if (study.state === "sending") return study.progress === null ? "uploading" : `uploading, ${Math.round(100 * study.progress)} %`;
  if (study.state === "waiting") return "waits for its upload";
  if (told.state === "queued") return told.place > 1 ? `waiting, number ${told.place} in the queue` : "waiting, next in the queue";
  if (told.state === "running") return STAGES[told.stage] + (told.progress === null ? "" : `, ${Math.round(100 * told.progress)} %`);
  if (told.state === "cancelled") return "cancelled";
  const flags = told.trust?.flags?.length ?? 0;
  return flags ? `done; ${flags} ${flags > 1 ? "things are" : "thing is"} odd` : "done";
}

const busy = (study) => !study.error && !ENDED.includes(study.told?.state);

function list() {
  byId("sent").hidden = !studies.length;
  byId("studies").replaceChildren(...studies.map((study) => {
    const classes = [study === current ? "current" : "", study.error ? "failed" : ""].join(" ").trim();
    const share = study.state === "sending" ? study.progress : study.told?.progress;
    const bar = busy(study) ? make("progress", { max: 1, value: share ?? null, "aria-label": `Progress of ${study.name}` }) : null;
    return make("li", { class: classes || null },
      make("button", { type: "button", class: "choose", "aria-current": study === current ? "true" : null, onclick: () => choose(study) },
        make("b", { text: study.name }), make("span", { text: doing(study) })),
      make("button", { type: "button", class: "remove", text: busy(study) ? "Cancel" : "Delete", "aria-label": `${busy(study) ? "Cancel" : "Delete"} ${study.name}`, onclick: () => remove(study) }),
      bar);
  }));
}

// focus stays where it was, though the list is made anew
function relist() {
  const at = [...byId("studies").querySelectorAll("button")].indexOf(document.activeElement);
  list();
  if (at >= 0) byId("studies").querySelectorAll("button")[at]?.focus();
  if (current && busy(current)) say(byId("wait"), `${current.name}: ${doing(current)}`);
}

// ---- sending

async function send(files) {
  say(byId("error"), "");
  for (const file of files) {
    const study = { name: file.name, file, state: "waiting", told: null, progress: 0, error: null, abort: new AbortController() };
    if (limits && file.size > limits.bytes) {
      study.error = `It has ${Math.ceil(file.size / 1e6)} MB, and the server takes ${Math.floor(limits.bytes / 1e6)} MB.`;
    }
    studies.push(study);
    queue = queue.then(() => run(study));
  }
  await choose(studies[studies.length - files.length]);
}

let queue = Promise.resolve(); // one upload after the other

async function run(study) {
  if (study.error || study.abort.signal.aborted) return;
  study.state = "sending";
  relist();
  try {
    study.told = await server.send(study.file, (share) => {
      study.progress = share;
      relist();
    }, study.abort.signal);
    study.file = null;
    study.state = "sent";
    relist();
    follow(study); // the next upload may begin
  } catch (error) {
    fail(study, error);
  }
}

async function follow(study) {
  try {
    await server.watch(study.told.id, (told) => {
      study.told = told;
      relist();
    }, study.abort.signal);
    if (study.told.state === "failed") throw new Error(study.told.error.charAt(0).toUpperCase() + study.told.error.slice(1) + ".");
    if (study === current) await choose(study);
  } catch (error) {
    fail(study, error);
  }
}

function fail(study, error) {
  if (error.name === "AbortError") return;
  study.error = error.message;
  if (error.status === 401) askForToken(error.message);
  relist();
  if (study === current) choose(study);
}

async function remove(study) {
  study.abort.abort();
  const id = study.told?.id;
  studies.splice(studies.indexOf(study), 1);
  if (study === current) await choose(studies[studies.length - 1] ?? null);
  list();
  if (id) await server.remove(id).catch((error) => error.status === 404 || say(byId("error"), error.message));
}

// ---- showing

const path = (study, what) => (study.told.id ? `jobs/${encodeURIComponent(study.told.id)}/${what}` : what);

async function choose(study) {
  current = study;
  list();
  display.close();
  byId("empty").hidden = study !== null;
  document.body.classList.toggle("new", study === null);
  byId("findings").hidden = true;
  say(byId("wait"), "");
  if (study === null) return;
  if (study.error) {
    say(byId("wait"), study.error);
    return;
  }
  if (study.told?.state !== "done") {
    say(byId("wait"), `${study.name}: ${doing(study)}`);
    return;
  }
  describe(study);
  const unseen = study.told.cases ? "Many images in one file: their masks can be downloaded." : "The image cannot be shown. Its mask can be downloaded.";
  say(byId("wait"), study.told.view ? "Loading the image" : unseen);
  try {
    await display.show(study.told, (what) => server.bytes(path(study, `view/${what}`)));
    if (study === current && study.told.view) say(byId("wait"), "");
  } catch (error) {
    if (study === current) say(byId("wait"), error.message);
  }
}

function describe(study) {
  const told = study.told;
  byId("findings").hidden = false;
  byId("name").textContent = study.name;
  byId("body").textContent = facts(told);
  byId("mask").hidden = !told.classes.length && !told.file;
  byId("download").hidden = !told.file;
  byId("overlay").hidden = !told.view?.overlay;
  display.visible = new Set(told.classes.map((_, index) => index));
  listClasses(byId("classes"), told, about.colours, display.visible, toggle);
  listTold(byId("told"), told);
}

function toggle(index, on) {
  if (on) display.visible.add(index);
  else display.visible.delete(index);
  byId("classes").querySelectorAll("input").forEach((box, at) => (box.checked = display.visible.has(at)));
  display.paint();
}

function setOpacity(share) {
  display.opacity = share;
  byId("opacity").value = Math.round(100 * share);
  byId("opacity-value").textContent = `${Math.round(100 * share)} %`;
  display.paint();
}

async function download() {
  const study = current;
  if (!study?.told?.file || study.told.state !== "done") return;
  try {
    const bytes = await server.bytes(path(study, "mask"));
    const url = URL.createObjectURL(new Blob([bytes]));
    make("a", { href: url, download: study.told.file }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  } catch (error) {
    say(byId("error"), error.message);
  }
}

// ---- theme

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const system = matchMedia("(prefers-color-scheme: dark)");
setTheme(system.matches ? "dark" : "light");
system.addEventListener("change", () => setTheme(system.matches ? "dark" : "light"));
const switchTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

// ---- controls

function step(by) {
  const at = studies.indexOf(current) + by;
  if (studies[at]) choose(studies[at]);
}

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let before = 0.5; // opacity before the mask was switched off

function listenToControls() {
  byId("theme").onclick = switchTheme;
  byId("help-open").onclick = () => byId("help").showModal();
  byId("download").onclick = download;
  byId("opacity").oninput = () => setOpacity(byId("opacity").value / 100);
  byId("outline").onchange = () => setOutline(byId("outline").checked);
  byId("add").onclick = () => byId("file").click();
  byId("file").onchange = () => {
    const files = [...byId("file").files];
    byId("file").value = "";
    if (files.length) send(files);
  };
  byId("zooms").onclick = (event) => zoom(event.target.dataset.zoom);
  listenToKeys({
    opacity: () => setOpacity(((Math.round(display.opacity * 4) + 1) % 5) / 4),
    mask: () => {
      if (display.opacity) before = display.opacity;
      setOpacity(display.opacity ? 0 : before);
    },
    outline: () => setOutline(!display.outline),
    class: (key) => current?.told?.classes?.[key - 1] !== undefined && toggle(key - 1, !display.visible.has(key - 1)),
    all: () => current?.told?.classes?.forEach((_, index) => toggle(index, true)),
    slice: (key) => display.view?.slice(key === "PageUp" ? 1 : -1),
    move: (key) => display.view?.move(...arrows[key]),
    zoom: (key) => zoom({ "+": "in", "-": "out", f: "fit", F: "fit" }[key]),
    layout: () => display.nextLayout(),
    study: (key) => step(key === "[" ? -1 : 1),
    download,
    new: about.mode === "serve" ? () => byId("file").click() : null,
    theme: switchTheme,
    help: () => byId("help").showModal(),
  });
}

function setOutline(on) {
  display.outline = on;
  byId("outline").checked = on;
  display.paint();
}

function zoom(how) {
  if (!display.view || !how) return;
  if (how === "fit") display.view.fit();
  else display.view.zoom(how === "in" ? 1.25 : 0.8);
}

function listenToDrops() {
  let depth = 0;
  const over = (on) => (byId("over").hidden = !on);
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    over((depth += 1) > 0);
  });
  addEventListener("dragleave", () => over((depth = Math.max(0, depth - 1)) > 0));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over((depth = 0) > 0);
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const folder = items.map((item) => item.webkitGetAsEntry?.()).find((entry) => entry?.isDirectory);
    if (folder) say(byId("error"), `${folder.name} is a folder. Pack the DICOM series into one .zip, and drop that.`);
    else if (event.dataTransfer.files.length) send([...event.dataTransfer.files]);
  });
}

// ---- beginning

function askForToken(why) {
  byId("token").hidden = false;
  say(byId("token-error"), why);
  byId("token-value").focus();
}

async function greet() {
  const model = await server.json("model");
  limits = model.limits;
  byId("token").hidden = true;
  byId("model").textContent = `${model.model} · ${model.dimensions}D · ${model.classes.join(", ")}`;
  const kinds = model.dimensions === 3 ? "NIfTI, .mha, .nrrd, .npy, TIFF; a DICOM series as one .zip" : "PNG, JPEG, BMP, TIFF, NIfTI, .npy; DICOM as .dcm or .zip";
  const minutes = Math.round(model.kept_seconds / 60);
  byId("kinds").textContent = `${kinds}. At most ${Math.floor(limits.bytes / 1e6)} MB; masks are kept for ${minutes} minutes.`;
}

async function begin() {
  about = await server.json("page/about.json");
  display = new Display(about.colours);
  listenToControls();
  listKeys(about.mode === "serve" ? [] : ["new", "study"]);
  if (about.mode === "view") {
    const told = { state: "done", ...(await server.json("case.json")) };
    document.title = `${told.name} · ulna`;
    await choose({ name: told.name, told, error: null });
    return;
  }
  listenToDrops();
  byId("token").onsubmit = (event) => {
    event.preventDefault();
    server.use(byId("token-value").value.trim());
    greet().then(() => say(byId("token-error"), ""), (error) => askForToken(error.message));
  };
  if (about.token) askForToken("");
  else await greet();
}

begin().catch((error) => say(byId("error"), error.message));
