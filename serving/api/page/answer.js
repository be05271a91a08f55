// The answer to a request, as labelled bars, a figure or JSON; or the error.

import { shareOf } from "./form.js";
import { predicted } from "./model.js";
import { byId, copyOf, part } from "./template.js";
import { exactly, formatted, percent, shortened } from "./values.js";

const SHOWN_BARS = 10;

export function clearAnswer() {
  byId("prediction").replaceChildren(copyOf("nothing-yet"));
  byId("error").hidden = true;
}

export function showAnswer(model, text, headers) {
  const { prediction } = JSON.parse(text);
  const shown = prediction ? predictionOf(model, prediction[0]) : json(text);
  const by = copyOf("by");
  part(by, "by").textContent =
    `by ${headers.get("Model-Name")}, version ${headers.get("Model-Version")}`;
  byId("prediction").replaceChildren(shown, by);
  byId("prediction").classList.remove("stale");
  byId("error").hidden = true;
}

export function showError(message) {
  byId("prediction").replaceChildren();
  byId("error").textContent = message;
  byId("error").hidden = false;
  const column = message.match(/^data\[0\]\[(\d+)\]/)?.[1];
  if (column) byId(`feature-${column}`)?.setAttribute("aria-invalid", "true");
}

// What is shown was predicted for other values than those in the form.
export function markStale() {
  const shown = byId("prediction");
  const by = part(shown, "by");
  if (!by || shown.classList.contains("stale")) return;
  shown.classList.add("stale");
  by.textContent += "; not of the values that are in the form now";
}

function predictionOf(model, row) {
  const { name, labels, features } = predicted(model);
  if (!Array.isArray(row) || row.some(Array.isArray)) return json(JSON.stringify(row));
  if (row.length === 1 && !labels.length) return figure(row[0], features[0]?.unit);
  const nameOf = (_, index) => labels[index] ?? features[index]?.name ?? `${name}[${index}]`;
  return bars(row, row.map(nameOf), labels.length > 0);
}

function figure(value, unit) {
  const made = copyOf("figure");
  setValue(made.querySelector("data"), value, shortened(value));
  part(made, "unit").textContent = unit ?? "";
  return made;
}

// Of labels the largest first; other values stay in order.
function bars(values, names, areOfLabels) {
  const areShares = areOfLabels && arePercentages(values);
  const [lowest, highest] = [Math.min(0, ...values), areShares ? 1 : Math.max(0, ...values)];
  const order = [...values.keys()];
  const rank = (index) => values[index] ?? -Infinity;
  if (areOfLabels) order.sort((one, other) => rank(other) - rank(one));
  const all = order.map((index) => {
    const made = copyOf("bar");
    const value = values[index];
    part(made, "label").textContent = names[index];
    setValue(made.querySelector("data"), value, areShares ? percent(value) : shortened(value));
    made.querySelector(".fill").style.width = `${100 * shareOf(value, lowest, highest)}%`;
    return made;
  });
  const made = copyOf("bars");
  made.firstElementChild.classList.toggle("ranked", areOfLabels && values.some(Number.isFinite));
  made.firstElementChild.append(...all.slice(0, SHOWN_BARS));
  if (all.length > SHOWN_BARS) made.append(moreBars(all.slice(SHOWN_BARS)));
  return made;
}

function moreBars(rest) {
  const made = copyOf("more-bars");
  made.querySelector("summary").textContent = `${rest.length} more`;
  made.querySelector("ol").append(...rest);
  return made;
}

// Whether values are probabilities; other scores of labels are no shares of anything.
function arePercentages(values) {
  const sum = values.reduce((one, other) => one + other, 0);
  const each = values.every((value) => value !== null && value >= 0 && value <= 1);
  return each && Math.abs(sum - 1) < 0.01;
}

function json(text) {
  const made = copyOf("json");
  made.querySelector("code").textContent = formatted(exactly(text));
  return made;
}

function setValue(element, value, text) {
  element.value = value ?? "";
  element.textContent = text;
}
