// The values of a grey PNG of 8 or 16 bits, exactly. A canvas would give colours, which some browsers blur on purpose.

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

async function inflated(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// -> {width, height, values}
export async function greyValues(buffer) {
  const data = new DataView(buffer);
  const parts = [];
  let [width, height, step] = [0, 0, 1];
  for (let at = 8; at + 8 <= data.byteLength; ) {
    const length = data.getUint32(at);
    const kind = data.getUint32(at + 4);
    if (kind === 0x49484452) { // IHDR
      [width, height, step] = [data.getUint32(at + 8), data.getUint32(at + 12), data.getUint8(at + 16) / 8];
      if (data.getUint8(at + 17) !== 0 || ![1, 2].includes(step)) throw new Error("no grey PNG of 8 or 16 bits");
    }
    if (kind === 0x49444154) parts.push(new Uint8Array(buffer, at + 8, length)); // IDAT
    at += length + 12;
  }
  const raw = await inflated(parts);
  const row = width * step;
  const lines = new Uint8Array(row * height);
  for (let y = 0; y < height; y += 1) {
    const filter = raw[y * (row + 1)];
    const from = y * (row + 1) + 1;
    const to = y * row;
    for (let x = 0; x < row; x += 1) {
      const left = x >= step ? lines[to + x - step] : 0;
      const up = y ? lines[to - row + x] : 0;
      const corner = y && x >= step ? lines[to - row + x - step] : 0;
      const guess = [0, left, up, (left + up) >> 1, filter === 4 ? paeth(left, up, corner) : 0][filter];
      lines[to + x] = raw[from + x] + guess;
    }
  }
  if (step === 1) return { width, height, values: lines };
  const values = new Uint16Array(width * height);
  for (let at = 0; at < values.length; at += 1) values[at] = (lines[2 * at] << 8) | lines[2 * at + 1];
  return { width, height, values };
}
