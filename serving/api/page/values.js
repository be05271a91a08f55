// Values as text: for people, and as JSON that keeps their digits.

export function shortened(value) {
  if (value === null) return "not a number";
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value);
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

// What was typed, as it was typed: a number of JavaScript has not the digits of an int64.
export function asJson(value) {
  if (/^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i.test(value)) return value;
  return value === "" ? "null" : String(Number(value));
}

// JSON whose numbers keep their digits, in browsers that can.
export function exactly(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && JSON.rawJSON && context ? JSON.rawJSON(context.source) : value);
}

// Indented, but a list of values on one line. No string has a raw line break: it is layout only.
export function formatted(value) {
  const onOneLine = (list) => `[${list.slice(1, -1).trim().replaceAll(/\s*\n\s*/g, " ")}]`;
  return JSON.stringify(value, null, 2).replaceAll(/\[\n[^[\]{}]*\n *\]/g, onOneLine);
}
