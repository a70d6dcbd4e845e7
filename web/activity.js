/**
 * Who has the floor, built from the server's events. Pure: no DOM, no clock.
 */

/** What goes on in a live call. */
export class Activity {
  callerSpeaking = false;
  /** The caller's turn is committed and no sound of the reply has come yet. */
  thinking = false;
  /** The server is making a reply. */
  responding = false;
  /** The reply is being played. */
  playing = false;

  /** @returns {"caller" | "agent" | "thinking" | "listening"} */
  get floor() {
    if (this.callerSpeaking) return "caller";
    if (this.playing) return "agent";
    return this.thinking || this.responding ? "thinking" : "listening";
  }

  /** Take one server event; others are ignored. @param {any} event */
  apply(event) {
    const change = CHANGES[event.type];
    if (change) Object.assign(this, typeof change === "function" ? change(event) : change);
  }
}

/** @type {Record<string, object | ((event: any) => object)>} */
const CHANGES = {
  __proto__: null, // a type from the wire must not find what every object has
  "input_audio_buffer.speech_started": { callerSpeaking: true },
  "input_audio_buffer.speech_stopped": { callerSpeaking: false },
  "input_audio_buffer.committed": { callerSpeaking: false, thinking: true },
  // Nothing understood means that no reply comes.
  "conversation.item.input_audio_transcription.completed": (event) =>
    event.transcript ? {} : { thinking: false },
  "conversation.item.input_audio_transcription.failed": { thinking: false },
  "response.created": { responding: true, thinking: true },
  "output_audio_buffer.started": { playing: true, thinking: false },
  "output_audio_buffer.stopped": { playing: false },
  "output_audio_buffer.cleared": { playing: false },
  "response.done": { responding: false, thinking: false },
  error: { thinking: false },
};
