// What the page does to its document. Whatever comes from the device becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";
const kept = new WeakMap(); // of a list: what stands in it, by key

export const byId = (id) => document.getElementById(id);

// An element with attributes and children; a child that is a string is text.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Sets a text, if it is another one: nothing jumps, and screen readers hear only what is new.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

// A small drawing from index.html: a shape that says the same as its colour.
export function shape(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "shape");
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(document.createElementNS(SVG, "use"));
  turn(drawing, name);
  return drawing;
}

export function turn(drawing, name) {
  const use = drawing.firstElementChild;
  if (use.getAttribute("href") !== `#shape-${name}`) use.setAttribute("href", `#shape-${name}`);
}

// A short word of a part that is folded, in the colour of how it stands.
export function brief(id, text, tone = "") {
  say(byId(id), text);
  byId(id).className = `brief ${tone}`;
}

// What is long is there at once where there is room for it, and else for whoever asks.
export function unfold() {
  const wide = window.matchMedia("(min-width: 48rem)").matches;
  for (const part of document.querySelectorAll("details.fold")) part.open = wide;
}

// Makes the children of `parent` those of `items`, in their order, and leaves alone whatever is
// right already: what is open, focused or playing stays so.
export function list(parent, items, keyOf, build, update) {
  const old = kept.get(parent) ?? new Map();
  const fresh = new Map();
  let place = null;
  for (const item of items) {
    const key = keyOf(item);
    const node = old.get(key) ?? build(item);
    fresh.set(key, node);
    update(node, item);
    const here = place ? place.nextSibling : parent.firstChild;
    if (here !== node) parent.insertBefore(node, here);
    place = node;
  }
  for (const [key, node] of old) if (!fresh.has(key)) node.remove();
  kept.set(parent, fresh);
}

// A list of facts: [name, value, tone, lang] of each; one without a value is left out.
export function facts(parent, rows) {
  list(
    parent,
    rows.filter(([, value]) => value).map((row, place) => ({ row, place })),
    ({ place }) => place,
    () => make("div", {}, make("dt"), make("dd")),
    (line, { row: [name, value, tone = "", lang = ""] }) => {
      say(line.firstChild, name);
      say(line.lastChild, value);
      line.lastChild.className = tone;
      if (lang) line.lastChild.lang = lang;
      else line.lastChild.removeAttribute("lang");
    },
  );
}
