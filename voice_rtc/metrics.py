"""The Prometheus metrics, with the names that docs/operations.md lists.

One `Metrics` object per server, with a registry of its own, so that tests can run several.
Call ids are never labels.
"""

from __future__ import annotations

import asyncio
import platform

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from voice_rtc import __version__
from voice_rtc.tallies import Tally, TallyHistogram

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_FAST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_PAUSE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_WAIT = (0.01, 0.05, 0.25, 1, 5, 15, 30, 60, 120, 300, 600)
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_LONG = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All metrics of one server. Names get the prefix ``voice_rtc_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        # calls
        self.calls_active = self._gauge("calls_active", "Calls from offer to end.")
        self.calls_total = self._counter("calls_total", "Calls ended, by reason.", "outcome")
        self.call_duration_seconds = self._histogram(
            "call_duration_seconds", "From offer to end.", _LONG
        )
        self.call_setup_seconds = self._histogram(
            "call_setup_seconds", "From offer to media connected.", _SECONDS
        )
        self.calls_suspended = self._gauge(
            "calls_suspended", "Calls whose caller is not heard of at the moment."
        )
        self.suspensions_total = self._counter(
            "suspensions_total", "Suspended calls, by what came of it.", "result"
        )
        # pool
        self.leases_active = self._gauge("leases_active", "STT slots held by calls.")
        self.pool_slots = self._gauge("pool_slots", "STT slots, by state.", "state")
        self.leases_total = self._counter("leases_total", "Lease requests, by result.", "result")
        self.lease_hold_seconds = self._histogram(
            "lease_hold_seconds", "From grant to release.", _LONG
        )
        self.lease_wait_seconds = self._histogram(
            "lease_wait_seconds", "From request to grant.", _WAIT, "mode"
        )
        self.pool_waiting = self._gauge("pool_waiting", "Callers in the waiting line.")
        self.pool_utilisation_ratio = self._gauge(
            "pool_utilisation_ratio", "Leased slots over all slots."
        )
        self.replicas = self._gauge("replicas", "STT replicas, by state.", "state")
        self.degradation_step = self._gauge(
            "degradation_step", "Step of the degradation ladder; 0 is normal."
        )
        self.admission_state = self._gauge(
            "admission_state",
            "New callers: 0 are let in, 1 wait even for a free slot, 2 are refused.",
        )
        self.probe_seconds = self._gauge(
            "probe_seconds", "Slowest newest latency probe of the serving replicas."
        )
        self.probes_total = self._counter("probes_total", "Probes, by result.", "result")
        self.memory_pressure = self._gauge(
            "memory_pressure", "Memory pressure: 0 normal, 1 high, 2 critical."
        )
        self.gpu_memory_bytes = self._gauge(
            "gpu_memory_bytes", "GPU memory of all GPUs, by kind.", "kind"
        )
        self.alerts_active = self._gauge("alerts_active", "1 while the alert is raised.", "name")
        # turns
        self.response_seconds = self._histogram(
            "response_seconds",
            "From the caller's last speech sample to the first audible reply sample.",
            _SECONDS,
        )
        self.barge_in_silence_seconds = self._histogram(
            "barge_in_silence_seconds", "From confirmed barge-in speech to silence sent.", _FAST
        )
        self.barge_ins_total = self._counter(
            "barge_ins_total", "Overlaps, by what came of them.", "kind"
        )
        self.barge_in_confirm_seconds = self._histogram(
            "barge_in_confirm_seconds",
            "From the caller's first sound over a reply to its end, by what decided.",
            _SECONDS,
            "by",
        )
        self.reply_rewinds_total = self._counter(
            "reply_rewinds_total", "Replies that stood still and went on where they were lowered."
        )
        self.turns_total = self._counter("turns_total", "Caller's turns, by how they ended.", "end")
        self.turns_reopened_total = self._counter(
            "turns_reopened_total", "Turns that the caller went on with before the reply was heard."
        )
        self.endpoint_wait_seconds = self._histogram(
            "endpoint_wait_seconds", "From the last speech sample to commit.", _SECONDS
        )
        self.turn_outcomes_total = self._counter(
            "turn_outcomes_total", "Answered turns, by what the caller got.", "outcome"
        )
        # stages
        self.stage_seconds = self._histogram(
            "stage_seconds", "Time spent in each stage of a turn.", (0.01, 0.02, *_SECONDS), "stage"
        )
        self.stt_audio_seconds_total = self._counter(
            "stt_audio_seconds_total", "Seconds of audio transcribed."
        )
        self.stt_final_seconds = self._histogram(
            "stt_final_seconds", "From the end of an utterance to its transcript.", _SECONDS, "mode"
        )
        self.stt_partial_seconds = self._histogram(
            "stt_partial_seconds", "From the request of a partial to its text.", _SECONDS, "mode"
        )
        self.stt_batch_size = self._histogram(
            "stt_batch_size", "Requests in the batch of each transcription.", _BATCH
        )
        self.engine_queue_seconds = self._histogram(
            "engine_queue_seconds", "From the request to the start of its batch.", _FAST, "engine"
        )
        self.stt_replays_total = self._counter(
            "stt_replays_total", "Utterances sent again to another engine, by reason.", "reason"
        )
        self.replay_audio_dropped_total = self._counter(
            "replay_audio_dropped_total",
            "Utterances whose audio was not kept for a replay: the call's memory limit.",
        )
        self.engine_failures_total = self._counter(
            "engine_failures_total", "Failures of engines, by kind and code.", "engine", "code"
        )
        self.engine_restarts_total = self._counter(
            "engine_restarts_total", "Engine workers replaced.", "reason"
        )
        # speculation
        self.speculations_total = self._counter(
            "speculations_total", "Answers begun before the turn was over, by result.", "result"
        )
        self.speculation_wasted_characters_total = self._counter(
            "speculation_wasted_characters_total", "Of answers that were begun and not used."
        )
        # language model
        self.llm_tokens_total = self._counter(
            "llm_tokens_total", "Tokens that the language model counted, by kind.", "kind"
        )
        self.llm_requests_total = self._counter(
            "llm_requests_total", "Requests to the language model's service, by kind.", "kind"
        )
        self.llm_hedges_total = self._counter(
            "llm_hedges_total", "Second requests beside a late one, by what came of it.", "result"
        )
        self.llm_contexts_cut_total = self._counter(
            "llm_contexts_cut_total", "Answers asked for without the oldest turns of the call."
        )
        self.fillers_total = self._counter(
            "fillers_total", "Replies in which a filler bridged a silence."
        )
        # voice
        self.tts_piece_seconds = self._histogram(
            "tts_piece_seconds",
            "From a piece of text to its sound; first: it begins a reply.",
            _FAST,
            "place",
        )
        self.tts_cancelled_total = self._counter(
            "tts_cancelled_total", "Pieces of text taken back before they were spoken."
        )
        self.tts_fallbacks_total = self._counter(
            "tts_fallbacks_total", "Replies that the fall-back voice took over, by code.", "code"
        )
        self.tts_worker_restarts_total = self._counter(
            "tts_worker_restarts_total", "Voice workers that died and were started again."
        )
        # media
        self.frames_received_total = self._tally(
            "frames_received", "Audio frames received and decoded."
        )
        self.frames_sent_total = self._tally("frames_sent", "Audio frames sent.")
        self.frames_concealed_total = self._counter(
            "frames_concealed_total", "20 ms of inbound timeline filled in.", "method"
        )
        self.rtp_packets_lost_total = self._counter(
            "rtp_packets_lost_total", "Inbound RTP packets that did not come in time."
        )
        self.rtp_packets_rejected_total = self._counter(
            "rtp_packets_rejected_total", "Inbound RTP packets not played, by reason.", "reason"
        )
        self.datagrams_rejected_total = self._counter(
            "datagrams_rejected_total", "Datagrams dropped before ICE and DTLS.", "reason"
        )
        self.inbound_dropped_total = self._counter(
            "inbound_dropped_total", "Inbound audio runs dropped because the listener was late."
        )
        self.playout_underruns_total = self._counter(
            "playout_underruns_total", "Times a reply ran dry before its end."
        )
        self.send_lateness_seconds = TallyHistogram(
            "voice_rtc_send_lateness_seconds", "How late outbound frames were handed over.", _FAST
        )
        self.registry.register(self.send_lateness_seconds)
        self.media_path = self._gauge("media_path", "1 for the way that audio takes.", "path")
        # signaling
        self.offers_rejected_total = self._counter(
            "offers_rejected_total", "Offers not answered with 201.", "reason"
        )
        self.channel_events_dropped_total = self._counter(
            "channel_events_dropped_total", "Events for a client that did not read them."
        )
        self.channels_abused_total = self._counter(
            "channels_abused_total", "Calls ended for what their data channels sent.", "reason"
        )
        self.channel_messages_rejected_total = self._counter(
            "channel_messages_rejected_total", "Data channel messages refused.", "reason"
        )
        self.webhooks_total = self._counter(
            "webhooks_total", "Events for the webhook, by what came of them.", "result"
        )
        # machine
        process = psutil.Process()
        self._gauge("process_threads", "Threads of the server process.").set_function(
            process.num_threads
        )
        self.loop_lag_seconds = self._histogram(
            "loop_lag_seconds", "How late the event loop runs what is due.", (0.001, 0.002, *_FAST)
        )
        self.gc_pause_seconds = self._histogram(
            "gc_pause_seconds", "How long garbage collections stopped the server.", _PAUSE,
            "generation",
        )  # fmt: skip
        self.gc_full_collections_total = self._counter(
            "gc_full_collections_total", "Full garbage collections, by why then.", "reason"
        )
        self._gauge("tasks_active", "asyncio tasks of the server.").set_function(_tasks)
        info = Gauge(
            "voice_rtc_build_info", "Version.", ["version", "python"], registry=self.registry
        )
        info.labels(__version__, platform.python_version()).set(1)

    def tell_media_path(self, path: str) -> None:
        """Audio takes the way ``path``."""
        for each in ("fast", "stock"):
            self.media_path.labels(each).set(each == path)

    def count_llm_request(self, kind: str) -> None:
        """See `engines.base.SupportsRequests`."""
        if kind in ("hedge_won", "hedge_lost"):
            self.llm_hedges_total.labels(kind.removeprefix("hedge_")).inc()
        else:
            self.llm_requests_total.labels(kind).inc()

    def render(self) -> bytes:
        """The exposition format for GET /metrics."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"voice_rtc_{name}", text, labels, registry=self.registry)

    def _tally(self, name: str, text: str) -> Tally:
        tally = Tally(f"voice_rtc_{name}", text)
        self.registry.register(tally)
        return tally

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"voice_rtc_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"voice_rtc_{name}", text, labels, buckets=buckets, registry=self.registry)


def _tasks() -> float:
    try:
        return float(len(asyncio.all_tasks()))
    except RuntimeError:  # rendered outside the event loop
        return float("nan")
