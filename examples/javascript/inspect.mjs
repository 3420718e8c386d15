// node inspect.mjs BUNDLE IMAGE.png...
// One line of JSON for each image. Exit codes as blemish's: 0 done, 2 refused, 3 some images could not be read.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-web';
import { PNG } from 'pngjs';

function readBundle(folder) {
  let model, card;
  try {
    card = JSON.parse(readFileSync(join(folder, 'card.json'), 'utf8'));
    model = readFileSync(join(folder, 'model.onnx'));
  } catch (cause) {
    throw new Error(`${folder}: not a readable bundle (${cause.message}); give the folder that blemish train wrote.`);
  }
  if (!['blemish bundle 1', 'blemish bundle 2'].includes(card.format)) { // they differ in names alone
    throw new Error(`${folder}: the card's format is ${card.format}, not blemish bundle 2; train it again.`);
  }
  if (createHash('sha256').update(model).digest('hex') !== card.files?.['model.onnx']?.sha256) {
    throw new Error(`${folder}: model.onnx is damaged (its SHA-256 is not the card's); copy the bundle again.`);
  }
  return { card, model };
}

// RGB, uint8 (1, H, W, 3), transparent pixels composited on white.
function readImage(path) {
  let png;
  try {
    png = PNG.sync.read(readFileSync(path));
  } catch (cause) {
    throw new Error(`${path} cannot be read as PNG (${cause.message}); write or copy it again.`);
  }
  if (png.depth === 16) throw new Error(`${path} has 16 bits a channel, this program reads 8; save it with 8.`);
  const { width, height, data } = png, rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3];
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = Math.floor((data[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  return new ort.Tensor('uint8', rgb, [1, height, width, 3]);
}

// Around all cells of the map that reach the threshold: left, top, right, bottom in the image's pixels, or null.
function boxAround({ data, dims: [, h, w] }, threshold, [, height, width]) {
  let left = w, top = h, right = -1, bottom = -1;
  data.forEach((value, i) => {
    if (value < threshold) return;
    const x = i % w, y = (i - x) / w;
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  });
  if (right < 0) return null;
  const ends = [Math.ceil(((right + 1) * width) / w), Math.ceil(((bottom + 1) * height) / h)];
  return [Math.floor((left * width) / w), Math.floor((top * height) / h), ...ends];
}

async function main([folder, ...paths]) {
  if (!paths.length) throw new Error('node inspect.mjs BUNDLE IMAGE.png...: give a bundle and at least one image.');
  const { card, model } = readBundle(folder), rule = card.decision;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
  for (const path of paths) {
    let images;
    try {
      images = readImage(path);
    } catch (cause) {
      process.exitCode = 3;
      console.log(JSON.stringify({ path, decision: 'error', error: cause.message }));
      continue;
    }
    const { scores, maps } = await session.run({ [session.inputNames[0]]: images }), score = scores.data[0];
    const doubtful = rule.review_threshold != null && score > rule.review_threshold;
    const decision = score > rule.threshold ? 'anomaly' : doubtful ? 'review' : 'good';
    const box = decision === 'good' ? null : boxAround(maps, rule.pixel_threshold, images.dims);
    console.log(JSON.stringify({ path, score, decision, box }));
  }
}

main(process.argv.slice(2)).catch((cause) => {
  console.error(`inspect.mjs: ${cause.message}`);
  process.exitCode = 2;
});
