// The ledger: produced = delivered + held + dropped, stream by stream.

import { brief, byId, list, make, say, show } from "./dom.js";
import { number } from "./units.js";
import { word } from "./words.js";

export function render(ledger) {
  const rows = Object.entries(ledger).map(([stream, row]) => ({ stream, ...row }));
  const wrong = rows.filter((row) => !balanced(row)).map((row) => row.stream);
  show(byId("ledger"), rows.length > 0);
  brief("balances", said(rows, wrong), wrong.length ? "critical" : rows.length ? "ok" : "");
  list(byId("ledger-rows"), rows, (row) => row.stream, build, update);
}

function said(rows, wrong) {
  if (!rows.length) return word("nothing_produced");
  if (!wrong.length) return `✓ ${word("balances")}`;
  return `✕ ${word("balances_not", { streams: wrong.join(", ") })}`;
}

function balanced({ produced, delivered, held, dropped }) {
  return produced === delivered + held + lost(dropped);
}

function lost(dropped) {
  return Object.values(dropped).reduce((sum, one) => sum + one, 0);
}

// "33 processed", or "40: 33 processed, 7 operator".
function dropped(reasons) {
  const each = Object.entries(reasons).map(([reason, count]) => `${number(count)} ${reason}`);
  if (each.length < 2) return each[0] ?? "0";
  return `${number(lost(reasons))}: ${each.join(", ")}`;
}

function build() {
  const cells = [1, 2, 3, 4].map(() => make("td", { role: "cell" }));
  return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }), ...cells);
}

function update(line, row) {
  const [stream, ...cells] = line.children;
  say(stream, row.stream);
  const values = { ...row, dropped: dropped(row.dropped) };
  ["produced", "delivered", "held", "dropped"].forEach((name, place) => {
    const value = values[name];
    cells[place].dataset.name = word(name);
    say(cells[place], name === "dropped" ? value : number(value));
  });
  line.className = balanced(row) ? "" : "critical";
}
