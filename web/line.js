/**
 * The waiting line as its caller sees it, and what is said about it. Pure: no DOM, no clock.
 */

/**
 * @typedef {object} Place
 * @property {number} position 1 is next
 * @property {number} waiting callers in the line, this one counted
 * @property {number | null} etaSeconds the server's estimate
 *
 * @typedef {{kind: "ahead" | "me" | "behind"} | {more: number}} Mark
 *   One caller in the picture of the line, or so many that are left out.
 */

/** Places change often in a quick line: a screen reader is told at most so often. */
const QUIET_SECONDS = 15;
/** More callers than these on one side are a number in the picture. */
const MOST_MARKS = 4;

/** Where this page's caller stands. Times are seconds on any clock that never runs back. */
export class WaitingLine {
  /** Null: not in the line. @type {Place | null} */
  place = null;
  /** Gives the place back after a lost connection; kept until the caller is served or gone. */
  token = "";
  /** When the caller entered the line. */
  since = 0;
  /** What a screen reader is to be told. */
  announcement = "";
  #announcedAt = -Infinity;
  #announcedPosition = 0;
  /** The place before the connection was lost, until the server has told the present one. */
  #inDoubt = 0;

  /**
   * Take one server event; others are ignored.
   * @param {any} event @param {number} now
   * @returns {"moved" | "back" | "granted" | null} what it meant; `back`: first place after a loss
   */
  apply(event, now) {
    if (event.type === "voice_rtc.queue.granted" && this.place) {
      this.leave();
      return "granted";
    }
    if (event.type !== "voice_rtc.queue.updated") return null;
    if (!this.place) this.since = now;
    this.place = { position: event.position, waiting: event.waiting, etaSeconds: event.eta_seconds };
    this.token = event.resume_token;
    const before = this.#inDoubt;
    this.#inDoubt = 0;
    if (before) this.#announce(`${backWords(before, this.place)} ${placeWords(this.place)}`, now);
    else if (this.#isNews(now)) this.#announce(placeWords(this.place), now);
    return before ? "back" : "moved";
  }

  /** The connection is lost: what is known is shown on, until the server says where one stands. */
  doubt() {
    if (this.place) this.#inDoubt = this.place.position;
  }

  /**
   * The connection stands again, and the server had time to send the place: a caller who was told
   * none was granted a slot while the connection was lost.
   * @returns {boolean} whether it was
   */
  settle() {
    if (!this.#inDoubt) return false;
    this.leave();
    return true;
  }

  /** Back in a page that was loaded again. @param {import("/static/place.js").KeptPlace} kept @param {number} now */
  restore({ token, place, waitedSeconds }, now) {
    this.token = token;
    this.place = place;
    this.since = now - waitedSeconds;
    this.doubt();
  }

  /** Served, or gone. */
  leave() {
    this.place = null;
    this.token = "";
    this.announcement = "";
    this.#announcedAt = -Infinity;
    this.#announcedPosition = 0;
    this.#inDoubt = 0;
  }

  /** @param {number} now */
  #isNews(now) {
    return this.place?.position !== this.#announcedPosition && now - this.#announcedAt >= QUIET_SECONDS;
  }

  /** @param {string} words @param {number} now */
  #announce(words, now) {
    this.announcement = words;
    this.#announcedAt = now;
    this.#announcedPosition = this.place?.position ?? 0;
  }
}

/** @param {Place} place */
export function titleWords({ position }) {
  return position === 1 ? "You are next in line" : `You are number ${position} in line`;
}

/** How many wait and for how long, e.g. "About 2 minutes. 3 callers are waiting." @param {Place} place */
export function detailWords({ waiting, etaSeconds }) {
  const others = waiting > 1 ? `${waiting} callers are waiting.` : "Nobody else is waiting.";
  return etaSeconds === null ? others : `${etaWords(etaSeconds)}. ${others}`;
}

/** An estimate is a guess: it is not told in seconds. @param {number} seconds */
export function etaWords(seconds) {
  if (seconds < 30) return "Less than a minute";
  const minutes = Math.max(1, Math.round(seconds / 60));
  if (minutes > 60) return "More than an hour";
  return minutes === 1 ? "About 1 minute" : `About ${minutes} minutes`;
}

/** @param {Place} place */
function placeWords(place) {
  return `${titleWords(place)}. ${detailWords(place)}`;
}

/** @param {number} before @param {Place} place */
function backWords(before, { position }) {
  return position <= before ? "You are back, your place was kept." : "You are back in line.";
}

/**
 * The line as a picture, who is next first.
 * @param {Place} place
 * @returns {Mark[]}
 */
export function lineMarks({ position, waiting }) {
  return [...side("ahead", position - 1), { kind: "me" }, ...side("behind", Math.max(0, waiting - position))];
}

/** @param {"ahead" | "behind"} kind @param {number} count @returns {Mark[]} */
function side(kind, count) {
  const shown = Math.min(count, MOST_MARKS);
  const marks = Array.from({ length: shown }, () => /** @type {Mark} */ ({ kind }));
  return count > shown ? [...marks, { more: count - shown }] : marks;
}
