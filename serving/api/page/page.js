// The page at /: a form made of what the server says of its model, and the answer to it.
//
// What is shown comes from a contract that somebody else wrote, so it only ever becomes text,
// never markup.

import { clearAnswer, markStale, showAnswer, showError } from "./answer.js";
import { copyCurl, showCurl } from "./curl.js";
import { describeFields, makeForm, markRanges } from "./form.js";
import { factsOf, tensorsOf } from "./model.js";
import { answerTo, responseTo } from "./server.js";
import { byId, copyOf } from "./template.js";

const LOOK_SECONDS = 5;
const PATIENCE_SECONDS = 10;

// What /metadata said last, and how such a model is asked.
let model = null;
let request = null;
// Counts what was asked: only the answer to the last request is shown.
let asked = 0;
let nextLook = 0;

async function predict(event) {
  event.preventDefault();
  const number = ++asked;
  const isLast = () => number === asked;
  try {
    const { path, body } = request;
    const { text, headers } = await answerTo(path, { method: "POST", body: body() });
    if (isLast()) showAnswer(model, text, headers);
  } catch (error) {
    if (isLast()) showError(error.message);
  }
}

function changed() {
  markRanges();
  markStale();
  showCurl(request);
}

// ---- What is served, and whether it is: looked at again and again

async function look() {
  clearTimeout(nextLook);
  if (document.hidden) return; // until it is seen again
  await showHealth();
  clearTimeout(nextLook);
  nextLook = setTimeout(look, LOOK_SECONDS * 1000);
}

async function showHealth() {
  const within = { signal: AbortSignal.timeout(PATIENCE_SECONDS * 1000) };
  try {
    const ready = await responseTo("v2/health/ready", within);
    const about = JSON.parse((await answerTo("metadata", within)).text);
    if (about.sha256 !== model?.sha256 || about.version !== model.version) serve(about);
    if (about.degraded) showState("degraded", "Degraded", `Still version ${about.version}: ${about.degraded}`);
    else if (ready.ok) showState("right", "Ready");
    else showState("wrong", "Not ready");
  } catch (error) {
    showState("wrong", "Not ready", `${error.message} Asking again every ${LOOK_SECONDS} seconds.`);
  }
}

function showState(kind, word, why = "") {
  const health = byId("health");
  const trouble = byId("trouble");
  // Said again, it would be read out again.
  if (health.textContent === word && trouble.textContent === why) return;
  health.textContent = word;
  health.className = `state ${kind}`;
  trouble.textContent = why;
  trouble.className = `notice ${kind}`;
  trouble.hidden = !why;
}

// Another version leaves what was typed as it is, and the cursor where it is.
function serve(about) {
  const isSame = model !== null && tensorsOf(model) === tensorsOf(about);
  model = about;
  showAbout();
  if (isSame) {
    describeFields(model);
  } else {
    request = makeForm(model, changed);
    clearAnswer();
  }
  changed();
}

function showAbout() {
  document.title = `${model.name} ${model.version}`;
  byId("name").textContent = model.name;
  byId("version").textContent = `version ${model.version}`;
  byId("purpose").textContent = model.purpose;
  byId("about").replaceChildren(...factsOf(model).map(fact));
  byId("main").hidden = false;
}

function fact([name, value]) {
  const made = copyOf("fact");
  made.querySelector("dt").textContent = name;
  made.querySelector("dd").textContent = value;
  return made;
}

byId("form").addEventListener("submit", predict);
byId("form").addEventListener("input", changed);
// Values are back only after the event.
byId("form").addEventListener("reset", () => setTimeout(changed));
byId("copy").addEventListener("click", copyCurl);
document.addEventListener("visibilitychange", look);
look();
