/**
 * The pool page: follows the server and draws what it says.
 *
 * `window.voiceRtcPool` is a read-only window into its state, for tests and curious people.
 */

import { byId, setAttribute, setText } from "/static/dom.js";
import { ActionDialog, questions, token, TokenDialog } from "/static/pool-actions.js";
import { CallsTable } from "/static/pool-calls.js";
import { showCells } from "/static/pool-cells.js";
import { ChartGroup } from "/static/pool-chart.js";
import { Feed } from "/static/pool-feed.js";
import { clock, duration, latency, memory, number, percent } from "/static/pool-format.js";
import { showOverview } from "/static/pool-overview.js";
import { showAlerts, showEvents, showLadder, showLine, showReplicas, showSizing } from "/static/pool-tables.js";
import { showTurns } from "/static/pool-turns.js";

const LATE_SECONDS = 2.5;

const gigabytes = (/** @type {number} */ mb) => `${mb / 1000} GB`;

/** One open page. */
class PoolPage {
  /** @type {"connecting" | "live" | "lost" | "locked"} */
  connection = "connecting";
  /** The newest that the server said. @type {any} */
  status = null;
  updates = 0;
  /** When the newest came, in milliseconds of this page's clock; 0: nothing came yet. */
  #newestAt = 0;
  #retryAt = 0;
  #lostBecause = "";
  #tokenIsNew = false;
  #mode = "";

  #feed = new Feed({
    whole: (status) => {
      this.#charts.replace(status.history);
      this.#show(status);
    },
    event: (status) => {
      this.#charts.add(status.point);
      this.#show(status);
      this.#connect("live");
    },
    lost: (reason, seconds) => {
      this.#lostBecause = reason;
      this.#retryAt = performance.now() + seconds * 1000;
      this.#connect("lost");
    },
    refused: (code) => this.#refused(code),
  });

  #ask = {
    unlocked: false,
    hangUp: (/** @type {string} */ call) => this.#actions.ask(questions.hangUp(call), "calls-heading"),
    isolate: (/** @type {string} */ call) => this.#actions.ask(questions.isolate(call), "calls-heading"),
    restart: (/** @type {string} */ name) => this.#actions.ask(questions.restart(name), "replicas-heading"),
    quarantine: (/** @type {string} */ name) => this.#actions.ask(questions.quarantine(name), "replicas-heading"),
  };
  #calls = new CallsTable(this.#ask);
  #actions = new ActionDialog(() => this.#lock("The server does not take this token any more."));
  #unlocking = new TokenDialog((value) => this.#unlock(value));
  #charts = new ChartGroup(byId("charts"), byId("charts-empty"), [
    {
      title: "Slots",
      lines: [
        { key: "leased", label: "leased", look: "accent", area: true, steps: true },
        { key: "slots", label: "slots", look: "soft", steps: true },
        { key: "waiting", label: "waiting", look: "warm", steps: true },
      ],
      format: number,
      least: 4,
    },
    {
      title: "Final transcript, p95",
      lines: [{ key: "final_p95_ms", label: "p95", look: "accent" }],
      format: latency,
      tick: (ms) => `${ms / 1000} s`,
      least: 100,
      goal: () => (this.status?.sizing?.goal_seconds ?? null) && this.status.sizing.goal_seconds * 1000,
    },
    { title: "CPU", lines: [{ key: "cpu_percent", label: "of all cores", look: "accent", area: true }], format: percent, least: 100, full: 100 },
    { title: "Quality step", lines: [{ key: "ladder", label: "step", look: "warm", area: true, steps: true }], format: number, least: 5, full: 5 },
    { title: "Server memory", lines: [{ key: "rss_mb", label: "resident", look: "accent", area: true }], format: memory, tick: gigabytes, least: 1000 },
    { title: "GPU memory", lines: [{ key: "gpu_used_mb", label: "used", look: "accent", area: true }], format: memory, tick: gigabytes, least: 1000 },
  ]);

  constructor() {
    byId("lock").addEventListener("click", () => (this.operator ? this.#lock("") : this.#unlocking.open()));
    byId("stale-retry").addEventListener("click", () => (this.connection === "locked" ? this.#unlocking.open() : this.#feed.retry()));
    byId("notice-dismiss").addEventListener("click", () => this.#notice(""));
    this.#bindControls();
    addEventListener("hashchange", () => this.#takeToken());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible" && this.connection === "lost") this.#feed.retry();
    });
    setInterval(() => this.#tick(), 1000);
    this.#takeToken();
    void this.#feed.run();
  }

  get operator() {
    return Boolean(token.value) && this.#ask.unlocked;
  }

  #bindControls() {
    const ask = (/** @type {any} */ question) => this.#actions.ask(question, "controls-heading");
    byId("resize-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      ask(questions.resize(byId("resize-slots").valueAsNumber));
    });
    byId("resize-auto").addEventListener("click", () => ask(questions.resize(0)));
    byId("mode-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      ask(questions.mode(byId("mode").value));
    });
    byId("drain").addEventListener("click", () => ask(this.status?.status === "draining" ? questions.admit() : questions.drain()));
    byId("probe").addEventListener("click", () => ask(questions.probe()));
  }

  #takeToken() {
    const before = token.value;
    this.#tokenIsNew = token.load();
    this.#feed.token = token.value;
    if (token.value !== before && this.updates > 0) this.#feed.retry();
  }

  #unlock(/** @type {string} */ value) {
    token.set(value);
    this.#feed.token = value;
    this.#notice("");
    this.#feed.retry();
    byId("lock").focus();
  }

  /** Forget the token. @param {string} why shown, unless it is empty */
  #lock(why) {
    token.set("");
    this.#feed.token = "";
    this.#notice(why);
    this.#feed.retry();
  }

  #refused(/** @type {string} */ code) {
    if (code === "wrong_token") {
      this.#lock(this.#tokenIsNew ? "The token in the address is not the server's token." : "The server does not take this token any more.");
      return;
    }
    this.#connect("locked");
  }

  #notice(/** @type {string} */ text) {
    byId("notice").hidden = !text;
    setText(byId("notice-text"), text);
  }

  /** @param {any} status */
  #show(status) {
    this.status = status;
    this.updates += 1;
    this.#newestAt = performance.now();
    this.#ask.unlocked = Boolean(token.value) && status.redacted === false;
    showOverview(status);
    showAlerts(status);
    showCells(status);
    this.#calls.show(status);
    showReplicas(status, this.#ask);
    showLine(status);
    showTurns(status);
    showLadder(status);
    showSizing(status);
    showEvents(status);
    this.#showControls(status);
    this.#tick();
  }

  /** @param {any} status */
  #showControls(status) {
    const unlocked = this.#ask.unlocked;
    byId("controls").disabled = !unlocked;
    byId("controls-hint").hidden = unlocked;
    setText(byId("lock"), unlocked ? "Lock actions" : "Unlock actions");
    setAttribute(byId("lock"), "data-unlocked", String(unlocked));
    setText(byId("drain"), status.status === "draining" ? "Take new calls" : "Refuse new calls");
    const slots = byId("resize-slots");
    if (!slots.value && status.slots?.target) slots.value = status.slots.target;
    if (status.mode && status.mode !== this.#mode) byId("mode").value = this.#mode = status.mode;
  }

  /** @param {PoolPage["connection"]} connection */
  #connect(connection) {
    if (connection !== this.connection) {
      this.connection = connection;
      setAttribute(byId("main"), "data-connection", connection);
      setAttribute(byId("live"), "data-state", connection);
      const isLost = connection === "lost" || connection === "locked";
      setText(byId("stale-retry"), connection === "locked" ? "Enter the token" : "Try now");
      byId("stale").hidden = !isLost;
    }
    this.#tick();
  }

  /** What changes by itself while time passes. */
  #tick() {
    const age = (performance.now() - this.#newestAt) / 1000;
    const since = this.#newestAt ? clock(Date.now() / 1000 - age) : "";
    const live = age < LATE_SECONDS ? "Live" : `No news for ${duration(age)}`;
    const words = { connecting: "Connecting…", live, lost: "Not connected", locked: "Locked" };
    setText(byId("live-text"), words[this.connection]);
    const at = this.status?.now;
    setText(byId("history-time"), at ? `until ${clock(at, false)}` : "");
    if (this.connection === "locked") {
      setText(byId("stale-title"), "This server shows its pool to operators only.");
      setText(byId("stale-text"), "");
      setText(byId("stale-countdown"), "");
    } else if (this.connection === "lost") {
      setText(byId("stale-title"), since ? `Stale since ${since}.` : "No connection.");
      setText(byId("stale-text"), since ? `${this.#lostBecause} The figures below are old.` : this.#lostBecause);
      const left = Math.ceil((this.#retryAt - performance.now()) / 1000);
      const old = since ? `No news for ${duration(age)}. ` : "";
      setText(byId("stale-countdown"), old + (left > 0 ? `Trying again in ${duration(left)}.` : "Trying again…"));
    }
  }
}

const page = new PoolPage();
Object.defineProperty(window, "voiceRtcPool", {
  value: Object.freeze({
    get connection() {
      return page.connection;
    },
    get operator() {
      return page.operator;
    },
    get status() {
      return page.status;
    },
    get updates() {
      return page.updates;
    },
  }),
});
