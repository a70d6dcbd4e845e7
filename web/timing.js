/**
 * Where the time of the newest turns went, built from the server's events. Pure: no DOM, no clock.
 */

import { lengthOf, STAGES } from "/static/stages.js";

/** Older turns than these are forgotten. */
const MOST_TURNS = 8;

/** What became of a turn whose answer was not heard. */
const OUTCOMES = {
  shown: "in text",
  cut: "cut short",
  failed: "failed",
  silent: "no sound",
};

/**
 * @typedef {object} TimedTurn
 * @property {number} number 1 is the first turn of the call
 * @property {Record<string, number | null>} stages in milliseconds, by the keys of `STAGES`; null:
 *   the turn did not get so far
 * @property {number | null} response_ms
 * @property {number} saved_ms by beginning the answer before the turn was over
 * @property {number} total_ms how long its bar is
 * @property {string} outcome empty when the answer was heard
 */

/** The turns of one call. */
export class Timing {
  /** @type {TimedTurn[]} */
  #turns = [];
  #count = 0;

  /** Newest first. @returns {TimedTurn[]} */
  get turns() {
    return structuredClone(this.#turns);
  }

  /** The newest turn whose answer was heard. @returns {TimedTurn | null} */
  get answered() {
    const found = this.#turns.find((turn) => turn.response_ms !== null);
    return found ? structuredClone(found) : null;
  }

  /** Forget everything: a new call begins. */
  clear() {
    this.#turns = [];
    this.#count = 0;
  }

  /**
   * Take one `voice_rtc.turn.metrics`. A noise that nobody answered is no turn.
   * @param {any} event
   * @returns {boolean} whether there is something new
   */
  apply(event) {
    const total = lengthOf(event);
    if (event.outcome === "nothing" || total === null) return false;
    this.#count += 1;
    this.#turns.unshift({
      number: this.#count,
      stages: Object.fromEntries(STAGES.map(({ key }) => [key, event[key] ?? null])),
      response_ms: event.response_ms ?? null,
      saved_ms: event.saved_ms ?? 0,
      total_ms: total,
      outcome: OUTCOMES[event.outcome] ?? "",
    });
    this.#turns.length = Math.min(this.#turns.length, MOST_TURNS);
    return true;
  }
}

/** What is said of a turn behind its bar: `842 ms`, `cut short`. @param {TimedTurn} turn */
export function turnWords({ response_ms, outcome }) {
  return response_ms === null ? outcome || "no answer" : `${Math.round(response_ms)} ms`;
}

/** What speculation saved, for people; empty: nothing. @param {TimedTurn} turn */
export function savedWords({ saved_ms }) {
  return saved_ms >= 1 ? `${Math.round(saved_ms)} ms saved: the answer was begun while you paused.` : "";
}
