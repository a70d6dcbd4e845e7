/**
 * The stages of a turn, from the caller's last sound to the first sound of the answer, as
 * `voice_rtc.turn.metrics` and GET /pool have them. Together they are the response. Pure.
 */

/** `label` for a legend, `name` for a row of its own. */
export const STAGES = [
  { key: "endpoint_ms", stage: "endpoint", label: "pause", name: "Deciding that you were done" },
  { key: "stt_ms", stage: "stt", label: "speech to text", name: "Speech to text" },
  { key: "llm_first_token_ms", stage: "llm", label: "first word", name: "First word of the answer" },
  { key: "tts_first_audio_ms", stage: "tts", label: "first sound", name: "First sound of the voice" },
  { key: "first_packet_ms", stage: "packet", label: "sending", name: "Sending it" },
];

/** @typedef {Record<string, any>} Turn the figures of a turn, by the keys of `STAGES` */

/** Length of all known stages, in milliseconds; null where none is known. @param {Turn} [turn] */
export function lengthOf(turn) {
  const known = STAGES.map(({ key }) => turn?.[key]).filter(Number.isFinite);
  return known.length ? known.reduce((sum, value) => sum + value, 0) : null;
}

/**
 * How wide each stage is drawn, in percent of the longest bar.
 * @param {Turn} turn @param {number} longest in milliseconds
 * @returns {{stage: string, percent: number}[]}
 */
export function barOf(turn, longest) {
  return STAGES.map(({ key, stage }) => {
    const value = turn[key];
    return { stage, percent: Number.isFinite(value) && longest > 0 ? (100 * value) / longest : 0 };
  });
}
