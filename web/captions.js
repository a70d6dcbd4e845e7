/**
 * What both sides said, as turns, built from the server's events. Pure: no DOM, no clock.
 */

/**
 * @typedef {object} Turn
 * @property {string} id the conversation item
 * @property {"caller" | "agent"} side
 * @property {"speaking" | "transcribing" | "final" | "failed"} phase
 * @property {string} text everything that was said or was going to be said
 * @property {string} heard the part of `text` that reached the caller (all of it, unless interrupted)
 * @property {string} unheard the rest of an interrupted reply
 * @property {boolean} interrupted
 */

/** Older turns than these are forgotten, so that a long call does not grow without bound. */
const MOST_TURNS = 200;

/**
 * Cut a reply where the caller stopped hearing it.
 * @param {string} text the whole reply
 * @param {string} heard the part that was heard, as the server words it
 * @returns {[string, string]} heard and unheard; together they are `text`
 */
export function splitHeard(text, heard) {
  const wanted = heard.trim();
  if (!text.trim()) return [wanted, ""];
  if (text.startsWith(wanted)) return [wanted, text.slice(wanted.length)];
  // The server may have changed white space or punctuation: count words instead.
  const words = wanted.split(/\s+/).filter(Boolean).length;
  const cut = new RegExp(`^\\s*(?:\\S+\\s*){0,${words}}`).exec(text)?.[0] ?? "";
  return [cut.trimEnd(), text.slice(cut.trimEnd().length)];
}

/** The captions of one call. */
export class Captions {
  /** @type {{id: string, side: "caller" | "agent", phase: Turn["phase"], text: string,
   *   committed: boolean, heard: string | null, interrupted: boolean}[]} */
  #turns = [];

  /** Turns worth showing, oldest first. @returns {Turn[]} */
  get turns() {
    return this.#turns.filter(isVisible).map(publicTurn);
  }

  /** Forget everything: a new call begins. */
  clear() {
    this.#turns = [];
  }

  /**
   * Take one server event. Events that say nothing about captions are ignored.
   * @param {any} event
   * @returns {boolean} whether the captions may have changed
   */
  apply(event) {
    const take = TAKE[event.type];
    if (!take) return false;
    take(this, event);
    if (this.#turns.length > MOST_TURNS) this.#turns.splice(0, this.#turns.length - MOST_TURNS);
    return true;
  }

  /** @param {string} id @param {"caller" | "agent"} side */
  turn(id, side) {
    let turn = this.#turns.find((candidate) => candidate.id === id);
    if (!turn) {
      turn = { id, side, phase: "speaking", text: "", committed: false, heard: null, interrupted: false };
      this.#turns.push(turn);
    }
    return turn;
  }

  /** @param {string} id */
  find(id) {
    return this.#turns.find((turn) => turn.id === id);
  }

  /**
   * Somebody typed while the caller spoke: the conversation's order is the server's.
   * @param {string} id @param {string | null} previous
   */
  placeAfter(id, previous) {
    const from = this.#turns.findIndex((turn) => turn.id === id);
    const to = this.#turns.findIndex((turn) => turn.id === previous);
    if (from < 0 || to < from) return;
    const [turn] = this.#turns.splice(from, 1);
    this.#turns.splice(to, 0, turn);
  }

  /**
   * Close what was left open: a cough that never became a turn, a reply without a last word.
   * @param {"caller" | "agent"} side @param {string} [except]
   */
  settle(side, except) {
    for (const turn of this.#turns) {
      if (turn.side !== side || turn.id === except) continue;
      if (side === "caller" ? turn.committed : turn.phase !== "speaking") continue;
      turn.phase = "final";
    }
  }
}

/** @type {Record<string, (captions: Captions, event: any) => void>} */
const TAKE = {
  __proto__: null, // a type from the wire must not find what every object has
  "input_audio_buffer.speech_started": (captions, event) => {
    captions.settle("caller", event.item_id);
    captions.turn(event.item_id, "caller").phase = "speaking";
  },
  "input_audio_buffer.committed": (captions, event) => commit(captions.turn(event.item_id, "caller")),
  "conversation.item.added": (captions, event) => {
    takeItem(captions, event.item);
    captions.placeAfter(event.item?.id, event.previous_item_id);
  },
  "conversation.item.done": (captions, event) => takeItem(captions, event.item),
  "voice_rtc.transcript.partial": (captions, event) => {
    const turn = captions.turn(event.item_id, "caller");
    if (turn.phase !== "final") turn.text = event.text; // a late partial never undoes the final
  },
  "conversation.item.input_audio_transcription.completed": (captions, event) => {
    const turn = captions.turn(event.item_id, "caller");
    turn.text = event.transcript;
    turn.committed = true;
    turn.phase = "final";
  },
  "conversation.item.input_audio_transcription.failed": (captions, event) => {
    const turn = captions.turn(event.item_id, "caller");
    turn.committed = true;
    turn.phase = "failed";
  },
  "response.output_item.added": (captions, event) => takeItem(captions, event.item),
  "response.output_audio_transcript.delta": (captions, event) => {
    captions.turn(event.item_id, "agent").text += event.delta;
  },
  "response.output_audio_transcript.done": (captions, event) => {
    const turn = captions.turn(event.item_id, "agent");
    turn.text = event.transcript || turn.text;
    turn.phase = "final";
  },
  "conversation.item.truncated": (captions, event) => {
    const turn = captions.find(event.item_id);
    // What was heard of it follows: until then it is neither final nor told to a screen reader.
    if (turn) turn.interrupted = true;
  },
  "voice_rtc.reply.heard": (captions, event) => {
    const turn = captions.turn(event.item_id, "agent");
    turn.heard = event.complete ? null : event.text;
    turn.interrupted = !event.complete;
    turn.phase = "final";
  },
  "response.done": (captions) => captions.settle("agent"),
};

/** @param {Captions} captions @param {any} item a conversation item */
function takeItem(captions, item) {
  if (item?.type !== "message") return;
  if (item.role === "assistant") {
    captions.turn(item.id, "agent");
  } else if (item.role === "user") {
    const typed = item.content?.find((part) => part.type === "input_text");
    const turn = captions.turn(item.id, "caller");
    if (typed) Object.assign(turn, { text: typed.text, committed: true, phase: "final" });
    else commit(turn);
  }
}

/** @param {{phase: string, committed: boolean}} turn */
function commit(turn) {
  turn.committed = true;
  if (turn.phase === "speaking") turn.phase = "transcribing";
}

/**
 * A reply without a word yet or of which nothing was heard, and a cough that came to nothing, are
 * not part of what was said.
 */
function isVisible(turn) {
  if (turn.interrupted && turn.heard === "") return false;
  if (turn.text.trim() || turn.heard) return true;
  return turn.side === "caller" && (turn.committed || turn.phase === "speaking");
}

/** @returns {Turn} */
function publicTurn(turn) {
  const [heard, unheard] = turn.heard === null ? [turn.text, ""] : splitHeard(turn.text, turn.heard);
  const { id, side, phase, text, interrupted } = turn;
  return { id, side, phase, text, heard, unheard, interrupted };
}
