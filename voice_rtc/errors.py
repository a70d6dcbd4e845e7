"""Every error this project raises on purpose.

    VoiceRtcError
    ├── ConfigError                      a setting is wrong; the server does not start
    │   └── MediaPathUnusable            media.path is fast, and that does not work here
    ├── AdmissionError                   no new call now
    │   ├── QueueFull                    no free slot and no room in the waiting line
    │   ├── QueueTimeout                 waited too long for a slot
    │   ├── CallReplaced                 the waiting caller came back on a new connection
    │   ├── Draining                     the server is shutting down
    │   ├── RateLimited                  too many requests from one place
    │   ├── Overloaded                   latency or memory says: no more
    │   └── EnginesLoading               engines are not ready yet
    ├── SignalingError                   the client's request cannot be served
    │   ├── BadRequest                   malformed body, wrong content type, too large
    │   ├── BadOffer                     the SDP offer cannot be parsed or used
    │   ├── UnknownCall                  no call has this id
    │   ├── UnknownItem                  the conversation has no item with this id
    │   └── Unauthorized                 credentials are missing or wrong
    ├── MediaError
    │   ├── NoAudioTrack                 the offer carries no usable audio
    │   ├── IceFailed                    no connection before the deadline
    │   └── MediaStalled                 packets stopped coming
    ├── LeaseLost                        the call no longer holds its STT slot
    ├── EngineError                      a model or a service behind an engine failed
    │   ├── EngineUnavailable            it cannot be loaded or reached at all
    │   ├── EngineTimeout                it did not answer within its deadline
    │   ├── EngineCrashed                its process or thread died
    │   ├── OutOfGpuMemory
    │   └── LlmError                     the LLM service answered with an error
    └── StateError                       a call of ours in the wrong state: a bug

Each carries ``code`` (stable, for clients), ``http_status`` and ``retryable``. `CallEnded` is not
an error: it is how a call's TaskGroup is asked to finish.
"""

from __future__ import annotations


class VoiceRtcError(Exception):
    """Root of the tree. ``str(error)`` is a sentence that a client may be shown."""

    code: str = "internal_error"
    http_status: int = 500
    retryable: bool = False
    retry_after_seconds: int | None = None
    param: str | None = None
    """Path of the field that is wrong, e.g. ``session.audio.output.speed``."""

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])
        if code is not None:
            self.code = code


class ConfigError(VoiceRtcError):
    """A setting is wrong."""

    code = "bad_config"


class MediaPathUnusable(ConfigError):
    """The fast media path is demanded and does not work on this machine."""

    code = "media_path_unusable"


class AdmissionError(VoiceRtcError):
    """No new call can be admitted now."""

    code = "not_admitted"
    http_status = 503
    retryable = True
    retry_after_seconds: int | None = 5


class QueueFull(AdmissionError):
    """All speech recognition slots are taken. Try again in a moment."""

    code = "pool_full"

    def __init__(self, message: str = "", *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


class QueueTimeout(AdmissionError):
    """The call waited too long for a free slot."""

    code = "queue_timeout"


class CallReplaced(AdmissionError):
    """The caller came back on a new connection, which took over the place in the line."""

    code = "call_replaced"
    http_status = 409
    retryable = False
    retry_after_seconds = None


class Draining(AdmissionError):
    """The server is shutting down and takes no new calls."""

    code = "draining"
    retry_after_seconds = 30


class RateLimited(AdmissionError):
    """Too many requests. Slow down."""

    code = "rate_limited"
    http_status = 429


class Overloaded(AdmissionError):
    """The server is too busy for another call."""

    code = "overloaded"


class NoMediaPort(AdmissionError):
    """No UDP port of the server's range is free for another call."""

    code = "no_media_port"


class EnginesLoading(AdmissionError):
    """The speech engines are still loading. Try again in a moment."""

    code = "engines_loading"
    retry_after_seconds = 2


class SignalingError(VoiceRtcError):
    """The request cannot be served."""

    code = "bad_request"
    http_status = 400


class BadRequest(SignalingError):
    """The request is malformed."""

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        status: int = 400,
        param: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.http_status = status
        self.param = param


class BadOffer(SignalingError):
    """The SDP offer cannot be used."""

    code = "bad_offer"


class UnknownCall(SignalingError):
    """No call has this id."""

    code = "call_not_found"
    http_status = 404


class UnknownItem(SignalingError):
    """The conversation has no item with this id."""

    code = "item_not_found"
    http_status = 404


class Unauthorized(SignalingError):
    """Credentials are missing or wrong."""

    code = "unauthorized"
    http_status = 401


class MediaError(VoiceRtcError):
    """The media connection cannot be used."""

    code = "media_error"


class NoAudioTrack(MediaError):
    """The offer has no audio that can be received."""

    code = "no_audio_track"
    http_status = 400


class IceFailed(MediaError):
    """The media connection was not established in time."""

    code = "ice_failed"


class MediaStalled(MediaError):
    """No media packets arrived for too long."""

    code = "media_stalled"


class LeaseLost(VoiceRtcError):
    """The call no longer holds its speech recognition slot."""

    code = "lease_lost"
    retryable = True


class EngineError(VoiceRtcError):
    """An engine failed."""

    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    """The engine cannot be loaded or reached."""

    code = "engine_unavailable"
    http_status = 503


class EngineTimeout(EngineError):
    """The engine did not answer within its deadline."""

    code = "engine_timeout"
    retryable = True


class EngineCrashed(EngineError):
    """The engine died."""

    code = "engine_crashed"
    retryable = True


class OutOfGpuMemory(EngineError):
    """The GPU has no memory left for the engine."""

    code = "out_of_gpu_memory"


class LlmError(EngineError):
    """The language model service answered with an error.

    ``code`` is one of ``llm_unauthorized``, ``llm_rate_limited``, ``llm_server_error``,
    ``llm_unreachable``, ``llm_timeout``, ``llm_stream_cut``, ``llm_bad_request``, ``llm_empty``,
    ``llm_bad_tool_call``, ``llm_context_exceeded``.
    """

    code = "llm_error"
    wait_seconds: float | None = None
    """What the service asked to wait before another attempt; None: it did not say."""


class StateError(VoiceRtcError):
    """Something was asked for in a state that does not allow it."""

    code = "bad_state"


class CallEnded(Exception):
    """Raised inside a call's TaskGroup to end the call. ``reason`` is a stable word for clients."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
