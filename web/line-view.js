/**
 * The picture of the waiting line, and what else looks different while the caller waits.
 */

import { lineMarks } from "/static/line.js";

const CAPTIONS_EMPTY = {
  call: "What you say and what the agent answers appears here, while it is said.",
  line: "It is not your turn yet: what you say is neither heard nor written down. The call starts by itself when your turn comes.",
  textLine: "It is not your turn yet. You can type as soon as it is.",
};

/** Shows what it is given, decides nothing. */
export class LineView {
  #picture = element("line");
  #shown = "";

  /**
   * @param {import("/static/line.js").Place | null} place null: not in the line
   * @param {boolean} textOnly a call without a microphone
   */
  show(place, textOnly) {
    const marks = place ? lineMarks(place) : [];
    const shown = JSON.stringify([marks, textOnly]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    const waits = place !== null;
    this.#picture.hidden = !waits;
    this.#picture.replaceChildren(...marks.map(drawn));
    element("local-meter").hidden = waits && !textOnly;
    element("local-note").hidden = !waits || textOnly;
    element("captions-empty").textContent = CAPTIONS_EMPTY[!waits ? "call" : textOnly ? "textLine" : "line"];
    element("figure-time-name").textContent = waits ? "Waited" : "Call time";
  }
}

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);

/** @param {import("/static/line.js").Mark} mark */
function drawn(mark) {
  const node = document.createElement("span");
  if ("more" in mark) {
    node.className = "line-more";
    node.textContent = `+${mark.more}`;
  } else {
    node.className = "line-caller";
    node.dataset.kind = mark.kind;
  }
  return node;
}
