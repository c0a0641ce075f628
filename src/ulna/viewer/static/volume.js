// A volume with its mask, in three planes and 3D, by NiiVue: the only file that knows it.

const SCRIPT = "page/niivue-0.69.0.js";
const LAYOUTS = ["All", "Axial", "Coronal", "Sagittal", "3D"];
let loading = null;

function library() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = SCRIPT;
    script.onload = () => resolve(globalThis.niivue);
    script.onerror = () => {
      loading = null;
      reject(new Error("The viewer of volumes could not be loaded. Reload the page."));
    };
    document.head.append(script);
  });
  return loading;
}

// asked once: a browser has few contexts, and takes them from views where there are more
let able = null;

export function canShow() {
  if (able === null) {
    const context = document.createElement("canvas").getContext("webgl2");
    able = context !== null;
    context?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return able;
}

export class VolumeView {
  layouts = LAYOUTS;
  first = "All";

  constructor(holder, told) {
    this.holder = holder;
    this.opacity = 0.5;
    this.told = told;
    this.canvas = document.createElement("canvas");
    holder.append(this.canvas);
  }

  async show(image, overlay, view) {
    const { Niivue, NVImage, SHOW_RENDER, DRAG_MODE, MULTIPLANAR_TYPE } = await library();
    this.view = view;
    this.drawn = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.36, 0.78, 0.69, 0.7],
      crosshairWidthUnit: "mm",
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.contrast,
      fontColor: [1, 0.78, 0.15, 1],
      fontMinPx: 17,
      isColorbar: false,
      isOrientationTextVisible: view.oriented,
      isRadiologicalConvention: view.radiological, // the patient's right on the left; without a place as stored
      loadingText: "",
      logLevel: "silent",
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      sagittalNoseLeft: true,
      show3Dcrosshair: false,
      showAllOrientationMarkers: true,
      // the page has keys of its own
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
    this.drawn.onLocationChange = (place) => this.#tellPlace(place);
    await this.drawn.attachToCanvas(this.canvas);
    const read = (buffer, name, options) => NVImage.loadFromFile({ file: new File([buffer], name), name, ...options });
    const [low, high] = view.window;
    const volume = await read(image, "image.nii.gz", { colormap: "gray", cal_min: low, cal_max: high });
    volume.cal_min = low;
    volume.cal_max = high;
    this.drawn.addVolume(volume);
    if (overlay !== null) {
      this.mask = await read(overlay, "mask.nii.gz", { opacity: 0.5 });
      this.#colour([]);
      this.drawn.addVolume(this.mask);
      this.#centre();
    }
    const sizes = [1, 2, 3].map((axis) => volume.dimsRAS[axis] * volume.pixDimsRAS[axis]);
    const size = Math.max(...sizes);
    if (Math.min(...sizes) < size / 6) this.first = ["Sagittal", "Coronal", "Axial"][sizes.indexOf(Math.min(...sizes))]; // a few slices
    this.drawn.opts.crosshairWidth = size / 300; // mm; as NiiVue has it, a voxel, it hides what is small;
  }

  // the crosshair in the middle of what is segmented
  #centre() {
    const { dimsRAS, img } = this.mask;
    const [, width, height] = this.mask.hdr.dims;
    const sums = [0, 0, 0, 0];
    for (let at = 0; at < img.length; at += 1) {
      if (!img[at]) continue;
      sums[0] += 1;
      sums[1] += at % width;
      sums[2] += Math.floor(at / width) % height;
      sums[3] += Math.floor(at / (width * height));
    }
    if (!sums[0] || !dimsRAS) return;
    const affine = this.mask.hdr.affine;
    const voxel = [1, 2, 3].map((axis) => Math.round(sums[axis] / sums[0]));
    const mm = [0, 1, 2].map((row) => affine[row][0] * voxel[0] + affine[row][1] * voxel[1] + affine[row][2] * voxel[2] + affine[row][3]);
    this.drawn.scene.crosshairPos = this.drawn.mm2frac(mm);
  }

  #colour(palette) {
    const part = (index) => this.view.values.map((_, value) => palette[value]?.[index] ?? 0);
    const alpha = this.view.values.map((_, value) => (palette[value] ? 255 : 0));
    const numbers = this.view.values.map((_, value) => value);
    this.mask.setColormapLabel({ R: part(0), G: part(1), B: part(2), A: alpha, I: numbers, labels: numbers.map(String) });
  }

  paint(palette, opacity, outline) {
    if (!this.mask) return;
    this.#colour(palette);
    this.opacity = opacity;
    this.drawn.opts.atlasOutline = outline ? 1 : 0;
    this.#weigh();
    this.drawn.updateGLVolume();
  }

  // in 3D the mask stands alone: the image would hide it. Returns whether that changes what is drawn
  #weigh() {
    const alone = this.mask !== undefined && this.shown === "3D";
    const before = this.drawn.volumes.map((one) => one.opacity);
    this.drawn.volumes[0].opacity = alone ? 0 : 1;
    if (this.mask) this.mask.opacity = alone && this.opacity ? 1 : this.opacity;
    return this.drawn.volumes.some((one, at) => one.opacity !== before[at]);
  }

  layout(name) {
    const kinds = { All: "sliceTypeMultiplanar", Axial: "sliceTypeAxial", Coronal: "sliceTypeCoronal", Sagittal: "sliceTypeSagittal", "3D": "sliceTypeRender" };
    this.shown = name;
    this.drawn.setSliceType(this.drawn[kinds[name]]);
    if (this.#weigh()) this.drawn.updateGLVolume();
  }

  window(low, high) {
    const volume = this.drawn.volumes[0];
    volume.cal_min = low;
    volume.cal_max = high;
    this.drawn.updateGLVolume();
  }

  fit() {
    this.drawn.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.drawn.setScale(1);
    this.drawn.drawScene();
  }

  zoom(factor) {
    if (this.shown === "3D") {
      this.drawn.setScale(this.drawn.scene.volScaleMultiplier * factor);
    } else {
      const pan = this.drawn.scene.pan2Dxyzmm;
      this.drawn.setPan2Dxyzmm([pan[0], pan[1], pan[2], Math.min(Math.max(pan[3] * factor, 0.5), 20)]);
    }
  }

  // arrows: to the right and downwards on the screen
  move(x, y) {
    if (this.shown === "3D") {
      this.drawn.setRenderAzimuthElevation(this.drawn.scene.renderAzimuth + 6 * x, this.drawn.scene.renderElevation - 6 * y);
      return;
    }
    const right = this.view.radiological ? -x : x;
    const steps = { Sagittal: [0, -x, -y], Coronal: [right, 0, -y] }[this.shown] ?? [right, -y, 0];
    this.drawn.moveCrosshairInVox(...steps);
  }

  slice(step) {
    const steps = { Sagittal: [step, 0, 0], Coronal: [0, step, 0] }[this.shown] ?? [0, 0, step];
    this.drawn.moveCrosshairInVox(...steps);
  }

  #tellPlace(place) {
    const [image, mask] = place.values ?? [];
    if (!image) return;
    const value = mask ? Math.round(mask.value) : null;
    const where = image.vox.slice(0, 3).map(Math.round).join(", ");
    this.told({ text: `voxel ${where}; value ${Number(image.value.toPrecision(5))}`, value });
  }

  close() {
    this.drawn?.cleanup?.();
    this.canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
    this.canvas.remove();
  }
}
