// The two forms: a field for each feature of a row, or else the request as text.
//
// Each returns how to ask: { path, body() }; a form with fields also marks what training never saw.

import { featuresOfRows, inputOfRows } from "./model.js";
import { answerTo } from "./server.js";
import { byId, copyOf, part } from "./template.js";
import { asJson, exactly, formatted, shortened } from "./values.js";

const SHOWN_NAMES = 5;

export function makeForm(model, changed) {
  return inputOfRows(model) ? askInRows(model) : askInTensors(model, changed);
}

// ---- A field for each feature

function askInRows(model) {
  const features = featuresOfRows(model);
  const columns = columnsOfPicture(features);
  const fields = features.map((_, index) => field(index));
  byId("fields").replaceChildren(columns ? picture(fields, features, columns) : numbers(fields));
  describeFields(model);
  const row = () => inputs().map(({ value }) => asJson(value)).join(", ");
  return { path: "predict", body: () => `{"data": [[${row()}]]}` };
}

function inputs() {
  return [...byId("fields").querySelectorAll("input")];
}

function field(index) {
  const made = copyOf("number").firstElementChild;
  const input = made.querySelector("input");
  const range = part(made, "range");
  input.id = `feature-${index}`;
  range.id = `range-${index}`;
  made.querySelector("label").htmlFor = input.id;
  input.setAttribute("aria-describedby", range.id);
  return made;
}

// Names, units, ranges and the sample, for what was not typed otherwise.
export function describeFields(model) {
  const features = inputs().length ? featuresOfRows(model) : [];
  inputs().forEach((input, index) => {
    const { name, unit, minimum, maximum } = features[index];
    const made = input.closest(".field");
    part(made, "name").textContent = name;
    part(made, "unit").textContent = unit ?? "";
    input.defaultValue = model.data_sample[0][index];
    Object.assign(input.dataset, { minimum: minimum ?? "", maximum: maximum ?? "" });
  });
}

function numbers(fields) {
  const made = copyOf("numbers");
  made.firstElementChild.append(...fields);
  return made;
}

// Columns of a picture whose features are named by row and column, such as pixel_0_7; else 0.
function columnsOfPicture(features) {
  const places = features.map(({ name }) => name.match(/_(\d+)_(\d+)$/)?.slice(1).map(Number));
  if (!places.every(Boolean)) return 0;
  const columns = Math.max(...places.map(([, column]) => column)) + 1;
  const inOrder = places.every(([row, column], index) => row * columns + column === index);
  return inOrder && columns > 1 && features.length % columns === 0 ? columns : 0;
}

function picture(fields, features, columns) {
  const made = copyOf("picture");
  const grid = made.querySelector(".picture");
  const about = part(made, "cell");
  const [unit, ...others] = new Set(features.map((one) => one.unit));
  part(made, "unit").textContent = unit && !others.length ? `Each cell: ${unit}` : "";
  grid.style.setProperty("--columns", columns);
  grid.append(...fields);
  for (const event of ["focusin", "pointerover"]) {
    grid.addEventListener(event, ({ target }) => {
      const cell = target.closest(".field");
      if (!cell) return;
      about.textContent = ["name", "range"].map((of) => part(cell, of).textContent).join(": ");
    });
  }
  return made;
}

// ---- What training never saw is marked, and allowed

export function markRanges() {
  inputs().forEach(markRange);
  const names = inputs().filter(isOutside)
    .map((input) => part(input.closest(".field"), "name").textContent);
  const more = names.length > SHOWN_NAMES ? ` and ${names.length - SHOWN_NAMES} more` : "";
  const shown = names.slice(0, SHOWN_NAMES).join(", ");
  byId("outside").textContent = names.length ? `Outside what training saw: ${shown}${more}` : "";
  byId("outside").hidden = !names.length;
}

function markRange(input) {
  const made = input.closest(".field");
  const ends = rangeOf(input);
  const range = ends.map(shortened).join(" to ");
  const outside = isOutside(input);
  const said = outside ? `training saw only ${range}` : `${range} in training`;
  part(made, "range").textContent = ends.some(Number.isNaN) ? "" : said;
  made.classList.toggle("outside", outside);
  input.removeAttribute("aria-invalid");
  // Of a picture's cell.
  made.style.setProperty("--shade", `${100 * shareOf(Number(input.value), ...ends)}%`);
}

// Ends that the contract does not have are NaN, and nothing is outside of them.
function rangeOf({ dataset: { minimum, maximum } }) {
  return [minimum, maximum].map((end) => (end === "" ? NaN : Number(end)));
}

function isOutside(input) {
  const [lowest, highest] = rangeOf(input);
  return input.value !== "" && (Number(input.value) < lowest || Number(input.value) > highest);
}

export function shareOf(value, lowest, highest) {
  const share = (value - lowest) / (highest - lowest);
  return Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 0;
}

// ---- The request as text, for every other model

function askInTensors(model, changed) {
  byId("fields").replaceChildren(copyOf("tensors"));
  const body = byId("body");
  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  const path = `v2/models/${model.name}/infer`;
  sampleOf(model, path).then((sample) => {
    body.defaultValue = sample;
    changed();
  }, (error) => {
    body.placeholder = error.message;
  });
  return { path, body: () => body.value };
}

async function sampleOf(model, path) {
  const { paths } = exactly((await answerTo("openapi.json")).text);
  const { example } = paths[`/${path}`].post.requestBody.content["application/json"];
  return formatted(example ?? { inputs: await inputsWithoutData(model) });
}

// Where the sample is too large to be shown.
async function inputsWithoutData({ name }) {
  const about = JSON.parse((await answerTo(`v2/models/${name}`)).text);
  return about.inputs.map((tensor) => ({ ...tensor, data: [] }));
}
