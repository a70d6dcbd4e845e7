/**
 * Draws where the time of the newest turns went: the last one with its figures, the others as bars
 * to compare it with, and all of them as a table for screen readers.
 */

import { element, setStyle, setText } from "/static/dom.js";
import { barOf, STAGES } from "/static/stages.js";
import { savedWords, turnWords } from "/static/timing.js";

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/** @param {number | null} value */
const milliseconds = (value) => (value === null ? "–" : `${Math.round(value)} ms`);

/** @typedef {import("/static/timing.js").TimedTurn} TimedTurn */

/** @param {TimedTurn[]} turns newest first */
export function showTiming(turns) {
  const [newest] = turns;
  byId("timing-empty").hidden = turns.length > 0;
  byId("timing").hidden = turns.length === 0;
  if (!newest) return;
  const longest = Math.max(...turns.map((turn) => turn.total_ms));
  byId("timing-bars").replaceChildren(...turns.map((turn) => makeBar(turn, longest)));
  byId("timing-stages").replaceChildren(
    ...STAGES.map(({ key, stage, name }) => makeStage(stage, name, newest.stages[key])),
    makeStage("", "Response, all together", newest.response_ms),
  );
  const saved = savedWords(newest);
  byId("timing-saved").hidden = !saved;
  setText(byId("timing-saved"), saved);
  byId("timing-rows").replaceChildren(...turns.map(makeRow));
}

/** @param {TimedTurn} turn @param {number} longest */
function makeBar(turn, longest) {
  const parts = barOf(turn.stages, longest)
    .filter(({ percent }) => percent > 0)
    .map(({ stage, percent }) => {
      const part = element("span", { "data-stage": stage });
      setStyle(part, "width", `${percent}%`);
      return part;
    });
  const bar = element("div", { class: "waterfall" }, ...parts);
  const words = element("span", { class: "timing-words" }, turnWords(turn));
  return element("li", { "data-outcome": turn.outcome }, bar, words);
}

/** @param {string} stage @param {string} name @param {number | null} value */
function makeStage(stage, name, value) {
  const term = element("dt", stage ? { class: "timing-stage", "data-stage": stage } : {}, name);
  return element("div", {}, term, element("dd", {}, milliseconds(value)));
}

/** @param {TimedTurn} turn */
function makeRow(turn) {
  const cells = STAGES.map(({ key }) => element("td", {}, milliseconds(turn.stages[key])));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, `Turn ${turn.number}`),
    ...cells,
    element("td", {}, turnWords(turn)),
    element("td", {}, milliseconds(turn.saved_ms)),
  );
}
