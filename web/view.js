/**
 * The page's elements: shows what it is given, decides nothing. Text from the wire goes in as
 * text nodes only.
 */

const KINDS = {
  vad: "Voice detection",
  turn: "Turn end",
  stt: "Speech to text",
  llm: "Language model",
  tts: "Speech synthesis",
};

const SIDES = { caller: "You", agent: "Agent" };

const SERVER_WORDS = {
  ready: "Server ready",
  loading: "Server is loading",
  draining: "Server is shutting down",
  failed: "Server engines failed",
  unreachable: "Server does not answer",
};

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);

/** @param {string} tag @param {string} className @param {...(string | Node)} children */
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

/** @param {string} name */
function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const use = document.createElementNS(namespace, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** @param {number | null | undefined} value */
const milliseconds = (value) => (value == null ? "–" : `${Math.round(value)} ms`);

/** @param {number | null} seconds */
function clock(seconds) {
  if (seconds === null) return "–";
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

/** Everything that the caller sees. */
export class View {
  audio = element("remote-audio");
  #captions = element("captions");
  #scroll = element("captions-scroll");
  #announcer = element("announcer");
  /** Turns that were already announced to a screen reader. @type {Set<string>} */
  #announced = new Set();

  /**
   * `connection` is read aloud by screen readers; who has the floor changes too often for that.
   * @param {{status: string, words: string, connection: string, hint: string, button: string,
   *   tab: string}} model
   */
  showStatus({ status, words, connection, hint, button, tab }) {
    document.title = tab;
    element("page").dataset.status = status;
    setText(element("status"), words);
    setText(element("connection"), connection);
    setText(element("hint"), hint);
    setText(element("call-label"), button);
  }

  /**
   * @param {{live: boolean, canTalk: boolean, canMute: boolean, muted: boolean, canStop: boolean,
   *   pushToTalk: boolean, held: boolean}} model
   */
  showControls({ live, canTalk, canMute, muted, canStop, pushToTalk, held }) {
    element("mute").disabled = !canMute || pushToTalk;
    element("mute").setAttribute("aria-pressed", String(muted));
    element("stop").disabled = !canStop;
    element("ptt").setAttribute("aria-pressed", String(pushToTalk));
    element("hold").hidden = element("hold-hint").hidden = !pushToTalk;
    element("hold").disabled = !canTalk;
    element("hold").dataset.held = String(held);
    setText(element("hold-label"), held ? "Listening – let go when done" : "Hold to talk");
    element("text").disabled = element("send").disabled = !live;
  }

  /** @param {number} local 0 to 1 @param {number} remote 0 to 1 */
  showLevels(local, remote) {
    showLevel(element("local-meter"), local);
    showLevel(element("remote-meter"), remote);
    setLevel(element("call"), remote);
  }

  /** @param {{response: number | null, roundTrip: number | null, seconds: number | null}} figures */
  showFigures({ response, roundTrip, seconds }) {
    setText(element("figure-response"), milliseconds(response));
    setText(element("figure-round-trip"), milliseconds(roundTrip));
    setText(element("figure-time"), clock(seconds));
  }

  /** @param {import("/static/errors.js").Notice | null} notice */
  showNotice(notice) {
    // The button in focus goes away with its notice: the keyboard goes on at the call button.
    if (!notice && element("notice").contains(document.activeElement)) element("call").focus();
    element("notice").hidden = !notice;
    setText(element("notice-title"), notice?.title ?? "");
    setText(element("notice-text"), notice?.text ?? "");
    element("notice-call").hidden = !(notice?.remedy === "call" || notice?.remedy === "text");
    element("notice-text-call").hidden = notice?.remedy !== "text";
    element("notice-sound").hidden = notice?.remedy !== "sound";
    element("notice-dismiss").hidden = !notice || notice.remedy !== null || notice.retry;
    this.showCountdown(null);
  }

  /** @param {string | null} words how long to wait yet */
  showCountdown(words) {
    element("notice-countdown").hidden = words === null;
    setText(element("notice-countdown"), words ?? "");
  }

  /** What the server gives up for now. @param {string} message empty: nothing */
  showDegraded(message) {
    element("degraded").hidden = !message;
    setText(element("degraded-text"), message);
  }

  /** @param {import("/static/readiness.js").Readiness & {version?: string}} readiness */
  showServer(readiness) {
    element("server").dataset.state = readiness.status;
    const step = readiness.status === "loading" ? readiness.progress.at(-1) : "";
    const words = SERVER_WORDS[readiness.status] ?? readiness.status;
    setText(element("server-text"), step ? `${words}: ${step}` : words);
    if (readiness.status === "unreachable") return; // what was known about its engines stands
    const engines = readiness.engines.map(engineEntry);
    const none = make("li", "engine-detail", readiness.detail || "The server has not named its engines yet.");
    element("engines").replaceChildren(...(engines.length ? engines : [none]));
    element("server-notes").replaceChildren(...readiness.notes.map((note) => make("li", "", note)));
    setText(element("version"), readiness.version ? `voice_rtc ${readiness.version}` : "");
  }

  /** @param {import("/static/captions.js").Turn[]} turns */
  showCaptions(turns) {
    const atEnd = this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 80;
    element("captions-empty").hidden = turns.length > 0;
    const existing = new Map([...this.#captions.children].map((item) => [item.dataset.id, item]));
    turns.forEach((turn, place) => {
      const item = existing.get(turn.id) ?? make("li", "turn");
      existing.delete(turn.id);
      showTurn(item, turn);
      if (this.#captions.children[place] !== item) {
        this.#captions.insertBefore(item, this.#captions.children[place] ?? null);
      }
      this.#announce(turn);
    });
    for (const gone of existing.values()) gone.remove();
    if (atEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  /** Forget what was announced: a new call begins. */
  forgetCaptions() {
    this.#announced.clear();
    this.#announcer.replaceChildren();
  }

  /**
   * Partial captions change many times a second: a screen reader is told each turn once, when its
   * words are settled.
   * @param {import("/static/captions.js").Turn} turn
   */
  #announce(turn) {
    if (this.#announced.has(turn.id) || turn.phase !== "final" || !turn.text.trim()) return;
    this.#announced.add(turn.id);
    const words = turn.interrupted ? `${turn.heard.trim()} (interrupted)` : turn.text;
    this.#announcer.append(make("p", "", `${SIDES[turn.side]}: ${words}`));
    while (this.#announcer.children.length > 5) this.#announcer.firstElementChild.remove();
  }

  /**
   * @param {{microphones: MediaDeviceInfo[], speakers: MediaDeviceInfo[]}} devices
   * @param {{microphone: string, speaker: string, canChooseSpeaker: boolean}} chosen
   */
  showDevices({ microphones, speakers }, { microphone, speaker, canChooseSpeaker }) {
    fillSelect(element("microphone"), microphones, microphone, "Microphone");
    fillSelect(element("speaker"), speakers, speaker, "Speaker");
    element("speaker").hidden = element("speaker-label").hidden = !canChooseSpeaker;
    element("speaker-missing").hidden = canChooseSpeaker;
  }

  /** Take the typed text out of the field. @returns {string} */
  takeText() {
    const text = element("text").value.trim();
    element("text").value = "";
    return text;
  }

  /** @param {string} text */
  putText(text) {
    element("text").value = text;
  }

  /** Where the caller goes on in a text call; who is busy elsewhere meanwhile stays there. */
  focusText() {
    const idle = [document.body, element("call"), null];
    if (idle.includes(document.activeElement)) element("text").focus();
  }
}

/** Setting an equal text would make screen readers say it again. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Setting an equal value would have the browser draw for nothing. */
function setLevel(node, level) {
  const value = level.toFixed(2);
  if (node.style.getPropertyValue("--level") !== value) node.style.setProperty("--level", value);
}

/** @param {HTMLElement} meter @param {number} level */
function showLevel(meter, level) {
  setLevel(meter, level);
  const percent = String(Math.round(level * 20) * 5); // coarse: read when asked, not a stream of changes
  if (meter.getAttribute("aria-valuenow") !== percent) meter.setAttribute("aria-valuenow", percent);
}

/** What each caption shows, so that only changed ones are built again. @type {WeakMap<Element, string>} */
const shown = new WeakMap();

/** @param {HTMLElement} item @param {import("/static/captions.js").Turn} turn */
function showTurn(item, turn) {
  const state = JSON.stringify(turn);
  if (shown.get(item) === state) return;
  shown.set(item, state);
  Object.assign(item.dataset, { id: turn.id, side: turn.side, phase: turn.phase });
  const side = make("p", "turn-side", SIDES[turn.side]);
  if (turn.interrupted) side.append(icon("cut"), "interrupted");
  item.replaceChildren(side, make("p", "turn-text", ...turnWords(turn)));
}

/** @param {import("/static/captions.js").Turn} turn @returns {(string | Node)[]} */
function turnWords(turn) {
  if (turn.phase === "failed") return [note("This could not be transcribed. Please say it again.")];
  if (turn.unheard) return [`${turn.heard.trimEnd()} `, unheardWords(turn.unheard.trim())];
  if (turn.heard.trim()) return [turn.heard];
  if (turn.phase === "speaking") return [note("Listening…")];
  return [note(turn.phase === "transcribing" ? "Writing down…" : "Nothing was understood.")];
}

/** @param {string} text */
function unheardWords(text) {
  const words = make("s", "unheard");
  words.append(make("span", "hidden", "Not heard: "), text);
  return words;
}

/** @param {string} text */
const note = (text) => make("span", "turn-note", text);

/** @param {import("/static/readiness.js").Engine} engine */
function engineEntry(engine) {
  const name = engine.model ? `${engine.name} · ${engine.model}` : engine.name;
  return make(
    "li",
    "engine",
    make("p", "engine-kind", KINDS[engine.kind] ?? engine.kind),
    make("p", "engine-name", name),
    ...[engine.reason, ...engine.notes].filter(Boolean).map((text) => make("p", "engine-detail", text)),
  );
}

/** @param {HTMLSelectElement} select */
function fillSelect(select, devices, chosen, word) {
  const options = devices.map((device, place) => {
    return new Option(device.label || `${word} ${place + 1}`, device.deviceId);
  });
  select.replaceChildren(new Option("Default", ""), ...options);
  select.value = chosen;
  if (select.selectedIndex < 0) select.value = "";
}
