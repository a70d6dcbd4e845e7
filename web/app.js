/**
 * The call page: wires the call, the captions, the microphone and the view together.
 *
 * `window.voiceRtc` is a read-only window into its state, for tests and curious people.
 */

import { Activity } from "/static/activity.js";
import { Call } from "/static/call.js";
import { Captions } from "/static/captions.js";
import { CallFailure, isQuietEnd, noticeFor, noticeForEvent, noticeForReply } from "/static/errors.js";
import { bindHolding } from "/static/holding.js";
import { dropTalk, pressTalk, releaseTalk, stopReply, turnDetection, typedTurn } from "/static/messages.js";
import { LevelMeter } from "/static/meter.js";
import { watchReadiness } from "/static/readiness.js";
import { canChooseSpeaker, listDevices, openMicrophone, silentTrack } from "/static/sound.js";
import { PushToTalk } from "/static/talk.js";
import { View } from "/static/view.js";

const STATISTICS_MS = 1_000;
const RETRY_SECONDS = 2;
const NO_METRICS = {
  response_ms: null,
  endpoint_ms: null,
  stt_ms: null,
  llm_first_token_ms: null,
  tts_first_audio_ms: null,
};

const STATUS_WORDS = {
  idle: "Ready when you are",
  connecting: "Connecting…",
  waiting: "Waiting for the server",
  interrupted: "The connection is interrupted",
  ended: "Call ended",
  failed: "No call",
};

const FLOOR_WORDS = {
  caller: "You are speaking",
  agent: "Agent is speaking",
  thinking: "Thinking…",
  listening: "Listening",
};

const BUTTON_WORDS = { connecting: "Cancel", waiting: "Cancel", live: "Hang up", interrupted: "Hang up" };

/** One open page; at most one call at a time. */
class CallPage {
  /** @type {"idle" | "connecting" | "waiting" | "live" | "interrupted" | "ended" | "failed"} */
  status = "idle";
  activity = new Activity();
  captions = new Captions();
  /** The newest failure: code, title, text. @type {object | null} */
  lastError = null;
  metrics = { ...NO_METRICS, round_trip_ms: /** @type {number | null} */ (null) };
  readiness = null;
  muted = false;
  /** No microphone in this call: the caller types. */
  textOnly = false;
  remoteLevel = 0;
  localLevel = 0;

  #view = new View();
  #talk = new PushToTalk({
    onMicrophone: () => this.#openMicrophone(),
    onPress: () => this.#call?.send(...pressTalk(this.activity)),
    onTurn: () => this.#call?.send(...releaseTalk()),
    onSlip: () => this.#slip(),
  });
  /** @type {Call | null} */
  #call = null;
  /** There from the press of Call to the end of the call. @type {AbortController | null} */
  #attempt = null;
  /** @type {MediaStreamTrack | null} */
  #microphone = null;
  /** The caller's side of text calls. @type {MediaStreamTrack | null} */
  #silence = null;
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {LevelMeter | null} */
  #localMeter = null;
  /** @type {LevelMeter | null} */
  #remoteMeter = null;
  #remoteEnergy = 0;
  #connectedAt = 0;
  #drawing = false;
  #statisticsTimer = 0;
  #chosen = { microphone: "", speaker: "", canChooseSpeaker: canChooseSpeaker() };

  get callId() {
    return this.#call?.id ?? null;
  }

  /** Grows while the agent is heard; starts anew with each call. */
  get remoteEnergy() {
    return this.#remoteMeter?.energy ?? this.#remoteEnergy;
  }

  get pushToTalk() {
    return this.#talk.enabled;
  }

  /** Show the page and listen to the caller. */
  start() {
    this.#bind();
    this.#render();
    void this.#refreshDevices();
    void watchReadiness((readiness) => {
      this.readiness = readiness;
      this.#view.showServer(readiness);
    });
  }

  // ------------------------------------------------------------ placing and ending a call

  /** @param {boolean} textOnly */
  async #place(textOnly) {
    if (this.#attempt) return;
    if (!("RTCPeerConnection" in window)) return this.#fail(new CallFailure("webrtc_missing"));
    const attempt = new AbortController();
    this.#attempt = attempt;
    this.#begin(textOnly);
    try {
      const track = await this.#callersTrack(attempt.signal);
      const call = await this.#placeUntilReady(track, attempt.signal);
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

  /** @param {boolean} textOnly */
  #begin(textOnly) {
    this.textOnly = textOnly;
    this.activity = new Activity();
    this.captions.clear();
    this.#view.forgetCaptions();
    this.#view.showCaptions([]);
    this.metrics = { ...NO_METRICS, round_trip_ms: null };
    this.#view.showTiming(this.metrics);
    this.#remoteEnergy = 0;
    this.lastError = null;
    this.#view.showNotice(null);
    this.#context ??= new AudioContext();
    // Pending until a click allows it where autoplay is blocked; the meters then stay at zero.
    void this.#context.resume();
    this.#setStatus("connecting");
    this.#startDrawing();
  }

  /** @param {AbortSignal} signal @returns {Promise<MediaStreamTrack>} */
  async #callersTrack(signal) {
    const context = /** @type {AudioContext} */ (this.#context);
    if (this.textOnly) return (this.#silence ??= silentTrack(context));
    const track = await openMicrophone(this.#chosen.microphone);
    if (signal.aborted) track.stop();
    signal.throwIfAborted();
    this.#useMicrophone(track);
    void this.#refreshDevices(); // names are known from now on
    return track;
  }

  /**
   * Call again by itself for as long as the server says that it will be ready soon.
   * @param {MediaStreamTrack} track @param {AbortSignal} signal
   */
  async #placeUntilReady(track, signal) {
    for (;;) {
      try {
        return await Call.place(track, this.#listeners(), signal);
      } catch (error) {
        if (!(error instanceof CallFailure) || !noticeFor(error.code).retry) throw error;
        // What failed to load is not waited for; /readyz knows, the refusal does not say.
        if (this.readiness?.status === "failed") throw new CallFailure("engines_failed");
        this.#note(error);
        await this.#countDown(error.detail.retryAfterSeconds ?? RETRY_SECONDS, signal);
        this.#view.showNotice(null);
        this.#setStatus("connecting");
      }
    }
  }

  /** @param {number} seconds @param {AbortSignal} signal */
  async #countDown(seconds, signal) {
    this.#setStatus("waiting");
    for (let left = seconds; left > 0; left -= 1) {
      this.#view.showCountdown(left);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
  }

  #connected() {
    this.#connectedAt = performance.now();
    this.#statisticsTimer = setInterval(() => void this.#readStatistics(), STATISTICS_MS);
    if (this.#talk.enabled) this.#call?.send(...turnDetection(true));
    this.#openMicrophone();
    this.#setStatus("live");
    if (this.textOnly) this.#view.focusText();
    this.#call?.watch();
  }

  /** @returns {import("/static/call.js").Listeners} */
  #listeners() {
    return {
      onEvent: (event) => this.#receive(event),
      onRemoteStream: (stream) => this.#play(stream),
      onInterruption: (interrupted) => this.#setStatus(interrupted ? "interrupted" : "live"),
      onLost: (failure) => this.#fail(failure),
    };
  }

  #hangUp() {
    this.#release();
    this.#view.showNotice(null);
    this.#setStatus("ended");
  }

  /** @param {CallFailure} failure */
  #fail(failure) {
    this.#release();
    this.#note(failure);
    this.#setStatus("failed");
  }

  /** Give back everything a call held. */
  #release() {
    clearInterval(this.#statisticsTimer);
    this.#attempt?.abort();
    this.#attempt = null;
    this.#call?.hangUp();
    this.#call = null;
    this.#talk.reset();
    this.#remoteEnergy = this.remoteEnergy;
    this.#localMeter?.close();
    this.#remoteMeter?.close();
    this.#localMeter = this.#remoteMeter = null;
    this.#microphone?.stop();
    this.#microphone = null;
    this.#view.audio.srcObject = null;
    this.muted = false;
    this.activity = new Activity();
  }

  // ------------------------------------------------------------ during the call

  /** @param {any} event */
  #receive(event) {
    this.activity.apply(event);
    if (this.captions.apply(event)) this.#view.showCaptions(this.captions.turns);
    if (event.type === "voice_rtc.turn.metrics") this.#takeMetrics(event);
    if (event.type === "voice_rtc.going_away") this.#goingAway(event);
    if (event.type === "voice_rtc.call.ended") this.#endedByServer(event);
    if (event.type === "error") this.#show(noticeForEvent(event.error), event.error.code);
    if (event.type === "response.done" && event.response.status === "failed") {
      this.#show(noticeForReply(event.response.status_details?.error), "reply_failed");
    }
    this.#render();
  }

  /** @param {any} event */
  #takeMetrics(event) {
    for (const name of Object.keys(NO_METRICS)) this.metrics[name] = event[name] ?? null;
    this.#view.showTiming(this.metrics);
    this.#showFigures();
  }

  /** @param {{deadline_seconds: number}} event */
  #goingAway({ deadline_seconds }) {
    const text = `It ends this call within ${Math.ceil(deadline_seconds)} seconds: finish what you were saying.`;
    this.#show({ title: "The server is about to shut down", text, remedy: null, retry: false }, "going_away");
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
    this.#openMicrophone();
    this.#render();
  }

  #togglePushToTalk() {
    this.#talk.reset();
    this.#talk.enabled = !this.#talk.enabled;
    this.muted = false; // push-to-talk decides from now on
    this.#call?.send(...turnDetection(this.#talk.enabled));
    this.#openMicrophone();
    this.#render();
  }

  #slip() {
    this.#call?.send(...dropTalk());
    const text = "Keep the button or the space bar down for as long as you speak.";
    this.#show({ title: "That was too short", text, remedy: null, retry: false }, "talk_too_short");
  }

  /** @param {boolean} pressed */
  #pressTalk(pressed) {
    // Letting go is always heard: else a gap in the network would leave the microphone open.
    if (pressed && (this.status !== "live" || this.textOnly)) return;
    if (pressed && this.lastError?.code === "talk_too_short") this.#view.showNotice(null);
    if (pressed) this.#talk.press();
    else this.#talk.release();
    this.#render();
  }

  async #readStatistics() {
    this.metrics.round_trip_ms = (await this.#call?.roundTripMs()) ?? null;
    this.#showFigures();
  }

  // ------------------------------------------------------------ sound

  /** @param {MediaStreamTrack} track */
  #useMicrophone(track) {
    this.#microphone?.stop();
    this.#microphone = track;
    track.onended = () => this.#show(noticeFor("microphone_lost"), "microphone_lost");
    this.#localMeter?.close();
    const context = /** @type {AudioContext} */ (this.#context);
    this.#localMeter = new LevelMeter(context, new MediaStream([track]));
    this.#openMicrophone();
  }

  #openMicrophone() {
    if (this.#microphone) this.#microphone.enabled = !this.muted && this.#talk.open;
  }

  /** @param {MediaStream} stream */
  #play(stream) {
    this.#view.audio.srcObject = stream;
    this.#remoteMeter?.close();
    this.#remoteMeter = new LevelMeter(/** @type {AudioContext} */ (this.#context), stream);
    void this.#startSound();
  }

  async #startSound() {
    try {
      await this.#view.audio.play();
    } catch (error) {
      const name = error instanceof Error ? error.name : "";
      if (name === "AbortError") return; // hung up meanwhile
      if (name !== "NotAllowedError") throw error;
      this.#show(noticeFor("sound_blocked"), "sound_blocked");
    }
  }

  async #unblockSound() {
    this.#view.showNotice(null);
    await this.#context?.resume();
    await this.#startSound();
  }

  /** @param {string} deviceId */
  async #chooseMicrophone(deviceId) {
    this.#chosen.microphone = deviceId;
    if (!this.#call || this.textOnly) return;
    try {
      const call = this.#call;
      const track = await openMicrophone(deviceId);
      if (this.#call !== call) {
        track.stop(); // the call ended meanwhile
        return;
      }
      this.#useMicrophone(track);
      await call.replaceTrack(track);
    } catch (error) {
      if (!(error instanceof CallFailure)) throw error;
      this.#note(error);
    }
  }

  /** @param {string} deviceId */
  async #chooseSpeaker(deviceId) {
    try {
      await this.#view.audio.setSinkId(deviceId);
      this.#chosen.speaker = deviceId;
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.#show(noticeFor("speaker_unusable"), "speaker_unusable");
      void this.#refreshDevices();
    }
  }

  async #refreshDevices() {
    this.#view.showDevices(await listDevices(), this.#chosen);
  }

  #startDrawing() {
    if (this.#drawing) return; // the last call's loop has not seen its end yet
    this.#drawing = true;
    this.#drawLevels();
  }

  #drawLevels() {
    this.localLevel = this.#localMeter?.read() ?? 0;
    this.remoteLevel = this.#remoteMeter?.read() ?? 0;
    this.#view.showLevels(this.localLevel, this.remoteLevel);
    // An idle page draws nothing.
    if (this.#attempt) requestAnimationFrame(() => this.#drawLevels());
    else this.#drawing = false;
  }

  // ------------------------------------------------------------ what is shown

  /** @param {CallFailure} failure */
  #note(failure) {
    this.#show(noticeFor(failure.code, failure.message), failure.code);
  }

  /** @param {import("/static/errors.js").Notice | null} notice @param {string} [code] */
  #show(notice, code = "error") {
    if (!notice) return;
    this.lastError = { code, title: notice.title, text: notice.text };
    this.#view.showNotice(notice);
  }

  /** @param {CallPage["status"]} status */
  #setStatus(status) {
    this.status = status;
    this.#showFigures();
    this.#render();
  }

  #showFigures() {
    const seconds = this.#call ? (performance.now() - this.#connectedAt) / 1000 : null;
    this.#view.showFigures({
      response: this.metrics.response_ms,
      roundTrip: this.metrics.round_trip_ms,
      seconds,
    });
  }

  #render() {
    const live = this.status === "live";
    const hasMicrophone = this.#microphone !== null;
    this.#view.showStatus({
      status: this.status,
      words: this.#words(),
      connection: this.#connectionWords(),
      hint: this.#hint(),
      button: BUTTON_WORDS[this.status] ?? "Call",
    });
    this.#view.showControls({
      live,
      canTalk: live && hasMicrophone,
      muted: this.muted,
      canStop: live && (this.activity.responding || this.activity.playing),
      pushToTalk: this.#talk.enabled,
      held: this.#talk.held,
    });
  }

  #words() {
    if (this.status !== "live") return STATUS_WORDS[this.status];
    if (this.#talk.held) return "You are speaking";
    const { floor } = this.activity;
    if (floor !== "listening") return FLOOR_WORDS[floor];
    if (this.textOnly) return "Ready for your message";
    if (this.muted) return "You are muted";
    return this.#talk.enabled ? "Hold to talk" : FLOOR_WORDS.listening;
  }

  #connectionWords() {
    if (this.status !== "live") return STATUS_WORDS[this.status];
    return this.muted ? "Connected, you are muted" : "Connected";
  }

  #hint() {
    if (this.status === "connecting") return "Allow the microphone if the browser asks.";
    if (this.status === "interrupted") return "Trying to get it back; no need to do anything.";
    if (this.status === "failed" || this.status === "waiting") return "";
    if (this.status !== "live") return "Press Call and start talking.";
    if (this.textOnly) return "Text call: type below, the agent answers aloud.";
    if (this.#talk.enabled) return "Push to talk is on.";
    return this.muted ? "Press Mute again to be heard." : "Speak naturally. You can interrupt at any time.";
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
    on("notice-sound", "click", () => void this.#unblockSound());
    on("notice-dismiss", "click", () => this.#view.showNotice(null));
    on("mute", "click", () => this.#toggleMute());
    on("stop", "click", () => this.#call?.send(...stopReply(this.activity)));
    on("ptt", "click", () => this.#togglePushToTalk());
    on("microphone", "change", (event) => void this.#chooseMicrophone(event.target.value));
    on("speaker", "change", (event) => void this.#chooseSpeaker(event.target.value));
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
    navigator.mediaDevices?.addEventListener("devicechange", () => void this.#refreshDevices());
    window.addEventListener("pagehide", () => {
      if (this.#attempt) this.#hangUp();
    });
  }
}

const page = new CallPage();
page.start();

/** Plain copies only: nothing here reaches into the page. */
Object.defineProperty(window, "voiceRtc", {
  value: Object.freeze({
    get status() {
      return page.status;
    },
    get floor() {
      return page.activity.floor;
    },
    get callId() {
      return page.callId;
    },
    get captions() {
      return page.captions.turns;
    },
    get remoteEnergy() {
      return page.remoteEnergy;
    },
    get remoteLevel() {
      return page.remoteLevel;
    },
    get localLevel() {
      return page.localLevel;
    },
    get lastError() {
      return page.lastError && { ...page.lastError };
    },
    get metrics() {
      return { ...page.metrics };
    },
    get muted() {
      return page.muted;
    },
    get pushToTalk() {
      return page.pushToTalk;
    },
    get readiness() {
      return page.readiness && structuredClone(page.readiness);
    },
  }),
});
