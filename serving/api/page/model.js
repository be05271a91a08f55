// Read the metadata of a model: which form it gets, and the facts about it.

const MAX_FIELDS = 1024;

// The output that /predict returns: the first with labels, otherwise the first.
export function predictedOutput({ outputs }) {
  return outputs.find((output) => output.labels.length) ?? outputs[0];
}

// The input that /predict takes, if a row of it can be a form of number fields; otherwise null.
export function inputOfRows(model) {
  const [input, ...others] = model.inputs.filter((tensor) => !tensor.optional);
  const output = predictedOutput(model);
  // data_sample is a sample of the first input.
  if (!input || others.length || input !== model.inputs[0]) return null;
  if (input.shape.length !== 2 || !output.shape.length) return null;
  const areNumbers = !["string", "bool"].includes(input.dtype) && output.dtype !== "string";
  const columns = input.shape[1];
  const rows = [input, output].map(({ shape: [size] }) => (Number.isInteger(size) ? size : 0));
  const allowsOneRow = rows[0] === rows[1] && rows[0] <= 1;
  return areNumbers && allowsOneRow && columns >= 1 && columns <= MAX_FIELDS ? input : null;
}

export function featuresOfRows(model) {
  const { name, shape, features } = inputOfRows(model);
  const feature = (_, index) => features[index] ?? { name: `${name}[${index}]` };
  return Array.from({ length: shape[1] }, feature);
}

// Text that is equal for models with the same form. Ranges differ after each training, so they
// are left out.
export function tensorsOf({ inputs, outputs }) {
  const ranges = ["minimum", "maximum"];
  const withoutRanges = (key, value) => (ranges.includes(key) ? undefined : value);
  return JSON.stringify([inputs, outputs], withoutRanges);
}

export function factsOf(model) {
  const differences = Object.entries(model.other_versions)
    .map(([name, { here, trained }]) => `${name} ${here} (training: ${trained})`);
  const facts = [
    ["Owner", model.owner],
    ...Object.entries(model.metrics).map(([name, value]) =>
      [`${name.replaceAll("_", " ")}, on held-out rows`, Number(value.toPrecision(4))]),
    ["Inputs", describeTensors(model.inputs)],
    ["Outputs", describeTensors(model.outputs)],
    ["Different versions in training", differences.join("; ")],
    ["Model sha256", model.sha256],
  ];
  return facts.filter(([, value]) => value !== "");
}

function describeTensors(tensors) {
  const dimensions = ({ shape }) => shape.map((size) => size ?? "?").join(",");
  const describe = (tensor) => `${tensor.name} ${tensor.dtype}[${dimensions(tensor)}]`;
  return tensors.map(describe).join(", ");
}
