"""Settings: defaults, a TOML file, environment variables. No other module reads the environment.

Order, later wins: defaults, ``--config FILE`` (or ``VOICE_RTC_CONFIG``), ``VOICE_RTC_*`` with
``__`` between section and field (``VOICE_RTC_LLM__MODEL``), command-line flags. ``OPENAI_BASE_URL``
and ``OPENAI_API_KEY`` are read where ``llm.base_url`` and ``llm.api_key`` are not set.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.sources.utils import parse_env_vars

from voice_rtc.errors import ConfigError

PREFIX = "VOICE_RTC_"
STT_PROMPT_CHARACTERS = 1000
"""Longest ``stt.prompt``, and longest prompt that a call may bring."""
OUR_LLM_FIELDS = frozenset(
    {"messages", "stream", "stream_options", "n", "tools", "tool_choice", "functions"}
)
"""Fields of a chat completions request that nobody else sets."""
OUR_LLM_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
"""HTTP headers, in lower case, that nobody else sets."""
_CONFIG_VARIABLE = "VOICE_RTC_CONFIG"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ServerSettings(Section):
    """The HTTP side."""

    host: str = "0.0.0.0"
    """Address to listen on. The default serves the local network too."""
    port: int = Field(8080, ge=0, le=65_535)
    """TCP port; 0 takes a free one."""
    tls_certificate: Path | None = None
    """PEM file; with ``tls_key`` the server speaks HTTPS. Browsers demand it for microphones,
    except on localhost."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    cors_origins: tuple[str, ...] = ("*",)
    """Origins whose pages may call the API; ``*`` is any."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 20.0
    """On SIGTERM running calls may go on this long before they are ended."""
    collect_seconds: Seconds = 60.0
    """A full garbage collection, which stops the server for some 10 ms, waits so long at most for a
    moment in which no caller hears a reply."""
    collect_objects: int = Field(500_000, ge=10_000, le=100_000_000)
    """It waits no longer when about so many objects have gathered since the last one."""
    collect_calls: int = Field(16, ge=1, le=10_000)
    """It waits no longer when so many calls have ended since the last one; their connections are
    garbage until then, about 1 MB each."""
    event_loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """What drives the process: ``uvloop``, Python's own ``asyncio``, or uvloop where it is
    installed."""


class LimitSettings(Section):
    """Bounds on what strangers may send."""

    max_calls: int = Field(1000, ge=1, le=10_000)
    """Calls at the same time, talking and waiting, whatever the pool says."""
    connecting_calls: int = Field(100, ge=1, le=10_000)
    """Calls that are answered and not connected yet. When there are as many, an offer displaces a
    call of an address that has more of them, or is refused."""
    connecting_calls_per_address: int = Field(50, ge=1, le=10_000)
    """The same from one address; more are answered 429. Behind a reverse proxy all have its own."""
    sdp_bytes: int = Field(32_768, ge=1024, le=1_048_576)
    """Largest SDP offer."""
    session_bytes: int = Field(16_384, ge=256, le=1_048_576)
    """Largest session JSON in an offer, and how much a client may add to the server's session."""
    sdp_lines: int = Field(500, ge=50, le=20_000)
    """Lines of an offer. Browsers need some 100, with video 250; the parser takes a time that grows
    with the square of some."""
    sdp_media_lines: int = Field(4, ge=1, le=64)
    """m-lines in an offer."""
    sdp_candidates: int = Field(40, ge=0, le=1000)
    """ICE candidates in an offer."""
    rtp_packets_per_second: float = Field(150.0, ge=50, le=10_000)
    """RTP packets of one caller; what comes faster is dropped and counted."""
    rtp_sources: int = Field(4, ge=1, le=64)
    """Sources (SSRC) of one call of which statistics are kept and reports are sent."""
    rtcp_packets_per_second: float = Field(50.0, ge=5, le=10_000)
    """RTCP packets of one caller; a burst of twice as many is allowed."""
    datagrams_per_second: float = Field(500.0, ge=100, le=100_000)
    """Datagrams of one call that are no RTP: ICE, DTLS with the data channel, RTCP."""
    channel_message_bytes: int = Field(16_384, ge=256, le=262_144)
    """Largest data channel message."""
    channel_reassembly_bytes: int = Field(131_072, ge=16_384, le=1_048_576)
    """Data channel bytes of a call that may wait for the rest of their messages; past it, reading
    ends and the call too."""
    channels: int = Field(16, ge=1, le=1000)
    """Data channels that a client may open in one call. All but the first of the right label are
    closed at once; one too many ends the call."""
    channel_messages_per_second: float = Field(20.0, gt=0, le=1000)
    """Sustained rate of data channel messages per call; a burst of twice as many is allowed. Up to
    256 more wait; then they are refused. At ten times the rate (after a burst of fifty times) the
    call is ended."""
    channel_events: int = Field(512, ge=16, le=65_536)
    """Events waiting for a client; past it the oldest that can be spared are dropped."""
    conversation_items: int = Field(200, ge=4, le=10_000)
    """Items kept of a conversation; past it the oldest are forgotten."""
    text_characters: int = Field(8_000, ge=100, le=1_000_000)
    """Longest typed message or instructions."""


class MediaSettings(Section):
    """Peer connections."""

    path: Literal["auto", "fast", "stock"] = "auto"
    """``fast``: RTP of our own past aiortc, without its jitter buffer and threads; ``stock``:
    aiortc's tracks; ``auto``: fast where a self-test at the start saw it work and the client has
    Opus, else stock. With ``fast`` a server that fails the self-test does not start."""
    self_test_seconds: Annotated[float, Field(ge=0.5, le=60)] = 5.0
    """The self-test of the fast path, which a call of the server to itself is, has failed when it
    takes longer, and then longer again; usually it takes 1 to 2 s."""
    ice_servers: tuple[Annotated[str, Field(pattern=r"^stun:\S+$")], ...] = ()
    """STUN URLs (``stun:host:port``) for the server's own side; empty: host candidates only."""
    udp_ports: str = ""
    """UDP ports of the calls, ``first-last``, e.g. ``50000-50199``, for a firewall. A call takes
    one on each address of the server; one without a free port is refused. Empty: any port."""
    keep_remote_candidates: bool = False
    """Use the addresses that an offer names; needed when the server itself is behind NAT."""
    connect_deadline_seconds: Seconds = 15.0
    """A call whose media is not connected by then is ended."""
    opus_bitrate: int = Field(56_000, ge=6_000, le=128_000)
    """Bit/s of the agent's voice while it speaks (fast path; CELT, docs/benchmarks.md)."""
    opus_complexity: int = Field(0, ge=0, le=10)
    """Of the Opus encoder (fast path); 5 takes twice the time of 0."""
    suspend_seconds: Seconds = 3.0
    """A caller who was not heard of for so long, sending nothing and answering no consent check, is
    suspended: the agent falls silent, and goes on where it was when the caller is heard again."""
    end_seconds: Seconds = 8.0
    """A call whose caller was not heard of for so long is ended."""
    inbound_buffer_seconds: Annotated[float, Field(ge=0.5, le=60)] = 2.0
    """Inbound audio waiting for the listener; past it the oldest is dropped and counted."""
    reply_buffer_seconds: Seconds = 3.0
    """Speech made ahead of playout; synthesis waits when it is reached."""

    @field_validator("udp_ports")
    @classmethod
    def _is_range(cls, value: str) -> str:
        if value:
            first, dash, last = value.partition("-")
            if not dash or not (first.isdecimal() and last.isdecimal()):
                raise ValueError("must be two ports, first-last, e.g. 50000-50199")
            if not 1 <= int(first) <= int(last) <= 65_535:
                raise ValueError("the first port must not be above the last, from 1 to 65535")
        return value

    @property
    def udp_port_range(self) -> range | None:
        """The ports of ``udp_ports``; None for any."""
        if not self.udp_ports:
            return None
        first, last = self.udp_ports.split("-")
        return range(int(first), int(last) + 1)

    @model_validator(mode="after")
    def _suspended_before_ended(self) -> Self:
        if self.end_seconds <= self.suspend_seconds:
            raise ValueError("end_seconds must be more than suspend_seconds")
        return self

    call_core_share: float = Field(0.03, gt=0, le=1)
    """Share of a core that one talking call takes of the server's own process, which has one event
    loop for all calls, voice activity detection included. Measured: 0.40 of a core for ten talking
    and ten waiting calls on the fast path. Bounds the slots."""
    stock_call_core_share: float = Field(0.06, gt=0, le=1)
    """The same where audio takes the stock tracks."""
    core_share: float = Field(0.9, gt=0, le=1)
    """Share of one core that all calls together may take of the server's own process; when it uses
    more and its event loop feels it, no call is taken."""

    @property
    def share_of_a_call(self) -> float:
        """Of a core, for the path that is set."""
        return self.stock_call_core_share if self.path == "stock" else self.call_core_share


class RelaySettings(Section):
    """TURN servers that clients behind strict firewalls reach this server through."""

    urls: tuple[Annotated[str, Field(pattern=r"^turns?:\S+$")], ...] = ()
    """TURN URLs (``turn:host:3478?transport=udp``, ``turns:host:443?transport=tcp``) that clients
    are told by ``GET /v1/realtime/ice``; empty: none."""
    secret: SecretStr = SecretStr("")
    """Shared with the TURN server (coturn: ``use-auth-secret``, ``static-auth-secret``); each
    client gets a user name and a password made of it."""
    ttl_seconds: int = Field(3600, ge=60, le=86_400)
    """How long such a password may be used to begin a call."""


class SessionSettings(Section):
    """How long calls may last."""

    max_call_seconds: Seconds = 3600.0
    """A call is ended after this."""
    idle_seconds: Seconds = 600.0
    """A call in which nobody spoke or typed for so long is ended."""
    instructions: str = (
        "You are a friendly voice assistant on a phone call. Answer in one to three short spoken "
        "sentences. Never use markdown, lists, emoji or anything that cannot be read aloud."
    )
    """System prompt; a client may replace it by ``session.update``."""
    greeting: str = ""
    """Spoken when a call begins; empty for none."""


class TurnSettings(Section):
    """When the caller's turn is over, and what counts as an interruption."""

    speech_threshold: float = Field(0.5, gt=0, lt=1)
    """VAD probability above which a window is speech."""
    speech_start_seconds: float = Field(0.1, gt=0, le=2)
    """Speech needed before SpeechStarted."""
    speech_stop_seconds: float = Field(0.2, gt=0, le=2)
    """Silence needed before SpeechStopped."""
    prefix_seconds: float = Field(0.4, ge=0, le=2)
    """Audio before the detected start that belongs to the utterance."""
    preset: Literal["relaxed", "default", "eager"] = "default"
    """How soon a pause ends a turn: both pauses are doubled, as they are, or times 0.6. A client
    chooses for its call by the ``eagerness`` of ``semantic_vad``."""
    min_pause_seconds: float = Field(0.5, gt=0, le=10)
    """Pause that ends a turn whose transcript reads complete."""
    max_pause_seconds: float = Field(2.0, gt=0, le=20)
    """Pause that ends a turn whatever the transcript says. Between the two it depends on the words,
    on the caller's own pauses and on how long recognition takes."""
    reopen_seconds: float = Field(2.0, ge=0, le=30)
    """A caller who goes on so soon after the turn was ended, before the reply was heard, reopens
    it: the reply is taken back, and both parts are answered as one."""
    model: Path | None = None
    """ONNX file of Smart-Turn v3 (pipecat-ai/smart-turn-v3): it hears in the voice whether the
    caller is finished, and counts for a third beside the words. One inference in each pause; each
    call keeps 8 s of its audio (256 KB)."""
    barge_in: Literal["default", "words", "any", "never"] = "default"
    """What interrupts a reply: words and, where none come in time, the length of the speech
    (`default`); words alone (`words`); any speech (`any`); nothing (`never`)."""
    barge_in_seconds: float = Field(0.3, gt=0, le=5)
    """Speech over a reply that counts as an interruption when words come of it."""
    barge_in_words: int = Field(2, ge=1, le=20)
    """So many words interrupt although they were quickly said; "mhm" and the like do not count."""
    barge_in_wordless_factor: float = Field(2.5, ge=1, le=20)
    """Times `turns.barge_in_seconds`: speech that interrupts where no transcript comes in time."""
    barge_in_patience_seconds: float = Field(2.0, gt=0, le=10)
    """For a noise without words a reply stands still no longer; "mhm, yeah" that lasts longer
    interrupts."""
    background_db: float = Field(15.0, ge=3, le=100)
    """Speech so many dB below the caller's usual level is somebody else's: it does not
    interrupt."""
    echo_similarity: float = Field(0.7, gt=0, le=2)
    """Likeness, up to 1, of what comes in to what was just played, from which it is an echo and
    does not interrupt. 2: never."""
    duck_seconds: float = Field(0.3, ge=0, le=5)
    """A reply that is spoken over stands still after being lowered for so long; what was lowered is
    said again when it goes on."""
    idle_prompt_seconds: float = Field(0.0, ge=0, le=300)
    """Silence of the caller after a reply until the agent speaks up by itself. 0: it does not."""
    idle_prompts: int = Field(2, ge=1, le=10)
    """It does so as often, one after the other, until the caller says something."""
    max_utterance_seconds: float = Field(30.0, ge=1, le=300)
    """A longer utterance is committed as it stands."""
    speculate: bool = True
    """Begin answers while the caller pauses, on what was understood so far; nothing of them is
    heard before the turn is over, and those that do not fit what was really said are thrown away:
    faster answers for more requests to the language model and the voice."""
    speculation_starts: int = Field(3, ge=1, le=20)
    """Answers begun for one turn at most."""
    speculation_strategy: Literal["overall", "end", "weighted"] = "end"
    """How what an answer was begun on is compared with what was said: all of it, the last five
    words, or both, the end weighing 0.7."""
    final_deadline_seconds: Seconds = 10.0
    """A final transcript that takes longer is given up; the last partial stands in."""


class PoolSettings(Section):
    """STT slots, the waiting line, replicas and their health."""

    mode: Literal["shared", "dedicated", "single"] = "shared"
    """``shared``: one batching engine per device; ``dedicated``: one engine per caller, loaded on
    demand; ``single``: one engine, callers take turns, nothing is batched."""
    slots: int = Field(0, ge=0, le=10_000)
    """Callers at the same time; 0 takes what the probe (``shared``), the memory formula
    (``dedicated``) or the engine says for this machine, and adapts it to measured times."""
    max_slots: int = Field(1000, ge=1, le=10_000)
    """Never more slots than this, whatever is measured."""
    final_goal_seconds: Seconds = 0.6
    """Final transcripts should come within this (95th percentile); sizing, admission and the
    degradation ladder go by it."""
    probe: bool = True
    """Measure at the start what the engine carries; cached by model and device."""
    cache_directory: Path | None = None
    """Where the probe's results are kept; empty takes ``$XDG_CACHE_HOME/voice-rtc``."""
    rollout_mode: Literal["", "shared", "dedicated", "single"] = ""
    """A second mode to try on a share of the calls; empty for none."""
    rollout_share: float = Field(0.0, ge=0, le=1)
    """Share of the calls that get ``rollout_mode``; chosen by call id, metrics carry the mode."""
    instance_memory_mb: int = Field(3072, ge=16, le=1_000_000)
    """``dedicated``: memory that one engine needs."""
    reserved_memory_mb: int = Field(4096, ge=0, le=1_000_000)
    """``dedicated``: memory left free when the number of engines is computed."""
    idle_unload_seconds: Seconds = 20.0
    """``dedicated``: an engine without a caller for so long is unloaded."""
    spares: int = Field(1, ge=0, le=4)
    """Loaded engines in reserve, so that a dead one is replaced within a second."""
    isolated_calls: int = Field(2, ge=0, le=64)
    """Calls that may be given a replica of their own for debugging."""
    max_waiting: int = Field(100, ge=0, le=100_000)
    """Callers in the waiting line; past it an offer is answered 503 with Retry-After."""
    max_wait_seconds: Seconds = 300.0
    """A caller who has waited so long is told so and the call ends."""
    resume_seconds: Seconds = 30.0
    """A waiting caller whose connection broke keeps the place for so long."""
    hold_message: str = "All lines are busy. You are number {position} in line."
    """Spoken to a caller who waits, once, and again each ``hold_repeat_seconds``; empty: nothing.
    ``{position}`` and ``{minutes}`` (estimate) are filled in."""
    hold_repeat_seconds: Seconds = 30.0
    """How often the hold message is repeated."""
    head_starts: dict[str, Annotated[float, Field(ge=0, le=86_400)]] = {}
    """Priority by network, e.g. ``{"10.0.0.0/8" = 120}``: these callers are lined up as if they
    had come so many seconds earlier. Nobody starves by it."""

    @field_validator("head_starts")
    @classmethod
    def _networks(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            ip_network(name)  # a ValueError says what is wrong
        return value

    call_memory_mb: float = Field(8.0, ge=1, le=1024)
    """Audio of unfinished utterances kept for one call, so that another engine can take over;
    past it the oldest is not kept any more, and counted."""
    heartbeat_seconds: Annotated[float, Field(ge=0.05, le=10)] = 0.2
    """How often the health of each engine is looked at."""
    hang_seconds: Annotated[float, Field(ge=0.2, le=60)] = 0.8
    """An engine that is silent for so long is replaced."""
    probe_interval_seconds: Seconds = 30.0
    """How often each serving engine transcribes a known sentence."""
    loop_lag_seconds: Annotated[float, Field(ge=0.005, le=60)] = 0.05
    """When the server's event loop runs so late (95th percentile of the last seconds) no call is
    taken until it has time again, unless ``slots`` is set."""
    memory_high: float = Field(0.85, gt=0, lt=1)
    """Share of memory in use at which nothing more is loaded and what is idle is unloaded."""
    memory_critical: float = Field(0.93, gt=0, lt=1)
    """Share of memory in use at which quality is given up and ``dedicated`` falls back to
    ``shared``."""


class AdminSettings(Section):
    """The pool page and who may act on it."""

    token: SecretStr = SecretStr("")
    """Needed for actions and for whole call ids; empty: one is made at each start and logged."""
    open_status: bool = True
    """May anybody see the pool's figures (without call ids)? The same figures are in /metrics."""
    listeners: int = Field(32, ge=1, le=1000)
    """Pages that follow the pool live at the same time."""
    recent_turns: int = Field(200, ge=10, le=2000)
    """Newest turns of all calls that the pool page sums up."""
    alert_webhook: SecretStr = SecretStr("")
    """URL that gets each alert as JSON by POST; empty for none. Not shown: such URLs often hold a
    token."""
    webhook_secret: SecretStr = SecretStr("")
    """What is POSTed is signed with it, as Standard Webhooks has it; empty: it is not signed.
    ``whsec_`` and 24 to 64 random bytes in base64."""


class VadSettings(Section):
    """Voice activity detection."""

    engine: Literal["auto", "silero", "webrtc", "threshold"] = "auto"
    """``auto`` is Silero behind two gates, the client's own audio level and webrtcvad;
    ``threshold`` is the fake for tests."""
    gate_aggressiveness: int = Field(1, ge=0, le=3)
    """webrtcvad mode of the gate before Silero; 3 filters most."""


class SttSettings(Section):
    """Speech to text."""

    engine: Literal["auto", "faster-whisper", "pocketsphinx", "scripted"] = "auto"
    """``auto`` takes faster-whisper if its weights are there or can be fetched, else
    pocketsphinx."""
    model: str = ""
    """faster-whisper: model name or local directory; empty takes ``base``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where faster-whisper runs."""
    compute_type: str = "default"
    """CTranslate2 compute type, e.g. ``int8``, ``float16``; ``default`` picks by device."""
    language: str = "en"
    """Language code; empty lets Whisper detect it. A call may ask for another."""
    prompt: str = Field("", max_length=STT_PROMPT_CHARACTERS)
    """Words that callers are likely to say, for Whisper; a call may bring its own."""
    processor: Literal["native", "realtimestt"] = "native"
    """``realtimestt`` puts a RealtimeSTT recorder between each caller and the shared engine; needs
    ``voice-rtc[realtimestt]``."""
    window: Literal["short", "full"] = "short"
    """Whisper: ``short`` pads to the next of 3, 5, 10, 15 or 30 s, ``full`` always to 30 s."""
    final_window_seconds: float = Field(10.0, ge=1, le=30)
    """Whisper: shortest window of a final transcript; shorter is quicker and less accurate."""
    encoder: Literal["auto", "ct2", "sdpa"] = "auto"
    """Whisper: ``sdpa`` runs the encoder in PyTorch, five times quicker in batches on a GPU;
    ``auto`` takes it on a GPU when PyTorch is installed."""
    beam_size: int = Field(1, ge=1, le=10)
    """Whisper: beam of final transcripts; partials are greedy."""
    batch: int = Field(0, ge=0, le=256)
    """Whisper: most requests in one batch; 0 takes 8 on a CPU and 32 on a GPU."""
    grammar: str = ""
    """pocketsphinx: path of a JSGF grammar, or sentences separated by ``|``; empty uses the full
    English model."""
    workers: int = Field(0, ge=0, le=64)
    """pocketsphinx: worker processes; Whisper: batches at the same time. 0 takes one per CPU, at
    most 4, and 2 for Whisper on a GPU."""
    partial_seconds: float = Field(0.4, gt=0, le=10)
    """How often a partial transcript is made while the caller speaks."""
    download: bool = True
    """May ``auto`` and a model name fetch weights from the hub?"""
    load_deadline_seconds: Seconds = 300.0
    """Loading (with download) that takes longer has failed."""


class TtsSettings(Section):
    """Text to speech."""

    engine: Literal["auto", "kokoro", "espeak-ng", "tone"] = "auto"
    """``auto`` takes Kokoro if installed and its weights are there or can be fetched, else
    espeak-ng."""
    model: str = ""
    """Kokoro: local directory with config.json, weights and voices; empty takes the hub's."""
    voice: str = ""
    """Voice name of the engine (``af_heart``, ``en-us``); empty takes its default. Kokoro blends
    voices: ``af_heart*0.6+am_adam*0.4``."""
    speed: float = Field(1.0, ge=0.5, le=2.0)
    """Speaking rate, 1.0 is normal."""
    download: bool = True
    """May weights be fetched from the hub?"""
    load_deadline_seconds: Seconds = 300.0
    """Loading (with download) that takes longer has failed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kokoro: ``auto`` takes a GPU when there is one that can be used."""
    device_indices: tuple[Annotated[int, Field(ge=0, le=63)], ...] = Field((0,), min_length=1)
    """Kokoro: which GPUs; each gets a worker process, and on a CPU each entry is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Kokoro: of its decoder. ``auto`` is float32 on a GPU; on a CPU both are tried at the start
    and bfloat16 is taken if it is 15 % faster."""
    batch: int = Field(0, ge=0, le=8)
    """Kokoro: pieces of text spoken at once; 0 is 4 on a GPU and 1 on a CPU."""
    graphs: bool = True
    """Kokoro: CUDA graphs on a GPU; some ten seconds more to load, a clause in a third of the
    time."""
    threads: int = Field(0, ge=0, le=64)
    """Kokoro: PyTorch's on a CPU; 0 is two, where there are two cores."""
    waiting: int = Field(256, ge=1, le=10_000)
    """Kokoro: pieces of text that may wait at a worker; what comes then is spoken by espeak-ng."""
    patience_seconds: Seconds = 1.0
    """Kokoro: words of a reply in progress that waited so long go as early as a reply's first."""
    deadline_seconds: Seconds = 5.0
    """Kokoro: a reply whose first words are not there by then is spoken by espeak-ng."""
    hang_seconds: Seconds = 20.0
    """Kokoro: a worker that is silent, or busy with one batch, for so long is replaced; later words
    that take so long are spoken by espeak-ng."""


class LlmSettings(Section):
    """The language model."""

    engine: Literal["auto", "openai", "eliza", "echo"] = "auto"
    """``auto`` takes an OpenAI-compatible service when a base URL or key is set, else ELIZA."""
    base_url: str = ""
    """Any OpenAI-compatible service; empty means OPENAI_BASE_URL, else OpenAI's own."""
    api_key: SecretStr = SecretStr("")
    """Key for the service; empty means OPENAI_API_KEY."""
    model: str = "gpt-4o-mini"
    """Model name as the service knows it."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; unset leaves it to the service."""
    max_tokens: int | None = Field(300, ge=1, le=100_000)
    """Longest answer; unset leaves it to the service."""
    connect_seconds: Seconds = 5.0
    """Deadline for the connection."""
    first_token_seconds: Seconds = 15.0
    """Deadline for the first piece of an answer."""
    gap_seconds: Seconds = 5.0
    """Longest pause between two pieces of an answer."""
    hedge_seconds: Seconds | None = 2.0
    """A request without a first token for so long, and for twice the usual time, gets a twin;
    whichever answers first is used. Unset: never."""
    filler: str = "One moment, please."
    """Said, once in a reply, when the voice has had nothing to say for ``filler_seconds``; empty:
    nothing. The model is not told of it."""
    filler_seconds: Seconds = 2.5
    """Silence within a reply, before its first words too, that is bridged."""
    keep_alive_seconds: Seconds = 60.0
    """How long an unused connection to the service is kept."""
    warm_up: bool = True
    """Connect to the service, by a small request, when a call begins and when its caller begins to
    speak, so that the answer does not wait for a handshake."""
    context_characters: int = Field(48_000, ge=2_000, le=10_000_000)
    """Longest conversation that the model is sent; past it the oldest turns are left out. A token
    is some four characters of English and one of Chinese."""
    headers: dict[str, str] = {}
    """Extra HTTP headers."""
    body: dict[str, Any] = {}
    """Extra fields of each request, e.g. ``{top_p = 0.9, reasoning_effort = "low"}``."""
    client_fields: tuple[str, ...] = ()
    """Fields of the request that a client may set by ``session.update``
    (``session.voice_rtc.llm.body``), e.g. ``["temperature", "top_p"]``."""
    client_headers: tuple[str, ...] = ()
    """HTTP headers of the request that a client may set (``session.voice_rtc.llm.headers``)."""

    @field_validator("body", "client_fields")
    @classmethod
    def _leaves_ours(cls, value: Any) -> Any:
        if ours := sorted(OUR_LLM_FIELDS.intersection(value)):
            raise ValueError(f"the server sets {', '.join(ours)} itself")
        return value

    @field_validator("headers", "client_headers")
    @classmethod
    def _are_free(cls, value: Any) -> Any:
        if ours := sorted(name for name in value if name.lower() in OUR_LLM_HEADERS):
            raise ValueError(f"the server sets {', '.join(ours)} itself")
        return value


class LogSettings(Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level written."""
    json_lines: bool = False
    """JSON lines instead of text."""
    transcripts: bool = False
    """May spoken words be written to the log, as a field of their own?"""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="none",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    engines: Literal["auto", "embedded", "fake"] = "auto"
    """``auto`` picks the best that is there, ``embedded`` needs no weights and no network, ``fake``
    is scripted."""
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    media: MediaSettings = MediaSettings()
    relay: RelaySettings = RelaySettings()
    session: SessionSettings = SessionSettings()
    turns: TurnSettings = TurnSettings()
    pool: PoolSettings = PoolSettings()
    admin: AdminSettings = AdminSettings()
    vad: VadSettings = VadSettings()
    stt: SttSettings = SttSettings()
    tts: TtsSettings = TtsSettings()
    llm: LlmSettings = LlmSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands in: it merges the sources itself to know each value's origin."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings and where each one that is not a default came from."""

    settings: Settings
    origins: Mapping[str, str]
    """``section.field`` -> ``file PATH`` | ``environment NAME`` | ``command line``."""


def load(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Merge all sources. ``overrides`` maps ``section.field`` to a value. Raises ConfigError."""
    environ = os.environ if environment is None else environment
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    path = file or (Path(environ[_CONFIG_VARIABLE]) if environ.get(_CONFIG_VARIABLE) else None)
    if path is not None:
        _merge(values, _read_toml(path), f"file {path}", origins)
    _merge(values, _from_environment(environ), "environment", origins)
    for name, value in (overrides or {}).items():
        _put(values, name, value)
        origins[name] = "command line"
    _openai_variables(values, origins, environ)
    try:
        return Loaded(Settings(**values), origins)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def cache_folder(settings: Settings, environment: Mapping[str, str] | None = None) -> Path:
    """Where figures that were measured on this machine are kept between starts."""
    environ = os.environ if environment is None else environment
    if settings.pool.cache_directory is not None:
        return settings.pool.cache_directory
    home = environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "voice-rtc"


def field_names() -> list[str]:
    """Every setting as ``section.field`` (or ``field`` at the top)."""
    return [name for name, _ in walk(Settings())]


def walk(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Each setting's dotted name and value, in the order they are declared."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            for inner in type(value).model_fields:
                yield f"{name}.{inner}", getattr(value, inner)
        else:
            yield name, value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {PREFIX + name.replace(".", "__").upper(): name for name in field_names()}
    sections = {PREFIX + name.split(".")[0].upper() for name in field_names()}
    for variable in environ:
        upper = variable.upper()
        if not upper.startswith(PREFIX) or upper == _CONFIG_VARIABLE:
            continue
        if upper not in known and upper not in sections:
            raise ConfigError(
                f"unknown environment variable {variable}{_suggest(upper, list(known))}"
            )

    class Source(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return parse_env_vars(environ, parse_none_str=self.env_parse_none_str)

    try:
        return Source(Settings)()
    except ValueError as error:
        raise ConfigError(f"environment: {error}") from None


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], origin: str, origins: dict[str, str]
) -> None:
    for name, value in new.items():
        if isinstance(value, Mapping) and name in Settings.model_fields:
            for inner, inner_value in value.items():
                _put(into, f"{name}.{inner}", inner_value)
                origins[f"{name}.{inner}"] = _origin(origin, f"{name}.{inner}")
        else:
            into[name] = value
            origins[name] = _origin(origin, name)


def _origin(origin: str, name: str) -> str:
    if origin == "environment":
        return f"environment {PREFIX}{name.replace('.', '__').upper()}"
    return origin


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    section, _, inner = name.partition(".")
    if inner:
        group = values.setdefault(section, {})
        if not isinstance(group, dict):
            raise ConfigError(f"{section} must be a section, not a single value")
        group[inner] = value
    else:
        values[section] = value


def _openai_variables(
    values: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]
) -> None:
    for variable, inner in (("OPENAI_BASE_URL", "base_url"), ("OPENAI_API_KEY", "api_key")):
        group = values.setdefault("llm", {})
        if environ.get(variable) and isinstance(group, dict) and not group.get(inner):
            group[inner] = environ[variable]
            origins[f"llm.{inner}"] = f"environment {variable}"


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name}{_suggest(name, field_names())}")
        else:
            lines.append(f"{name}: {problem['msg']}{_given(name, problem.get('input'))}")
    return "; ".join(lines)


def _given(name: str, value: object) -> str:
    """What was given for the setting, unless it is a secret or may hold one."""
    secret = {each for each, default in walk(Settings()) if isinstance(default, SecretStr)}
    shown = name in field_names() and isinstance(value, str | int | float)
    return f" (got {value!r})" if shown and name not in secret and "key" not in name else ""


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
