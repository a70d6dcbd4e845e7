/**
 * One call: the peer connection, its signaling and the data channel (OpenAI Realtime over WebRTC).
 */

import { CallFailure, refusal } from "/static/errors.js";
import { HEARTBEAT, Heartbeat, INTERVAL_MS } from "/static/heartbeat.js";
import { iceConfiguration } from "/static/ice.js";

const CALLS_URL = "/v1/realtime/calls";
const CHANNEL = "oai-events";
const ANSWER_MS = 15_000;
const CONNECT_MS = 20_000;
/** So long a connection stays after hanging up, for the server to hear of it first. */
const TELL_MS = 1_000;
/** ICE recovers by itself from short gaps; past this a gap is a loss. */
const GAP_MS = 8_000;
/** Nothing that was said is lost by calling again from the waiting line, and the place is kept. */
const WAITING_GAP_MS = 2_000;

/**
 * @typedef {object} Listeners
 * @property {(event: any) => void} onEvent a server event came
 * @property {(stream: MediaStream) => void} onRemoteStream the agent's sound is there
 * @property {(interrupted: boolean) => void} onInterruption the network is gone or back
 * @property {(failure: CallFailure) => void} onLost the call is over and nobody hung up
 */

/** A connected call. Made by `Call.place`, then `watch`; over after `hangUp`, `drop` or `onLost`. */
export class Call {
  /** @type {string} */
  id = "";
  /** @type {RTCPeerConnection} */
  #peer;
  /** @type {RTCDataChannel} */
  #channel;
  /** @type {RTCRtpSender} */
  #sender;
  /** @type {Listeners} */
  #listeners;
  /** In the waiting line. */
  waits = false;
  #over = false;
  #told = false;
  /** `voice_rtc.call.ended` came: the page knows why, and the server need not be told. */
  #explained = false;
  #gapTimer = 0;
  #heartbeat = new Heartbeat(performance.now());
  #beatTimer = 0;
  /** The server does not answer at the moment. */
  #unanswered = false;
  #greet = () => {};

  /** @param {RTCConfiguration} ice @param {MediaStreamTrack} track @param {Listeners} listeners */
  constructor(ice, track, listeners) {
    this.#listeners = listeners;
    this.#peer = new RTCPeerConnection(ice);
    this.#channel = this.#peer.createDataChannel(CHANNEL);
    this.#sender = this.#peer.addTrack(track, new MediaStream([track]));
    this.#peer.ontrack = ({ track: remote, streams }) => {
      listeners.onRemoteStream(streams[0] ?? new MediaStream([remote]));
    };
    this.#channel.onmessage = ({ data }) => this.#receive(data);
  }

  /**
   * Offer, answer, connect. Resolves when the server has greeted.
   * @param {MediaStreamTrack} track the caller's sound; silence in a text call
   * @param {Listeners} listeners
   * @param {AbortSignal} signal aborted when the caller hangs up before the call stands
   * @param {string} [resume] the token of a place in the waiting line
   * @returns {Promise<Call>}
   * @throws {CallFailure} or an AbortError
   */
  static async place(track, listeners, signal, resume = "") {
    const call = new Call(await iceConfiguration(signal), track, listeners);
    try {
      await call.#connect(signal, resume);
      return call;
    } catch (error) {
      call.hangUp();
      throw error;
    }
  }

  /** @param {AbortSignal} signal @param {string} resume */
  async #connect(signal, resume) {
    await this.#peer.setLocalDescription();
    // No waiting for candidates: the server learns this side's address from its connectivity checks.
    const url = resume ? `${CALLS_URL}?resume=${encodeURIComponent(resume)}` : CALLS_URL;
    const answer = await this.#exchange(url, this.#peer.localDescription?.sdp ?? "", signal);
    signal.throwIfAborted();
    await this.#peer.setRemoteDescription({ type: "answer", sdp: answer });
    await this.#greeted(signal);
  }

  /** From now on tell of interruptions and loss; the owner calls this once, after `place`. */
  watch() {
    this.#peer.onconnectionstatechange = () => this.#watchConnection();
    this.#channel.onclose = () => this.#lost("connection_lost");
    if (this.#channel.readyState !== "open") this.#lost("connection_lost");
    else if (this.#peer.connectionState !== "connected") this.#watchConnection();
    if (this.#over) return;
    this.#heartbeat = new Heartbeat(performance.now());
    this.#beatTimer = setInterval(() => this.#beat(), INTERVAL_MS);
    this.#beat();
  }

  #beat() {
    this.send({ type: HEARTBEAT });
    const state = this.#heartbeat.beat(performance.now(), this.waits);
    if (state === "lost") return this.#lost("connection_lost");
    if (this.#unanswered === (state === "gap")) return;
    this.#unanswered = state === "gap";
    this.#listeners.onInterruption(this.#unanswered || this.#peer.connectionState === "disconnected");
  }

  /** @param {string} url @param {string} offer @param {AbortSignal} signal @returns {Promise<string>} */
  async #exchange(url, offer, signal) {
    const deadline = AbortSignal.timeout(ANSWER_MS);
    let response;
    try {
      response = await fetch(url, {
        method: "POST",
        headers: { "Content-Type": "application/sdp" },
        body: offer,
        signal: AbortSignal.any([signal, deadline]),
      });
    } catch (error) {
      signal.throwIfAborted();
      throw new CallFailure("server_unreachable", { message: String(error) });
    }
    if (response.status !== 201) throw await refusal(response);
    this.id = response.headers.get("Location")?.split("/").pop() ?? "";
    return response.text();
  }

  /** @param {AbortSignal} signal @returns {Promise<void>} */
  #greeted(signal) {
    return new Promise((resolve, reject) => {
      const failed = () => reject(new CallFailure("no_media_connection"));
      const timer = setTimeout(failed, CONNECT_MS);
      this.#greet = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#channel.onclose = failed;
      this.#peer.onconnectionstatechange = () => {
        if (this.#peer.connectionState === "failed") failed();
      };
      signal.addEventListener("abort", () => reject(signal.reason));
    });
  }

  /** @param {string} data */
  #receive(data) {
    const event = JSON.parse(data);
    this.#heartbeat.heard(event.type, performance.now());
    if (event.type === HEARTBEAT) return;
    if (event.type === "session.created") this.#greet();
    if (event.type === "voice_rtc.call.ended") this.#explained = true;
    this.#listeners.onEvent(event);
  }

  #watchConnection() {
    const state = this.#peer.connectionState;
    if (state === "failed" || state === "closed") this.#lost("connection_lost");
    if (this.#over) return;
    clearTimeout(this.#gapTimer);
    if (state === "disconnected") {
      const patience = this.waits ? WAITING_GAP_MS : GAP_MS;
      this.#gapTimer = setTimeout(() => this.#lost("connection_lost"), patience);
    }
    this.#listeners.onInterruption(state === "disconnected" || this.#unanswered);
  }

  /** @param {string} code */
  #lost(code) {
    if (this.#over || this.#explained) return;
    this.drop();
    this.#listeners.onLost(new CallFailure(code));
  }

  /**
   * Send client events, in order. False when the channel is not open.
   * @param {...object} events
   */
  send(...events) {
    if (this.#channel.readyState !== "open") return false;
    for (const event of events) this.#channel.send(JSON.stringify(event));
    return true;
  }

  /** Speak with another microphone from now on. @param {MediaStreamTrack} track */
  async replaceTrack(track) {
    await this.#sender.replaceTrack(track);
  }

  /** Round-trip time of the media path in milliseconds, or null while unknown. */
  async roundTripMs() {
    for (const report of (await this.#peer.getStats()).values()) {
      if (report.type === "candidate-pair" && report.nominated && report.currentRoundTripTime != null) {
        return Math.round(report.currentRoundTripTime * 1000);
      }
    }
    return null;
  }

  /** End the call on both sides, and give up its place in the line. Safe to call twice. */
  hangUp() {
    this.#leave();
    if (!this.id || this.#explained || this.#told) return this.#peer.close();
    this.#told = true;
    // The connection closes after that: one that closes first is an accident to the server.
    const told = Promise.race([endCall(this.id), new Promise((done) => setTimeout(done, TELL_MS))]);
    void told.then(() => this.#peer.close());
  }

  /**
   * Close the connection and leave it to the server to notice: a place in the waiting line is kept.
   * Safe to call twice, and while the page goes away.
   */
  drop() {
    this.#leave();
    this.#peer.close();
  }

  /** Nothing that still comes is heard any more. Whoever owns the microphone stops it. */
  #leave() {
    this.#over = true;
    clearTimeout(this.#gapTimer);
    clearInterval(this.#beatTimer);
    this.#peer.onconnectionstatechange = null;
    this.#channel.onclose = null;
    this.#channel.onmessage = null;
  }
}

/** Tell the server that a call is over, and give up its place in the line. @param {string} id */
export async function endCall(id) {
  try {
    await fetch(`${CALLS_URL}/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true });
  } catch (error) {
    // The call is over here either way, and the server sees the peer connection close.
    console.warn("the server could not be told that the call is over:", error);
  }
}
