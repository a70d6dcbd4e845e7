/**
 * Push-to-talk: what holding the button or the space bar means. No DOM: the page says when it is
 * pressed and released, the owner says what follows.
 */

/** Sound on its way when the button is let go still belongs to the turn. */
const TAIL_MS = 150;
/** A shorter press is a slip, not a turn. */
const SHORTEST_MS = 250;

/**
 * @typedef {object} TalkListeners
 * @property {(open: boolean) => void} onMicrophone open or close the microphone
 * @property {() => void} onPress the turn begins
 * @property {() => void} onTurn the turn is over
 * @property {() => void} onSlip it was only a tap
 */

/** The state of the talk button. */
export class PushToTalk {
  /** Is push-to-talk on at all? */
  enabled = false;
  /** Is the button held? */
  held = false;
  #pressedAt = 0;
  #tail = 0;
  /** @type {TalkListeners} */
  #listeners;

  /** @param {TalkListeners} listeners */
  constructor(listeners) {
    this.#listeners = listeners;
  }

  /** May the caller be heard? */
  get open() {
    return !this.enabled || this.held || this.#tail !== 0;
  }

  /** The button went down. */
  press() {
    if (!this.enabled || this.held) return;
    if (this.#tail) this.#finish(); // a new turn right after the last one
    this.held = true;
    this.#pressedAt = performance.now();
    this.#listeners.onPress();
    this.#listeners.onMicrophone(true);
  }

  /** The button went up, or the page lost sight of it. */
  release() {
    if (!this.held) return;
    this.held = false;
    if (performance.now() - this.#pressedAt < SHORTEST_MS) {
      this.#listeners.onMicrophone(this.open);
      this.#listeners.onSlip();
      return;
    }
    this.#tail = setTimeout(() => this.#finish(), TAIL_MS);
  }

  /** Forget a press: the call is over or push-to-talk was switched off. */
  reset() {
    clearTimeout(this.#tail);
    this.#tail = 0;
    this.held = false;
  }

  #finish() {
    clearTimeout(this.#tail);
    this.#tail = 0;
    this.#listeners.onMicrophone(this.open);
    this.#listeners.onTurn();
  }
}
