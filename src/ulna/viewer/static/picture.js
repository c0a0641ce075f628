// A 2D image with its mask: to be moved and enlarged.

import { greyValues } from "./png.js";

const MOST = 64; // screen pixels of an image's pixel
const LETTERS = "#f4d35e";

export class PictureView {
  layouts = [];

  constructor(holder, told) {
    this.holder = holder;
    this.told = told;
    this.canvas = document.createElement("canvas");
    this.painted = document.createElement("canvas");
    this.opacity = 0.5;
    this.values = null;
    this.pointers = new Map();
    this.leaving = new AbortController();
    holder.append(this.canvas);
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(holder);
    this.#listen();
  }

  async show(image, overlay, view) {
    this.view = view;
    this.image = await createImageBitmap(new Blob([image], { type: "image/png" }));
    this.values = overlay === null ? null : await greyValues(overlay);
    this.wide = this.image.width;
    this.tall = this.image.height * view.aspect;
    this.fit();
  }

  // palette: value -> colour or null
  paint(palette, opacity, outline) {
    this.opacity = outline ? Math.min(1, 2 * opacity) : opacity; // a thin line needs more
    if (this.values === null) return;
    const key = JSON.stringify([palette, outline]);
    if (key !== this.key) {
      this.key = key;
      this.#fill(palette, outline);
    }
    this.draw();
  }

  #fill(palette, outline) {
    const { width, height, values } = this.values;
    Object.assign(this.painted, { width, height });
    const context = this.painted.getContext("2d");
    const pixels = context.createImageData(width, height);
    const thick = Math.max(1, Math.round(Math.max(width, height) / 250));
    const inner = (x, y, value) => x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] === value;
    const edge = (x, y, value) =>
      !(inner(x - thick, y, value) && inner(x + thick, y, value) && inner(x, y - thick, value) && inner(x, y + thick, value));
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 1) {
        const value = values[at];
        const colour = palette[value];
        if (!colour || (outline && !edge(x, y, value))) continue;
        pixels.data.set(colour, 4 * at);
        pixels.data[4 * at + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  draw() {
    if (!this.image) return;
    const context = this.canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    const place = [this.x * ratio, this.y * ratio, this.wide * this.scale * ratio, this.tall * this.scale * ratio];
    context.imageSmoothingEnabled = this.scale < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.image, ...place);
    if (this.values !== null && this.painted.width) {
      context.globalAlpha = this.opacity;
      context.imageSmoothingEnabled = this.scale < 1;
      context.drawImage(this.painted, ...place);
      context.globalAlpha = 1;
    }
    this.#letters(context, ratio);
  }

  #letters(context, ratio) {
    const sides = this.view.sides;
    if (!sides) return;
    const [width, height] = [this.canvas.width, this.canvas.height];
    const inset = 16 * ratio;
    context.font = `600 ${15 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "rgba(0, 0, 0, .8)";
    context.fillStyle = LETTERS;
    const places = { left: [inset, height / 2], right: [width - inset, height / 2], top: [width / 2, inset], bottom: [width / 2, height - inset] };
    for (const [side, at] of Object.entries(places)) {
      context.strokeText(sides[side], ...at);
      context.fillText(sides[side], ...at);
    }
  }

  fit() {
    if (!this.image) return;
    const { clientWidth: width, clientHeight: height } = this.holder;
    this.scale = Math.min(width / this.wide, height / this.tall) * 0.98 || 1;
    this.least = this.scale / 4;
    this.x = (width - this.wide * this.scale) / 2;
    this.y = (height - this.tall * this.scale) / 2;
    this.draw();
  }

  zoom(factor, x = this.holder.clientWidth / 2, y = this.holder.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.least), MOST);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  move(x, y) {
    this.x += x * 40;
    this.y += y * 40;
    this.draw();
  }

  slice() {}

  layout() {}

  window() {}

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.holder.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.holder.clientHeight * ratio));
    this.fit();
  }

  #listen() {
    const options = { signal: this.leaving.signal };
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), ...at(event));
    }, { ...options, passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
    }, options);
    this.canvas.addEventListener("pointermove", (event) => {
      this.#tellPlace(at(event));
      if (this.pointers.has(event.pointerId)) this.#drag(event.pointerId, at(event));
    }, options);
    for (const kind of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(kind, (event) => this.pointers.delete(event.pointerId), options);
    }
    this.canvas.addEventListener("dblclick", () => this.fit(), options);
  }

  #drag(id, now) {
    const before = this.pointers.get(id);
    const other = [...this.pointers].find(([one]) => one !== id)?.[1];
    this.pointers.set(id, now);
    if (!other) {
      this.x += now[0] - before[0];
      this.y += now[1] - before[1];
      this.draw();
      return;
    }
    const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
    this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }

  #tellPlace([x, y]) {
    if (!this.image) return;
    const column = Math.floor((x - this.x) / this.scale);
    const row = Math.floor((y - this.y) / this.scale / this.view.aspect);
    const inside = column >= 0 && row >= 0 && column < this.image.width && row < this.image.height;
    const value = inside && this.values ? this.values.values[row * this.image.width + column] : null;
    this.told(inside ? { text: `column ${column * this.view.step}, row ${row * this.view.step}`, value } : null);
  }

  close() {
    this.leaving.abort();
    this.resizing.disconnect();
    this.image?.close();
    this.canvas.remove();
  }
}
