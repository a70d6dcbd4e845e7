/**
 * Microphones, speakers and silence.
 */

import { CallFailure, microphoneFailure } from "/static/errors.js";

const PROCESSING = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/**
 * Open a microphone; a remembered one that is gone is replaced by the default one.
 * @param {string} deviceId empty for the default
 * @returns {Promise<MediaStreamTrack>}
 * @throws {CallFailure}
 */
export async function openMicrophone(deviceId) {
  if (!navigator.mediaDevices?.getUserMedia) throw new CallFailure("insecure_page");
  const device = deviceId ? { deviceId: { exact: deviceId } } : {};
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { ...PROCESSING, ...device } });
    return stream.getAudioTracks()[0];
  } catch (error) {
    if (deviceId && error instanceof Error && error.name === "OverconstrainedError") {
      return openMicrophone("");
    }
    throw microphoneFailure(error);
  }
}

/**
 * The caller's side of a text call. Silence is sent rather than nothing, because a server ends
 * calls from which no media comes.
 * @param {AudioContext} context
 * @returns {MediaStreamTrack}
 */
export function silentTrack(context) {
  const source = new ConstantSourceNode(context, { offset: 0 });
  const destination = new MediaStreamAudioDestinationNode(context, { channelCount: 1 });
  source.connect(destination);
  source.start();
  return destination.stream.getAudioTracks()[0];
}

/**
 * Devices to choose from; names are known only after the microphone was allowed once.
 * @returns {Promise<{microphones: MediaDeviceInfo[], speakers: MediaDeviceInfo[]}>}
 */
export async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const named = devices.filter((device) => device.deviceId && device.deviceId !== "default");
  return {
    microphones: named.filter((device) => device.kind === "audioinput"),
    speakers: named.filter((device) => device.kind === "audiooutput"),
  };
}

/** Can this browser choose a speaker? */
export function canChooseSpeaker() {
  return "setSinkId" in HTMLMediaElement.prototype;
}
