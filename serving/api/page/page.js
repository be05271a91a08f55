// The page at /: a form for the inputs of the served model, and the prediction for them.
//
// All texts come from the contract, which may have been written by anybody. So the page inserts
// them as text and never as markup.

import { copyCurl, showCurl } from "./curl.js";
import { describeFields, makeForm, markRanges } from "./form.js";
import { factsOf, tensorsOf } from "./model.js";
import { clearResult, markStale, showError, showPrediction } from "./result.js";
import { fetchResponse, fetchText } from "./server.js";
import { byId, copyOf } from "./template.js";

const POLL_SECONDS = 5;
const TIMEOUT_SECONDS = 10;

// The last response of /metadata, and the request that the form makes: { path, body() }.
let model = null;
let request = null;
// The number of requests so far. Only the response to the last request is shown.
let requests = 0;
let pollTimer = 0;

async function predict(event) {
  event.preventDefault();
  const number = ++requests;
  const isLast = () => number === requests;
  try {
    const { path, body } = request;
    const { text, headers } = await fetchText(path, { method: "POST", body: body() });
    if (isLast()) showPrediction(model, text, headers);
  } catch (error) {
    if (isLast()) showError(error.message);
  }
}

function onChange() {
  markRanges();
  markStale();
  showCurl(request);
}

// ---- Polling: which model is served, and whether the server is ready

async function poll() {
  clearTimeout(pollTimer);
  if (document.hidden) return; // visibilitychange resumes polling
  await showHealth();
  clearTimeout(pollTimer); // another poll may have started meanwhile
  pollTimer = setTimeout(poll, POLL_SECONDS * 1000);
}

async function showHealth() {
  const timeout = { signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000) };
  try {
    const ready = await fetchResponse("v2/health/ready", timeout);
    const metadata = JSON.parse((await fetchText("metadata", timeout)).text);
    const isOther = metadata.sha256 !== model?.sha256 || metadata.version !== model.version;
    if (isOther) showModel(metadata);
    if (metadata.degraded) {
      showState("degraded", "Degraded",
        `Still serving version ${metadata.version}: ${metadata.degraded}`);
    } else if (ready.ok) showState("right", "Ready");
    else showState("wrong", "Not ready");
  } catch (error) {
    showState("wrong", "Not ready", `${error.message} Trying again every ${POLL_SECONDS} seconds.`);
  }
}

function showState(kind, word, reason = "") {
  const health = byId("health");
  const problem = byId("problem");
  // A screen reader announces every change of these elements, also to the same text.
  if (health.textContent === word && problem.textContent === reason) return;
  health.textContent = word;
  health.className = `state ${kind}`;
  problem.textContent = reason;
  problem.className = `notice ${kind}`;
  problem.hidden = !reason;
}

// A new version with the same tensors keeps the form: typed values and the cursor stay.
function showModel(metadata) {
  const hasSameForm = model !== null && tensorsOf(model) === tensorsOf(metadata);
  model = metadata;
  showAbout();
  if (hasSameForm) {
    describeFields(model);
  } else {
    request = makeForm(model, onChange);
    clearResult();
  }
  onChange();
}

function showAbout() {
  document.title = `${model.name} ${model.version}`;
  byId("name").textContent = model.name;
  byId("version").textContent = `version ${model.version}`;
  byId("purpose").textContent = model.purpose;
  byId("about").replaceChildren(...factsOf(model).map(makeFact));
  byId("main").hidden = false;
}

function makeFact([name, value]) {
  const fact = copyOf("fact");
  fact.querySelector("dt").textContent = name;
  fact.querySelector("dd").textContent = value;
  return fact;
}

byId("form").addEventListener("submit", predict);
byId("form").addEventListener("input", onChange);
// The browser resets the fields only after the event.
byId("form").addEventListener("reset", () => setTimeout(onChange));
byId("copy").addEventListener("click", copyCurl);
document.addEventListener("visibilitychange", poll);
poll();
