// The form: one field for each feature of a row, or the request as JSON for other models.
//
// makeForm returns the request of the form: { path, body() }. Fields with a value outside the
// range seen in training are marked.

import { featuresOfRows, inputOfRows } from "./model.js";
import { fetchText } from "./server.js";
import { byId, copyOf, part } from "./template.js";
import { formatJson, numberAsJson, parseExactly, shorten } from "./values.js";

const MAX_NAMES = 5;

export function makeForm(model, onChange) {
  return inputOfRows(model) ? makeRowForm(model) : makeTensorForm(model, onChange);
}

// ---- One field for each feature

function makeRowForm(model) {
  const features = featuresOfRows(model);
  const columns = pictureColumns(features);
  const fields = features.map((_, index) => makeField(index));
  byId("fields").replaceChildren(
    columns ? makePicture(fields, features, columns) : makeNumbers(fields));
  describeFields(model);
  const row = () => inputs().map(({ value }) => numberAsJson(value)).join(", ");
  return { path: "predict", body: () => `{"data": [[${row()}]]}` };
}

function inputs() {
  return [...byId("fields").querySelectorAll("input")];
}

function makeField(index) {
  const field = copyOf("number").firstElementChild;
  const input = field.querySelector("input");
  const range = part(field, "range");
  input.id = `feature-${index}`;
  range.id = `range-${index}`;
  field.querySelector("label").htmlFor = input.id;
  input.setAttribute("aria-describedby", range.id);
  return field;
}

// Set names, units, ranges, and default values. Typed values stay.
export function describeFields(model) {
  const features = inputs().length ? featuresOfRows(model) : [];
  inputs().forEach((input, index) => {
    const { name, unit, minimum, maximum } = features[index];
    const field = input.closest(".field");
    part(field, "name").textContent = name;
    part(field, "unit").textContent = unit ?? "";
    input.defaultValue = model.data_sample[0][index];
    Object.assign(input.dataset, { minimum: minimum ?? "", maximum: maximum ?? "" });
  });
}

function makeNumbers(fields) {
  const numbers = copyOf("numbers");
  numbers.firstElementChild.append(...fields);
  return numbers;
}

// The columns of a picture, whose features are named by row and column, such as pixel_0_7.
// 0 if the features are not named like that.
function pictureColumns(features) {
  const places = features.map(({ name }) => name.match(/_(\d+)_(\d+)$/)?.slice(1).map(Number));
  if (!places.every(Boolean)) return 0;
  const columns = Math.max(...places.map(([, column]) => column)) + 1;
  const inOrder = places.every(([row, column], index) => row * columns + column === index);
  return inOrder && columns > 1 && features.length % columns === 0 ? columns : 0;
}

function makePicture(fields, features, columns) {
  const picture = copyOf("picture");
  const grid = picture.querySelector(".picture");
  const description = part(picture, "cell");
  const [unit, ...otherUnits] = new Set(features.map((feature) => feature.unit));
  part(picture, "unit").textContent = unit && !otherUnits.length ? `Each cell: ${unit}` : "";
  grid.style.setProperty("--columns", columns);
  grid.append(...fields);
  for (const event of ["focusin", "pointerover"]) {
    grid.addEventListener(event, ({ target }) => {
      const cell = target.closest(".field");
      if (!cell) return;
      description.textContent =
        ["name", "range"].map((name) => part(cell, name).textContent).join(": ");
    });
  }
  return picture;
}

// ---- Values outside the range seen in training are marked, but allowed

export function markRanges() {
  inputs().forEach(markRange);
  const names = inputs().filter(isOutside)
    .map((input) => part(input.closest(".field"), "name").textContent);
  const more = names.length > MAX_NAMES ? ` and ${names.length - MAX_NAMES} more` : "";
  const list = names.slice(0, MAX_NAMES).join(", ");
  byId("outside").textContent = names.length ? `Outside the range in training: ${list}${more}` : "";
  byId("outside").hidden = !names.length;
}

function markRange(input) {
  const field = input.closest(".field");
  const ends = rangeOf(input);
  const range = ends.map(shorten).join(" to ");
  const outside = isOutside(input);
  const hint = outside ? `outside ${range}, the range in training` : `${range} in training`;
  part(field, "range").textContent = ends.some(Number.isNaN) ? "" : hint;
  field.classList.toggle("outside", outside);
  input.removeAttribute("aria-invalid");
  // Cells of a picture are shaded by their value.
  field.style.setProperty("--shade", `${100 * shareOf(Number(input.value), ...ends)}%`);
}

// Ends that the contract does not state are NaN. Comparisons with NaN are false, so no value is
// outside of them.
function rangeOf({ dataset: { minimum, maximum } }) {
  return [minimum, maximum].map((end) => (end === "" ? NaN : Number(end)));
}

function isOutside(input) {
  const [minimum, maximum] = rangeOf(input);
  return input.value !== "" && (Number(input.value) < minimum || Number(input.value) > maximum);
}

// The position of a value in a range, from 0 to 1.
export function shareOf(value, minimum, maximum) {
  const share = (value - minimum) / (maximum - minimum);
  return Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 0;
}

// ---- The request as JSON, for all other models

function makeTensorForm(model, onChange) {
  byId("fields").replaceChildren(copyOf("tensors"));
  const body = byId("body");
  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  const path = `v2/models/${model.name}/infer`;
  fetchSample(model, path).then((sample) => {
    body.defaultValue = sample;
    onChange();
  }, (error) => {
    body.placeholder = error.message;
  });
  return { path, body: () => body.value };
}

async function fetchSample(model, path) {
  const { paths } = parseExactly((await fetchText("openapi.json")).text);
  const { example } = paths[`/${path}`].post.requestBody.content["application/json"];
  return formatJson(example ?? { inputs: await inputsWithoutData(model) });
}

// For models whose sample is too large for the OpenAPI document.
async function inputsWithoutData({ name }) {
  const metadata = JSON.parse((await fetchText(`v2/models/${name}`)).text);
  return metadata.inputs.map((tensor) => ({ ...tensor, data: [] }));
}
