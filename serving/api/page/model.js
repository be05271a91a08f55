// What /metadata says of a model, as the page needs it.

const MOST_FIELDS = 1024;

// What /predict answers: the output with labels, or else the first.
export function predicted({ outputs }) {
  return outputs.find((one) => one.labels.length) ?? outputs[0];
}

// The input whose rows /predict takes, if one row of it makes a form and there is a sample of it.
export function inputOfRows(model) {
  const [input, ...others] = model.inputs.filter((one) => !one.optional);
  const output = predicted(model);
  if (!input || others.length || input !== model.inputs[0]) return null;
  if (input.shape.length !== 2 || !output.shape.length) return null;
  const areNumbers = !["string", "bool"].includes(input.dtype) && output.dtype !== "string";
  const columns = input.shape[1];
  const fixed = [input, output].map(({ shape: [size] }) => (Number.isInteger(size) ? size : 0));
  const oneRow = fixed[0] === fixed[1] && fixed[0] <= 1;
  return areNumbers && oneRow && columns >= 1 && columns <= MOST_FIELDS ? input : null;
}

export function featuresOfRows(model) {
  const { name, shape, features } = inputOfRows(model);
  const feature = (_, index) => features[index] ?? { name: `${name}[${index}]` };
  return Array.from({ length: shape[1] }, feature);
}

// What makes a form another one: not the ranges, which each training has of its own.
export function tensorsOf({ inputs, outputs }) {
  const ranges = ["minimum", "maximum"];
  const without = (key, value) => (ranges.includes(key) ? undefined : value);
  return JSON.stringify([inputs, outputs], without);
}

export function factsOf(model) {
  const others = Object.entries(model.other_versions)
    .map(([name, { here, trained }]) => `${name} ${here}, not ${trained}`);
  const facts = [
    ["Owner", model.owner],
    ...Object.entries(model.metrics).map(([name, value]) =>
      [`${name.replaceAll("_", " ")}, on held-out rows`, Number(value.toPrecision(4))]),
    ["Inputs", described(model.inputs)],
    ["Outputs", described(model.outputs)],
    ["Other than in training", others.join("; ")],
    ["Model sha256", model.sha256],
  ];
  return facts.filter(([, value]) => value !== "");
}

function described(tensors) {
  const dimensions = ({ shape }) => shape.map((size) => size ?? "?").join(",");
  return tensors.map((one) => `${one.name} ${one.dtype}[${dimensions(one)}]`).join(", ");
}
