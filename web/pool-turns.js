/**
 * The response times of the newest turns of all calls: how long each stage took, and what came of
 * the turns whose answer was not heard.
 */

import { byId, element, mirror, setAttribute, setText } from "/static/dom.js";
import { known, latency, number } from "/static/pool-format.js";
import { STAGES } from "/static/stages.js";

const ROWS = [
  { key: "response_ms", stage: "", label: "response" },
  ...STAGES,
  { key: "saved_ms", stage: "", label: "saved by starting early" },
];

/** In the order in which they are named. */
const OUTCOMES = {
  cut: "cut before a sound",
  failed: "failed",
  silent: "without a sound",
  shown: "in text",
  nothing: "noises",
};

/** The card. @param {any} status */
export function showTurns(status) {
  const { count = 0, stages = {}, outcomes = {} } = status.turns ?? {};
  const rows = ROWS.filter(({ key }) => isWorthShowing(key, stages[key]));
  mirror(byId("turns"), rows, ({ key }) => key, makeRow, (row, { key }) => updateRow(row, stages[key]));
  byId("turns-table").hidden = rows.length === 0;
  byId("turns-empty").hidden = rows.length > 0;
  setText(byId("turns-count"), count ? `newest ${number(count)} turns` : "");
  const others = Object.entries(OUTCOMES)
    .filter(([outcome]) => outcomes[outcome] > 0)
    .map(([outcome, words]) => `${number(outcomes[outcome])} ${words}`);
  byId("turns-note").hidden = others.length === 0;
  setText(byId("turns-note"), others.length ? `Not heard: ${others.join(", ")}.` : "");
}

/** Nothing is saved while no answer is begun early. */
function isWorthShowing(/** @type {string} */ key, /** @type {any} */ stage) {
  return known(stage?.p50) && (key !== "saved_ms" || stage.p95 > 0);
}

function makeRow(/** @type {{stage: string, label: string}} */ { stage, label }) {
  const name = element("span", stage ? { class: "turn-figure" } : {}, label);
  if (stage) setAttribute(name, "data-stage", stage);
  const [p50, p95] = ["Half within", "95 % within"].map((title) => element("td", { class: "number", "data-label": title }));
  return { node: element("tr", {}, element("th", { scope: "row" }, name), p50, p95), p50, p95 };
}

function updateRow(/** @type {any} */ row, /** @type {any} */ stage) {
  setText(row.p50, latency(stage.p50));
  setText(row.p95, latency(stage.p95));
}
