// Send requests to the server. Paths are relative, so the page also works behind a proxy that
// adds a path prefix.

export async function fetchResponse(path, options = {}) {
  return fetch(path, { cache: "no-store", ...options }).catch(() => {
    throw new Error("The server does not respond.");
  });
}

// The text and headers of a response. Throws the server's error message if the status is not 2xx.
export async function fetchText(path, options) {
  const response = await fetchResponse(path, options);
  const text = await response.text();
  if (!response.ok) {
    throw new Error(errorIn(text) ?? `The server responded with status ${response.status}.`);
  }
  return { text, headers: response.headers };
}

function errorIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return null; // for example an HTML error page of a proxy
  }
}
