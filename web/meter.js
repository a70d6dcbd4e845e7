/**
 * How loud a stream is.
 */

const FLOOR_DB = -60;
const CEILING_DB = -12;

/** Place of a root mean square between silence (0) and loud speech (1). @param {number} rms */
export function meterPosition(rms) {
  if (rms <= 0) return 0;
  const decibels = 20 * Math.log10(rms);
  return Math.min(1, Math.max(0, (decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB)));
}

/** Measures one stream. Remote streams are silent here unless an <audio> element plays them too. */
export class LevelMeter {
  #source;
  #analyser;
  #samples;
  /** Root mean square of the newest 43 ms (at 48 kHz), full scale 1. */
  rms = 0;
  /** Sum of squares times seconds since the meter began: grows only while there is sound. */
  energy = 0;
  #readAt = performance.now();

  /** @param {AudioContext} context @param {MediaStream} stream */
  constructor(context, stream) {
    this.#source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    this.#analyser = new AnalyserNode(context, { fftSize: 2048 });
    this.#samples = new Float32Array(this.#analyser.fftSize);
    this.#source.connect(this.#analyser);
  }

  /** Measure now; call once per animation frame. @returns {number} position, 0 to 1 */
  read() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const square = this.#samples.reduce((sum, sample) => sum + sample * sample, 0);
    const now = performance.now();
    this.rms = Math.sqrt(square / this.#samples.length);
    this.energy += this.rms ** 2 * ((now - this.#readAt) / 1000);
    this.#readAt = now;
    return meterPosition(this.rms);
  }

  /** Stop measuring. */
  close() {
    this.#source.disconnect();
  }
}
