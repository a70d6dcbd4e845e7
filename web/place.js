/**
 * A place in the waiting line that the server keeps for a caller whose connection is lost, or whose
 * page is loaded again.
 */

import { CallFailure } from "/static/errors.js";

/** The server's own value of `pool.resume_seconds`. */
const KEPT_SECONDS = 30;
/** Seconds before each attempt; the last begins while the place is still kept. */
const PAUSES = [0, 1, 2, 4, 8, 12];
/** Nobody's pause is exactly so long: all who wait lose a server at the same moment. */
const SPREAD = 0.2;
/** A connection that stood no longer than this did not really come back. */
const STABLE_SECONDS = 5;
const STORED_AS = "voice_rtc.place";

/** What another attempt may mend. */
const PASSING = new Set(["server_unreachable", "no_media_connection", "http_502", "http_503", "http_504"]);

/**
 * @typedef {object} KeptPlace
 * @property {string} token
 * @property {string} callId of the call whose place it is
 * @property {import("/static/line.js").Place} place as it was
 * @property {number} waitedSeconds
 * @property {{textOnly: boolean, muted: boolean, pushToTalk: boolean}} call as it was set
 * @property {number} lostAt milliseconds since 1970: it outlives the page and its clock
 */

/** Calls again for a place, with growing pauses, also over connections that break at once. */
export class WayBack {
  #breaks = 0;

  /** The connection stood for so long when it was lost. @param {number} seconds */
  lost(seconds) {
    this.#breaks = seconds < STABLE_SECONDS ? this.#breaks + 1 : 0;
  }

  /**
   * @template Connected
   * @param {() => Promise<Connected>} attempt
   * @param {number} lostAt milliseconds since 1970
   * @param {AbortSignal} signal
   * @returns {Promise<Connected>}
   * @throws {CallFailure} `place_lost` when the time is over; others when trying on is of no use
   */
  async find(attempt, lostAt, signal) {
    for (const seconds of PAUSES.slice(this.#breaks)) {
      await pause(seconds * (1 - SPREAD * Math.random()), signal);
      if (!isKept(lostAt)) break;
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof CallFailure) || !PASSING.has(error.code)) throw error;
      }
    }
    throw new CallFailure("place_lost");
  }
}

/** @param {number} lostAt milliseconds since 1970 */
function isKept(lostAt) {
  return Date.now() - lostAt < KEPT_SECONDS * 1000;
}

/** Wait, no longer than until the network is back. @param {number} seconds @param {AbortSignal} signal */
async function pause(seconds, signal) {
  if (!seconds) return;
  const over = new AbortController();
  const each = { once: true, signal: over.signal };
  await new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    window.addEventListener("online", resolve, each);
    signal.addEventListener("abort", resolve, each);
  });
  over.abort();
  signal.throwIfAborted();
}

/** Before the page goes away: it may be loaded again. @param {KeptPlace} kept */
export function storePlace(kept) {
  withStorage((storage) => storage.setItem(STORED_AS, JSON.stringify(kept)));
}

/**
 * The place of the page that was here a moment ago. It is handed out once, so that a copy of this
 * tab does not take it away from its caller.
 * @returns {KeptPlace | null}
 */
export function takeStoredPlace() {
  const stored = withStorage((storage) => {
    const text = storage.getItem(STORED_AS);
    storage.removeItem(STORED_AS);
    return text;
  });
  const kept = stored ? JSON.parse(stored) : null;
  return kept && isKept(kept.lostAt) ? kept : null;
}

/**
 * @template T
 * @param {(storage: Storage) => T} use
 * @returns {T | null} null where the browser forbids storage
 */
function withStorage(use) {
  try {
    return use(sessionStorage);
  } catch (error) {
    if (error instanceof DOMException) return null; // a reload then begins at the end of the line
    throw error;
  }
}
