// Convert values to text: shortened for people, or as JSON that keeps all digits.

export function shorten(value) {
  if (value === null) return "not a number";
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value);
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

// A typed number as JSON. It is not converted if possible: JavaScript numbers are 64-bit floats
// and would lose digits of an int64.
export function numberAsJson(text) {
  if (/^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i.test(text)) return text;
  return text === "" ? "null" : String(Number(text));
}

// Parse JSON, keeping all digits of numbers in browsers that have JSON.rawJSON.
export function parseExactly(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && JSON.rawJSON && context ? JSON.rawJSON(context.source) : value);
}

// Indented JSON with each list of plain values on one line. JSON strings contain no raw line
// breaks, so every line break is layout.
export function formatJson(value) {
  const onOneLine = (list) => `[${list.slice(1, -1).trim().replaceAll(/\s*\n\s*/g, " ")}]`;
  return JSON.stringify(value, null, 2).replaceAll(/\[\n[^[\]{}]*\n *\]/g, onOneLine);
}
