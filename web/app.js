/**
 * The call page: wires the call, the captions, the microphone and the view together.
 *
 * `window.voiceRtc` is a read-only window into its state, for tests and curious people.
 */

import { Activity } from "/static/activity.js";
import { CallSound } from "/static/call-sound.js";
import { Call, endCall } from "/static/call.js";
import { Captions } from "/static/captions.js";
import { CallFailure, isQuietEnd, noticeFor, noticeForEvent, noticeForReply } from "/static/errors.js";
import { bindHolding } from "/static/holding.js";
import { LineView } from "/static/line-view.js";
import { WaitingLine } from "/static/line.js";
import { dropTalk, pressTalk, releaseTalk, stopReply, turnDetection, typedTurn } from "/static/messages.js";
import { Notices } from "/static/notices.js";
import { storePlace, takeStoredPlace, WayBack } from "/static/place.js";
import { watchReadiness } from "/static/readiness.js";
import { exposeState } from "/static/state.js";
import { PushToTalk } from "/static/talk.js";
import { showTiming } from "/static/timing-view.js";
import { Timing } from "/static/timing.js";
import { View } from "/static/view.js";
import { buttonWords, connectionWords, hintWords, statusWords, tabWords } from "/static/words.js";

const STATISTICS_MS = 1_000;
const RETRY_SECONDS = 2;
/** A call that has to wait is told so right behind the greeting: until then it is not shown live. */
const SETTLE_MS = 100;
/** How long the page says that the wait is over. */
const TURN_MS = 5_000;

/** Seconds that never run back. */
const seconds = () => performance.now() / 1000;

/** One open page; at most one call at a time. */
export class CallPage {
  /** @type {import("/static/words.js").Status} */
  status = "idle";
  activity = new Activity();
  captions = new Captions();
  timing = new Timing();
  /** @type {number | null} */
  roundTripMs = null;
  readiness = null;
  line = new WaitingLine();
  /** The wait was over a moment ago. */
  turnHasCome = false;
  /** What the server gives up for now: step, name, message. @type {object | null} */
  degraded = null;
  muted = false;
  /** No microphone in this call: the caller types. */
  textOnly = false;

  #view = new View();
  notices = new Notices(this.#view, () => this.#render());
  sound = new CallSound(this.#view, {
    // Who waits is not listened to: then nothing is to leave this device either.
    mayHear: () => !this.muted && !this.line.place && this.#talk.open,
    onProblem: (code) => this.notices.show(noticeFor(code), code),
    onFailure: (failure) => this.notices.note(failure),
  });
  #lineView = new LineView();
  #talk = new PushToTalk({
    onMicrophone: () => this.sound.openMicrophone(),
    onPress: () => this.#call?.send(...pressTalk(this.activity)),
    onTurn: () => this.#call?.send(...releaseTalk()),
    onSlip: () => this.#slip(),
  });
  /** @type {Call | null} */
  #call = null;
  /** There from the press of Call to the end of the call. @type {AbortController | null} */
  #attempt = null;
  #connectedAt = 0;
  #statisticsTimer = 0;
  #settleTimer = 0;
  #turnTimer = 0;
  #wayBack = new WayBack();
  /** Of the call whose place is kept while its connection is lost. */
  #lostId = "";
  /** Milliseconds since 1970. */
  #lostAt = 0;

  get callId() {
    return this.#call?.id ?? null;
  }

  get pushToTalk() {
    return this.#talk.enabled;
  }

  /** Show the page and listen to the caller. */
  start() {
    this.#bind();
    this.#render();
    void this.sound.refreshDevices();
    void watchReadiness((readiness) => {
      this.readiness = readiness;
      this.#view.showServer(readiness);
    });
  }

  // ------------------------------------------------------------ placing and ending a call

  /** @param {boolean} textOnly */
  async #place(textOnly) {
    if (this.#attempt) return;
    const attempt = this.#begin(textOnly, "connecting");
    await this.#connect(attempt, async () => {
      const track = await this.sound.callersTrack(textOnly, attempt.signal);
      return this.#placeUntilReady(track, attempt.signal);
    });
  }

  /** The page was loaded again a moment ago: its caller is not to lose the place. */
  async #takeUpStoredPlace() {
    const kept = takeStoredPlace();
    if (!kept || this.#attempt) return;
    this.muted = kept.call.muted;
    this.#talk.enabled = kept.call.pushToTalk;
    this.line.restore(kept, seconds());
    this.#lostId = kept.callId;
    this.#lostAt = kept.lostAt;
    const attempt = this.#begin(kept.call.textOnly, "returning");
    await this.#connect(attempt, async () => {
      const track = await this.sound.callersTrack(this.textOnly, attempt.signal);
      return this.#comeBack(track, attempt.signal);
    });
  }

  /** The connection is lost in the waiting line: the server keeps the place for a while. */
  async #returnToLine() {
    const attempt = /** @type {AbortController} */ (this.#attempt);
    const track = this.sound.sameTrack(this.textOnly);
    clearTimeout(this.#settleTimer);
    this.#wayBack.lost(seconds() - this.#connectedAt);
    this.#lostId = this.callId ?? "";
    this.#lostAt = Date.now();
    this.#call = null;
    this.line.doubt();
    this.#setStatus("returning");
    await this.#connect(attempt, () => this.#comeBack(track, attempt.signal));
  }

  /** @param {MediaStreamTrack} track @param {AbortSignal} signal */
  #comeBack(track, signal) {
    const attempt = () => this.#placeUntilReady(track, signal, this.line.token);
    return this.#wayBack.find(attempt, this.#lostAt, signal);
  }

  /** @param {AbortController} attempt @param {() => Promise<Call>} place */
  async #connect(attempt, place) {
    try {
      if (!("RTCPeerConnection" in window)) throw new CallFailure("webrtc_missing");
      const call = await place();
      if (attempt.signal.aborted) return call.hangUp();
      this.#call = call;
      this.#connected();
    } catch (error) {
      if (attempt.signal.aborted) return; // over before the call stood; already shown
      if (!(error instanceof CallFailure)) {
        this.#fail(new CallFailure("page_error", { message: String(error) }));
        throw error;
      }
      this.#fail(error);
    }
  }

  /** @param {boolean} textOnly @param {"connecting" | "returning"} status */
  #begin(textOnly, status) {
    const attempt = (this.#attempt = new AbortController());
    this.textOnly = textOnly;
    this.activity = new Activity();
    this.captions.clear();
    this.#view.forgetCaptions();
    this.#view.showCaptions([]);
    this.timing.clear();
    showTiming([]);
    this.roundTripMs = null;
    this.notices.lastError = null;
    this.notices.clear();
    this.sound.begin();
    this.#setStatus(status);
    return attempt;
  }

  /**
   * Call again by itself for as long as the server says that it will be ready soon.
   * @param {MediaStreamTrack} track @param {AbortSignal} signal @param {string} [resume]
   */
  async #placeUntilReady(track, signal, resume) {
    for (;;) {
      try {
        return await Call.place(track, this.#listeners(), signal, resume);
      } catch (error) {
        if (!(error instanceof CallFailure) || !noticeFor(error.code).retry) throw error;
        // What failed to load is not waited for; /readyz knows, the refusal does not say.
        if (this.readiness?.status === "failed") throw new CallFailure("engines_failed");
        this.notices.note(error);
        await this.#countDown(error.detail.retryAfterSeconds ?? RETRY_SECONDS, signal);
        this.notices.clear();
        this.#setStatus("connecting");
      }
    }
  }

  /** @param {number} seconds @param {AbortSignal} signal */
  async #countDown(seconds, signal) {
    this.#setStatus("loading");
    for (let left = seconds; left > 0; left -= 1) {
      this.#view.showCountdown(`Calling again in ${left} s.`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
  }

  #connected() {
    this.#lostId = "";
    this.#connectedAt = seconds();
    clearInterval(this.#statisticsTimer);
    this.#statisticsTimer = setInterval(() => void this.#readStatistics(), STATISTICS_MS);
    if (this.#talk.enabled) this.#call?.send(...turnDetection(true));
    this.sound.openMicrophone();
    this.#settleTimer = setTimeout(() => {
      if (this.status !== "interrupted") this.#settled();
    }, SETTLE_MS);
    this.#call?.watch();
  }

  /** The server had time to tell that the call has to wait. */
  #settled() {
    if (this.line.settle()) this.#turnCame();
    else this.#stand();
  }

  /** Live, or in the waiting line. */
  #stand() {
    this.#setStatus(this.line.place ? "queued" : "live");
    if (this.textOnly && this.status === "live") this.#view.focusText();
  }

  /** @returns {import("/static/call.js").Listeners} */
  #listeners() {
    return {
      onEvent: (event) => this.#receive(event),
      onRemoteStream: (stream) => this.sound.play(stream),
      onInterruption: (interrupted) => {
        if (interrupted) this.#setStatus("interrupted");
        else if (this.status === "interrupted") this.#settled();
      },
      onLost: (failure) => {
        if (this.line.place) void this.#returnToLine();
        else this.#fail(failure);
      },
    };
  }

  #hangUp() {
    if (this.#lostId) void endCall(this.#lostId); // nobody is to wait for the place that is kept
    this.#release();
    this.notices.clear();
    this.#setStatus("ended");
  }

  /** The page goes away. In the waiting line that may be for a moment only: the place is kept. */
  #leavePage() {
    const { token, place, since } = this.line;
    if (place) {
      const call = { textOnly: this.textOnly, muted: this.muted, pushToTalk: this.#talk.enabled };
      const lostAt = this.#lostId ? this.#lostAt : Date.now();
      const callId = this.callId ?? this.#lostId;
      storePlace({ token, callId, place, waitedSeconds: seconds() - since, call, lostAt });
      this.#call?.drop();
      this.#call = null;
      this.#lostId = "";
    }
    this.#hangUp();
  }

  /** @param {CallFailure} failure */
  #fail(failure) {
    this.#release();
    this.notices.note(failure);
    this.#setStatus("failed");
  }

  /** Give back everything a call held. */
  #release() {
    clearInterval(this.#statisticsTimer);
    clearTimeout(this.#settleTimer);
    clearTimeout(this.#turnTimer);
    this.#attempt?.abort();
    this.#attempt = null;
    this.#call?.hangUp();
    this.#call = null;
    this.#lostId = "";
    this.line.leave();
    this.turnHasCome = false;
    this.#degrade(null);
    this.#talk.reset();
    this.sound.release();
    this.muted = false;
    this.activity = new Activity();
  }

  // ------------------------------------------------------------ during the call

  /** @param {any} event */
  #receive(event) {
    this.activity.apply(event);
    if (this.captions.apply(event)) this.#view.showCaptions(this.captions.turns);
    const moved = this.line.apply(event, seconds());
    if (moved === "granted") this.#turnCame();
    else if (moved) this.#waits();
    if (event.type === "voice_rtc.degraded") this.#degrade(event.step > 0 ? event : null);
    if (event.type === "voice_rtc.turn.metrics" && this.timing.apply(event)) this.#showTimes();
    if (event.type === "voice_rtc.going_away") this.#goingAway(event);
    if (event.type === "voice_rtc.call.ended") this.#endedByServer(event);
    if (event.type === "error") this.notices.show(noticeForEvent(event.error), event.error.code);
    if (event.type === "response.done" && event.response.status === "failed") {
      this.notices.show(noticeForReply(event.response.status_details?.error), "reply_failed");
    }
    this.#render();
  }

  /** The caller stands in the line, at a new place perhaps. */
  #waits() {
    clearTimeout(this.#settleTimer);
    if (this.#call) this.#call.waits = true;
    this.sound.openMicrophone();
    this.#stand();
  }

  /** The wait is over: the caller is heard from now on. */
  #turnCame() {
    if (this.#call) this.#call.waits = false;
    this.#connectedAt = seconds();
    this.turnHasCome = true;
    this.#turnTimer = setTimeout(() => this.#turnSeen(), TURN_MS);
    this.sound.openMicrophone();
    this.#stand();
  }

  /** Who looks at another tab is told when it comes back. */
  #turnSeen() {
    if (document.hidden) {
      this.#turnTimer = setTimeout(() => this.#turnSeen(), TURN_MS);
      return;
    }
    this.turnHasCome = false;
    this.#render();
  }

  /** @param {{step: number, name: string, message: string} | null} news null: nothing is given up */
  #degrade(news) {
    this.degraded = news && { step: news.step, name: news.name, message: news.message };
    this.#view.showDegraded(news?.message ?? "");
  }

  #showTimes() {
    showTiming(this.timing.turns);
    this.#showFigures();
  }

  /** @param {{deadline_seconds: number}} event */
  #goingAway({ deadline_seconds }) {
    const rest = this.line.place ? "." : ": finish what you were saying.";
    const text = `It ends this call within ${Math.ceil(deadline_seconds)} seconds${rest}`;
    this.notices.show({ title: "The server is about to shut down", text, remedy: null, retry: false }, "going_away");
  }

  /** @param {{reason: string, message?: string}} event */
  #endedByServer({ reason, message }) {
    if (isQuietEnd(reason)) this.#hangUp();
    else this.#fail(new CallFailure(reason, { message }));
  }

  /** @param {string} text */
  #sendText(text) {
    if (!text) return;
    if (this.#call?.send(...typedTurn(text, this.activity))) return;
    this.#view.putText(text); // not sent: the caller keeps the words
  }

  #toggleMute() {
    this.muted = !this.muted;
    this.sound.openMicrophone();
    this.#render();
  }

  #togglePushToTalk() {
    this.#talk.reset();
    this.#talk.enabled = !this.#talk.enabled;
    this.muted = false; // push-to-talk decides from now on
    this.#call?.send(...turnDetection(this.#talk.enabled));
    this.sound.openMicrophone();
    this.#render();
  }

  #slip() {
    this.#call?.send(...dropTalk());
    const text = "Keep the button or the space bar down for as long as you speak.";
    this.notices.show({ title: "That was too short", text, remedy: null, retry: false }, "talk_too_short");
  }

  /** @param {boolean} pressed */
  #pressTalk(pressed) {
    // Letting go is always heard: else a gap in the network would leave the microphone open.
    if (pressed && (this.status !== "live" || this.textOnly)) return;
    if (pressed && this.notices.lastError?.code === "talk_too_short") this.notices.clear();
    if (pressed) this.#talk.press();
    else this.#talk.release();
    this.#render();
  }

  async #readStatistics() {
    this.roundTripMs = (await this.#call?.roundTripMs()) ?? null;
    this.#showFigures();
  }

  // ------------------------------------------------------------ what is shown

  /** @param {CallPage["status"]} status */
  #setStatus(status) {
    this.status = status;
    this.#showFigures();
    this.#render();
  }

  #showFigures() {
    const began = this.line.place ? this.line.since : this.#call ? this.#connectedAt : null;
    this.#view.showFigures({
      response: this.timing.answered?.response_ms ?? null,
      roundTrip: this.roundTripMs,
      seconds: began === null ? null : seconds() - began,
    });
  }

  #render() {
    const live = this.status === "live";
    const { hasMicrophone } = this.sound;
    const situation = {
      status: this.status,
      floor: this.activity.floor,
      line: this.line,
      turnHasCome: this.turnHasCome,
      mayRetry: this.notices.mayRetry,
      held: this.#talk.held,
      muted: this.muted,
      textOnly: this.textOnly,
      pushToTalk: this.#talk.enabled,
    };
    this.#view.showStatus({
      status: this.status,
      words: statusWords(situation),
      connection: connectionWords(situation),
      hint: hintWords(situation),
      button: buttonWords(this.status),
      tab: tabWords(situation),
    });
    this.#view.showControls({
      live,
      canTalk: live && hasMicrophone,
      canMute: (live || this.line.place !== null) && hasMicrophone,
      muted: this.muted,
      canStop: live && (this.activity.responding || this.activity.playing),
      pushToTalk: this.#talk.enabled,
      held: this.#talk.held,
    });
    this.#lineView.show(this.line.place, this.textOnly);
  }

  // ------------------------------------------------------------ what the caller does

  #bind() {
    const on = (id, type, act) => document.getElementById(id)?.addEventListener(type, act);
    on("call", "click", (event) => {
      if (event.detail > 1) return; // a double click must not call and hang up
      if (this.#attempt) this.#hangUp();
      else void this.#place(false);
    });
    on("notice-call", "click", () => void this.#place(false));
    on("notice-text-call", "click", () => void this.#place(true));
    on("notice-sound", "click", () => {
      this.notices.clear();
      void this.sound.unblock();
    });
    on("notice-dismiss", "click", () => this.notices.clear());
    on("mute", "click", () => this.#toggleMute());
    on("stop", "click", () => this.#call?.send(...stopReply(this.activity)));
    on("ptt", "click", () => this.#togglePushToTalk());
    on("microphone", "change", (event) => {
      void this.sound.chooseMicrophone(event.target.value, () => (this.textOnly ? null : this.#call));
    });
    on("speaker", "change", (event) => void this.sound.chooseSpeaker(event.target.value));
    on("text-form", "submit", (event) => {
      event.preventDefault();
      this.#sendText(this.#view.takeText());
    });
    bindHolding(/** @type {HTMLElement} */ (document.getElementById("hold")), {
      canTalk: () => this.#talk.enabled && this.status === "live" && !this.textOnly,
      isHeld: () => this.#talk.held,
      press: () => this.#pressTalk(true),
      release: () => this.#pressTalk(false),
    });
    navigator.mediaDevices?.addEventListener("devicechange", () => void this.sound.refreshDevices());
    window.addEventListener("pagehide", () => {
      if (this.#attempt) this.#leavePage();
    });
    window.addEventListener("pageshow", () => void this.#takeUpStoredPlace());
  }
}

const page = new CallPage();
page.start();
exposeState(page);
