// The request as a command for a POSIX shell.

import { byId } from "./template.js";

const COPIED_SECONDS = 3;

// Not -d, to which a body that begins with @ is the name of a file.
export function showCurl({ path, body }) {
  const url = new URL(path, document.baseURI).href;
  byId("curl").textContent = `curl --data-raw ${quoted(body())} ${quoted(url)}`;
}

// Between single quotes a shell reads nothing but the next one.
function quoted(text) {
  return /^[\w.:/-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

export async function copyCurl() {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
  } catch {
    // Without https a browser has that for this machine's own pages only.
    getSelection().selectAllChildren(byId("curl"));
    document.execCommand("copy");
  }
  byId("copied").textContent = "Copied";
  setTimeout(() => { byId("copied").textContent = ""; }, COPIED_SECONDS * 1000);
}
