// The accelerators, where there are any.

import { byId, facts, show } from "./dom.js";
import { number, size } from "./units.js";
import { word } from "./words.js";

export function render({ accelerators: { backend, cause, accelerators }, power }) {
  show(byId("accelerators"), backend !== "none" || power.profile !== null);
  facts(byId("accelerators"), [
    [word("power_profile"), power.profile && [power.profile, power.why].filter(Boolean).join(": "), power.why && "warn", "en"],
    ...accelerators.map((one) => [one.name, told(one), one.present ? "" : "critical"]),
    [word("cause"), cause, "warn", "en"],
  ]);
}

function told(one) {
  if (!one.present) return word("accelerator_lost");
  const { memory_used_bytes: used, memory_total_bytes: all } = one;
  const said = [
    one.utilisation_ratio !== null && word("busy", { part: number(100 * one.utilisation_ratio) }),
    used !== null && all !== null && word("used_is", { used: size(used), all: size(all) }),
    one.temperature_c !== null && `${number(one.temperature_c)} °C`,
    one.power_w !== null && `${number(one.power_w, 1)} W`,
    one.mode,
  ];
  return said.filter(Boolean).join(" · ") || word("unknown");
}
