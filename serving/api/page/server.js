// Asking the server. Paths are relative, so that a proxy with a prefix may be in between.

export async function responseTo(path, options = {}) {
  return fetch(path, { cache: "no-store", ...options }).catch(() => {
    throw new Error("The server does not answer.");
  });
}

// The text of an answer, and its headers; what is not 2xx is thrown, in the server's own words.
export async function answerTo(path, options) {
  const response = await responseTo(path, options);
  const text = await response.text();
  if (!response.ok) throw new Error(errorIn(text) ?? `The server answers ${response.status}.`);
  return { text, headers: response.headers };
}

function errorIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return null; // of a proxy, perhaps
  }
}
