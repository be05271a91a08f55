// Show the response to a request: as labelled bars, a single number, or JSON; or the error.

import { shareOf } from "./form.js";
import { predictedOutput } from "./model.js";
import { byId, copyOf, part } from "./template.js";
import { formatJson, parseExactly, percent, shorten } from "./values.js";

const MAX_BARS = 10;

export function clearResult() {
  byId("prediction").replaceChildren(copyOf("no-prediction"));
  byId("error").hidden = true;
}

export function showPrediction(model, text, headers) {
  const { prediction } = JSON.parse(text);
  const content = prediction ? contentFor(model, prediction[0]) : makeJson(text);
  const by = copyOf("by");
  part(by, "by").textContent =
    `by ${headers.get("Model-Name")}, version ${headers.get("Model-Version")}`;
  byId("prediction").replaceChildren(content, by);
  byId("prediction").classList.remove("stale");
  byId("error").hidden = true;
}

export function showError(message) {
  byId("prediction").replaceChildren();
  byId("error").textContent = message;
  byId("error").hidden = false;
  // The server names the wrong value as data[row][column].
  const column = message.match(/^data\[0\]\[(\d+)\]/)?.[1];
  if (column) byId(`feature-${column}`)?.setAttribute("aria-invalid", "true");
}

// Mark the prediction as outdated once the form has other values.
export function markStale() {
  const prediction = byId("prediction");
  const by = part(prediction, "by");
  if (!by || prediction.classList.contains("stale")) return;
  prediction.classList.add("stale");
  by.textContent += "; the form has changed since";
}

function contentFor(model, row) {
  const { name, labels, features } = predictedOutput(model);
  if (!Array.isArray(row) || row.some(Array.isArray)) return makeJson(JSON.stringify(row));
  if (row.length === 1 && !labels.length) return makeFigure(row[0], features[0]?.unit);
  const nameOf = (_, index) => labels[index] ?? features[index]?.name ?? `${name}[${index}]`;
  return makeBars(row, row.map(nameOf), labels.length > 0);
}

function makeFigure(value, unit) {
  const figure = copyOf("figure");
  setValue(figure.querySelector("data"), value, shorten(value));
  part(figure, "unit").textContent = unit ?? "";
  return figure;
}

// Bars of labels are sorted, largest first. Other values keep their order.
function makeBars(values, names, areLabels) {
  const arePercentages = areLabels && areProbabilities(values);
  const minimum = Math.min(0, ...values);
  const maximum = arePercentages ? 1 : Math.max(0, ...values);
  const order = [...values.keys()];
  const rank = (index) => values[index] ?? -Infinity;
  if (areLabels) order.sort((left, right) => rank(right) - rank(left));
  const items = order.map((index) => {
    const bar = copyOf("bar");
    const value = values[index];
    part(bar, "label").textContent = names[index];
    setValue(bar.querySelector("data"), value, arePercentages ? percent(value) : shorten(value));
    bar.querySelector(".fill").style.width = `${100 * shareOf(value, minimum, maximum)}%`;
    return bar;
  });
  const bars = copyOf("bars");
  bars.firstElementChild.classList.toggle("ranked", areLabels && values.some(Number.isFinite));
  bars.firstElementChild.append(...items.slice(0, MAX_BARS));
  if (items.length > MAX_BARS) bars.append(makeMoreBars(items.slice(MAX_BARS)));
  return bars;
}

function makeMoreBars(items) {
  const details = copyOf("more-bars");
  details.querySelector("summary").textContent = `${items.length} more`;
  details.querySelector("ol").append(...items);
  return details;
}

// Scores that are not probabilities cannot be shown as percentages.
function areProbabilities(values) {
  const sum = values.reduce((total, value) => total + value, 0);
  const areInRange = values.every((value) => value !== null && value >= 0 && value <= 1);
  return areInRange && Math.abs(sum - 1) < 0.01;
}

function makeJson(text) {
  const json = copyOf("json");
  json.querySelector("code").textContent = formatJson(parseExactly(text));
  return json;
}

function setValue(element, value, text) {
  element.value = value ?? "";
  element.textContent = text;
}
