/**
 * Whether the server still answers, known sooner than from the browser, which takes 17 seconds.
 * Times are arguments, in milliseconds on any clock that does not run backwards.
 */

export const HEARTBEAT = "voice_rtc.heartbeat";
export const INTERVAL_MS = 1_000;
const GAP_MS = 3_000;
const LOST_MS = 8_000;
/** A beat that comes so late says that the page slept, not the server. */
const SLEPT_MS = 2_500;

/** Call `beat` each `INTERVAL_MS` and `heard` for each event of the server. */
export class Heartbeat {
  #heardAt = 0;
  #beatAt = 0;
  /** A server that never answered a heartbeat does not know them, and is not judged by them. */
  #answers = false;

  /** @param {number} now */
  constructor(now) {
    this.#heardAt = this.#beatAt = now;
  }

  /** @param {string} type of the event that came @param {number} now */
  heard(type, now) {
    if (type === HEARTBEAT) this.#answers = true;
    this.#heardAt = now;
  }

  /**
   * @param {number} now
   * @param {boolean} waits in the waiting line nothing is lost by calling again soon
   * @returns {"fine" | "gap" | "lost"}
   */
  beat(now, waits) {
    const pause = now - this.#beatAt;
    if (pause > SLEPT_MS) this.#heardAt += pause;
    this.#beatAt = now;
    const quiet = now - this.#heardAt;
    if (!this.#answers || quiet < GAP_MS) return "fine";
    return waits || quiet >= LOST_MS ? "lost" : "gap";
  }
}
