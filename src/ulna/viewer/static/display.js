// The stage: one study at a time, in the view that fits it, with the controls of that view.

import { byId, make } from "./dom.js";
import { palette } from "./palette.js";
import { PictureView } from "./picture.js";
import { canShow, VolumeView } from "./volume.js";

const WINDOWS = { "Soft tissue": [-160, 240], Lung: [-1350, 150], Bone: [-500, 1300], Brain: [0, 80] }; // HU, as ulna's pictures
const NO_3D = "This browser cannot show volumes (it has no WebGL 2). The mask can be downloaded.";

export class Display {
  constructor(colours) {
    this.colours = colours;
    this.view = null;
    this.visible = new Set();
    this.opacity = 0.5;
    this.outline = false;
    this.number = 0; // of what is shown: answers for an earlier one come too late
  }

  get open() {
    return this.view !== null;
  }

  // load: name of a view -> its bytes
  async show(told, load) {
    this.close();
    const number = this.number;
    this.told = told;
    this.visible = new Set(told.classes.map((_, index) => index));
    if (!told.view) return;
    if (told.view.dims === 3 && !canShow()) throw new Error(NO_3D);
    const [image, overlay] = await Promise.all([load("shown"), told.view.overlay ? load("overlay") : null]);
    if (number !== this.number) return;
    const kind = told.view.dims === 3 ? VolumeView : PictureView;
    const view = new kind(byId("canvas"), (place) => this.#tellPlace(place));
    try {
      await view.show(image, overlay, told.view);
    } catch (error) {
      view.close();
      throw error;
    }
    if (number !== this.number) {
      view.close();
      return;
    }
    this.view = view;
    this.#controls();
    this.paint();
  }

  close() {
    this.number += 1;
    this.view?.close();
    this.view = null;
    byId("tools").hidden = true;
    byId("place").textContent = "";
  }

  paint() {
    this.view?.paint(palette(this.told.view, this.colours, this.visible), this.opacity, this.outline);
  }

  #controls() {
    const deep = this.told.view.dims === 3;
    byId("tools").hidden = false;
    byId("layouts").hidden = !deep;
    byId("layouts").querySelectorAll("button").forEach((button) => button.remove());
    byId("layouts").append(...this.view.layouts.map((name) => make("button", { type: "button", text: name, onclick: () => this.layout(name) })));
    if (deep) this.layout(this.view.first);
    byId("window-choice").hidden = !deep;
    if (deep) this.#windows();
  }

  #windows() {
    const choices = { Automatic: this.told.view.window, ...(this.told.view.ct ? WINDOWS : {}), "Whole range": null };
    const [low, high] = this.told.view.window;
    choices["Whole range"] = this.view.range ?? [low - (high - low), high + (high - low)];
    if (!this.told.view.ct) {
      choices.Brighter = [low, low + 0.6 * (high - low)];
      choices.Darker = [low, low + 1.6 * (high - low)];
    }
    const select = byId("window");
    select.replaceChildren(...Object.keys(choices).map((name) => make("option", { value: name, text: name })));
    select.onchange = () => this.view.window(...choices[select.value]);
  }

  layout(name) {
    this.view.layout(name);
    this.shown = name;
    byId("layouts").querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", one.textContent === name));
  }

  nextLayout() {
    const names = this.view?.layouts ?? [];
    if (names.length) this.layout(names[(names.indexOf(this.shown) + 1) % names.length]);
  }

  #tellPlace(place) {
    const classes = place?.value ? this.told.view.values[place.value] ?? [] : [];
    const names = classes.map((index) => this.told.classes[index]).join(", ");
    byId("place").textContent = place ? [place.text, names].filter(Boolean).join("; ") : "";
  }
}
