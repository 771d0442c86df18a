// A box to try a model: what it takes is filled in with zeros, what it answers is shown.

import { provider } from "./domains.js";
import { byId, facts, list, make, say, show } from "./dom.js";
import { asked, complaint, Unreachable } from "./session.js";
import { milliseconds, number } from "./units.js";
import { word } from "./words.js";

const FILLED_MAX = 2_048; // values of one input
const SHOWN_CHARS_MAX = 4_000;
const ANSWER_MS = 60_000;
const ZEROS = { BYTES: "", BOOL: false };

const box = byId("trial");
const choice = byId("model");
const field = byId("inputs");
let told = () => ""; // what there is to say, in the language of the moment
let answer = null;
let filledFor = "";

export function allow(may) {
  show(byId("trial-form"), may);
  show(byId("may-not"), !may);
}

export function render(models) {
  const takesTensors = (name) => models[name].loaded && models[name].engine === "onnx";
  const names = Object.keys(models).filter(takesTensors);
  list(choice, names, (name) => name, (name) => make("option", { value: name }, name), () => {});
  show(box, names.length > 0);
  if (box.open && choice.value !== filledFor) void fill();
}

export function speak() {
  say(byId("told"), told());
  show(byId("told"), told() !== "");
  show(byId("answer"), answer !== null);
  if (answer) present();
}

function tell(what) {
  told = what;
  speak();
}

async function fill() {
  const name = choice.value;
  const before = field.value;
  filledFor = name;
  answer = null;
  tell(() => "");
  try {
    const path = `/v2/models/${encodeURIComponent(name)}`;
    const { ok, body } = await asked(path);
    if (name !== choice.value) return;
    if (!ok) tell(() => word("untold", { error: body.error }));
    else if (field.value === before) prefill(body.inputs); // else somebody was faster
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    filledFor = "";
    tell(() => word("no_answer"));
  }
}

function prefill(inputs) {
  const lines = inputs.map(({ name, datatype, shape }) => {
    const sizes = shape.map((size) => (size < 0 ? 1 : size));
    const count = sizes.reduce((product, size) => product * size, 1);
    if (count > FILLED_MAX) tell(() => word("large", { name, count: number(count) }));
    const data = count > FILLED_MAX ? [] : Array(count).fill(ZEROS[datatype] ?? 0);
    return `  ${JSON.stringify({ name, shape: sizes, datatype, data })}`;
  });
  field.value = `{"inputs": [\n${lines.join(",\n")}\n]}`;
}

async function ask() {
  answer = null;
  try {
    JSON.parse(field.value);
  } catch (error) {
    tell(() => word("bad_json", { error: error.message }));
    return;
  }
  tell(() => word("waits"));
  const began = performance.now();
  const path = `/v2/models/${encodeURIComponent(choice.value)}/infer`;
  const headers = { "Content-Type": "application/json" };
  try {
    const asking = { method: "POST", headers, body: field.value };
    const { ok, body } = await asked(path, asking, ANSWER_MS);
    if (ok) {
      answer = { ...body, took_ms: performance.now() - began };
      tell(() => "");
    } else tell(() => complaint(body));
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    tell(() => word("no_answer"));
  }
}

function present() {
  facts(byId("answer-facts"), [
    [word("took"), milliseconds(answer.took_ms)],
    [word("runs_on"), provider(answer.parameters?.ep)],
    [word("model"), answer.model_name],
    [word("version_is"), answer.model_version],
  ]);
  const text = answer.outputs.map(output).join("\n\n");
  const rest = text.length - SHOWN_CHARS_MAX;
  const end = rest > 0 ? `\n${word("more", { count: number(rest) })}` : "";
  say(byId("outputs"), `${text.slice(0, SHOWN_CHARS_MAX)}${end}`);
}

function output({ name, datatype, shape, data }) {
  return `${name} · ${datatype} · ${shape.join(" × ")}\n${JSON.stringify(data)}`;
}

box.addEventListener("toggle", () => {
  if (box.open && choice.value !== filledFor) void fill();
});
choice.addEventListener("change", () => void fill());
byId("trial-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("ask");
  button.disabled = true;
  await ask();
  button.disabled = false;
});
