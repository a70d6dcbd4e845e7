/**
 * The sound of both sides of a call: the microphone, the speaker, and how loud they are.
 */

import { CallFailure } from "/static/errors.js";
import { LevelMeter } from "/static/meter.js";
import { canChooseSpeaker, listDevices, openMicrophone, silentTrack } from "/static/sound.js";

/**
 * @typedef {object} SoundListeners
 * @property {() => boolean} mayHear is the caller to be heard now?
 * @property {(code: string) => void} onProblem something to tell the caller of; the call goes on
 * @property {(failure: CallFailure) => void} onFailure the same, of something that was tried
 */

/** There for as long as the page is; `begin` and `release` enclose each call. */
export class CallSound {
  remoteLevel = 0;
  localLevel = 0;
  #view;
  #listeners;
  /** From `begin` to `release`. */
  #active = false;
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
  #drawing = false;
  #chosen = { microphone: "", speaker: "", canChooseSpeaker: canChooseSpeaker() };

  /** @param {import("/static/view.js").View} view @param {SoundListeners} listeners */
  constructor(view, listeners) {
    this.#view = view;
    this.#listeners = listeners;
  }

  /** Grows while the agent is heard; starts anew with each call. */
  get remoteEnergy() {
    return this.#remoteMeter?.energy ?? this.#remoteEnergy;
  }

  get hasMicrophone() {
    return this.#microphone !== null;
  }

  /** A call begins. */
  begin() {
    this.#active = true;
    this.#remoteEnergy = 0;
    this.#context ??= new AudioContext();
    // Pending until a click allows it where autoplay is blocked; the meters then stay at zero.
    void this.#context.resume();
    this.#startDrawing();
  }

  /** Give back everything the call held. */
  release() {
    this.#active = false;
    this.#remoteEnergy = this.remoteEnergy;
    this.#localMeter?.close();
    this.#remoteMeter?.close();
    this.#localMeter = this.#remoteMeter = null;
    this.#microphone?.stop();
    this.#microphone = null;
    this.#view.audio.srcObject = null;
  }

  // ------------------------------------------------------------ the caller's side

  /**
   * What the caller says: the microphone, or silence in a text call.
   * @param {boolean} textOnly @param {AbortSignal} signal @returns {Promise<MediaStreamTrack>}
   */
  async callersTrack(textOnly, signal) {
    const context = /** @type {AudioContext} */ (this.#context);
    if (textOnly) return (this.#silence ??= silentTrack(context));
    const track = await openMicrophone(this.#chosen.microphone);
    if (signal.aborted) track.stop();
    signal.throwIfAborted();
    this.#useMicrophone(track);
    void this.refreshDevices(); // names are known from now on
    return track;
  }

  /** The one of `callersTrack`, again. @param {boolean} textOnly */
  sameTrack(textOnly) {
    return /** @type {MediaStreamTrack} */ (textOnly ? this.#silence : this.#microphone);
  }

  /** Open or shut it, as `mayHear` says. */
  openMicrophone() {
    if (this.#microphone) this.#microphone.enabled = this.#listeners.mayHear();
  }

  /** @param {MediaStreamTrack} track */
  #useMicrophone(track) {
    this.#microphone?.stop();
    this.#microphone = track;
    track.onended = () => this.#listeners.onProblem("microphone_lost");
    this.#localMeter?.close();
    const context = /** @type {AudioContext} */ (this.#context);
    this.#localMeter = new LevelMeter(context, new MediaStream([track]));
    this.openMicrophone();
  }

  /**
   * Use another microphone, in this call and those to come.
   * @param {string} deviceId
   * @param {() => import("/static/call.js").Call | null} current the call that it is for
   */
  async chooseMicrophone(deviceId, current) {
    this.#chosen.microphone = deviceId;
    const call = current();
    if (!call) return;
    try {
      const track = await openMicrophone(deviceId);
      if (current() !== call) {
        track.stop(); // the call ended meanwhile
        return;
      }
      this.#useMicrophone(track);
      await call.replaceTrack(track);
    } catch (error) {
      if (!(error instanceof CallFailure)) throw error;
      this.#listeners.onFailure(error);
    }
  }

  // ------------------------------------------------------------ the agent's side

  /** @param {MediaStream} stream */
  play(stream) {
    this.#view.audio.srcObject = stream;
    this.#remoteMeter?.close();
    this.#remoteMeter = new LevelMeter(/** @type {AudioContext} */ (this.#context), stream);
    void this.#start();
  }

  /** The caller clicked: now the browser allows sound. */
  async unblock() {
    await this.#context?.resume();
    await this.#start();
  }

  async #start() {
    try {
      await this.#view.audio.play();
    } catch (error) {
      const name = error instanceof Error ? error.name : "";
      if (name === "AbortError") return; // hung up meanwhile
      if (name !== "NotAllowedError") throw error;
      this.#listeners.onProblem("sound_blocked");
    }
  }

  /** @param {string} deviceId */
  async chooseSpeaker(deviceId) {
    try {
      await this.#view.audio.setSinkId(deviceId);
      this.#chosen.speaker = deviceId;
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.#listeners.onProblem("speaker_unusable");
      void this.refreshDevices();
    }
  }

  /** Show which microphones and speakers there are. */
  async refreshDevices() {
    this.#view.showDevices(await listDevices(), this.#chosen);
  }

  // ------------------------------------------------------------ levels

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
    if (this.#active) requestAnimationFrame(() => this.#drawLevels());
    else this.#drawing = false;
  }
}
