// Show the request as a curl command for a POSIX shell.

import { byId } from "./template.js";

const COPIED_SECONDS = 3;

// --data-raw, because -d reads a file if the body begins with @.
export function showCurl({ path, body }) {
  const url = new URL(path, document.baseURI).href;
  byId("curl").textContent = `curl --data-raw ${quote(body())} ${quote(url)}`;
}

// Between single quotes, only the single quote is special to a shell.
function quote(text) {
  return /^[\w.:/-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

export async function copyCurl() {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
  } catch {
    // Over plain HTTP, browsers offer the clipboard API only for pages of localhost.
    getSelection().selectAllChildren(byId("curl"));
    document.execCommand("copy");
  }
  byId("copied").textContent = "Copied";
  setTimeout(() => { byId("copied").textContent = ""; }, COPIED_SECONDS * 1000);
}
