"""libopus through ctypes: decode straight to 16 kHz mono, conceal holes, encode mono.

PyAV's decoder gives 48 kHz stereo frames and cannot conceal; decoding at 16 kHz costs a fifth of
decoding and resampling. The library is the system's, else the copy inside PyAV's wheel. API:
opus-codec.org/docs (opus.h); each call here takes tens of microseconds, so the GIL is kept: giving
it up and taking it back would cost more.

Not for several threads: one `Decoder` or `Encoder` belongs to one stream.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voice_rtc.core.audio import Samples
from voice_rtc.errors import MediaError

LONGEST_PACKET_SECONDS = 0.12
"""RFC 6716 section 3.4."""
Application = Literal["voip", "audio", "lowdelay"]

_APPLICATIONS: dict[Application, int] = {"voip": 2048, "audio": 2049, "lowdelay": 2051}
_SET_BITRATE, _SET_COMPLEXITY, _SET_INBAND_FEC = 4002, 4010, 4012
_SET_PACKET_LOSS, _SET_DTX, _RESET_STATE, _GET_LOOKAHEAD = 4014, 4016, 4028, 4027
_MOST_PACKET_BYTES = 1275
"""Of one frame, RFC 6716 section 3.4; we send one frame in a packet."""

_FRAME_SECONDS = (
    *(0.01, 0.02, 0.04, 0.06) * 3,  # SILK
    *(0.01, 0.02) * 2,  # hybrid
    *(0.0025, 0.005, 0.01, 0.02) * 4,  # CELT
)
"""Duration of a frame by its configuration, RFC 6716 section 3.1."""


class OpusError(MediaError):
    """libopus refused a packet or a setting, or it is not there."""

    code = "opus_error"


class Decoder:
    """One stream of packets to ``rate_hz`` mono."""

    def __init__(self, rate_hz: int) -> None:
        """Raises OpusError when there is no libopus or the rate is none of its own."""
        self._library = library()
        self._rate_hz = rate_hz
        self._most = int(LONGEST_PACKET_SECONDS * rate_hz)
        self._durations = tuple(int(each * rate_hz) for each in _FRAME_SECONDS)
        self._pcm = np.zeros(self._most, np.int16)
        self._views: dict[int, Samples] = {}
        """Its beginning, by length: packets of one stream are of few lengths (2.5 ms and its
        multiples up to 120 ms)."""
        error = ctypes.c_int()
        self._state = self._library.opus_decoder_create(rate_hz, 1, ctypes.byref(error))
        if not self._state:
            raise OpusError(f"no Opus decoder at {rate_hz} Hz: {_reason(error.value)}")
        # Made once: ctypes would make them anew for each packet.
        self._handle = ctypes.c_void_p(self._state)
        self._address = ctypes.c_void_p(self._pcm.ctypes.data)
        self._opus_decode = self._library.opus_decode

    def decode(self, packet: bytes) -> Samples:
        """The packet's samples. Raises OpusError for what is no Opus packet."""
        return self._decode(packet, self._most, 0)

    def duration(self, packet: bytes) -> int:
        """Samples that the packet holds, without decoding it. Raises OpusError."""
        if packet and not packet[0] & 3:  # one frame, as nearly all packets are
            return self._durations[packet[0] >> 3]
        found = self._library.opus_packet_get_nb_samples(packet, len(packet), self._rate_hz)
        return self._checked(found)

    def recover(self, packet: bytes, samples: int) -> Samples:
        """What was before ``packet``, by the in-band FEC that it carries, else by concealment.

        ``samples`` is a whole number of 2.5 ms. Raises OpusError.
        """
        return self._decode(packet, samples, 1)

    def conceal(self, samples: int) -> Samples:
        """Go on as it sounded, fading out. ``samples`` is a whole number of 2.5 ms."""
        return self._decode(None, samples, 0)

    def _decode(self, packet: bytes | None, samples: int, fec: int) -> Samples:
        length = 0 if packet is None else len(packet)
        wanted = min(samples, self._most)
        found = self._opus_decode(self._handle, packet, length, self._address, wanted, fec)
        if found < 0:
            self._checked(found)
        view = self._views.get(found)
        if view is None:
            view = self._views[found] = self._pcm[:found]
        return view.copy()

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OpusError(f"not an Opus packet: {_reason(result)}")
        return result

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_decoder_destroy(self._state)


class Encoder:
    """Mono samples at ``rate_hz`` to packets of 20 ms."""

    def __init__(
        self,
        rate_hz: int,
        *,
        application: Application = "lowdelay",
        bitrate: int = 56_000,
        complexity: int = 0,
        fec: bool = False,
        expected_loss_percent: int = 0,
    ) -> None:
        """``lowdelay`` is CELT alone, without FEC; ``voip`` may use SILK, which has it.

        Raises OpusError for settings that libopus does not take.
        """
        self._library = library()
        self.frame_samples = rate_hz // 50
        self._packet = ctypes.create_string_buffer(_MOST_PACKET_BYTES)
        self._pcm = np.zeros(self.frame_samples, np.int16)
        error = ctypes.c_int()
        self._state = self._library.opus_encoder_create(
            rate_hz, 1, _APPLICATIONS[application], ctypes.byref(error)
        )
        if not self._state:
            raise OpusError(f"no Opus encoder at {rate_hz} Hz: {_reason(error.value)}")
        settings = (
            (_SET_BITRATE, bitrate),
            (_SET_COMPLEXITY, complexity),
            (_SET_INBAND_FEC, int(fec)),
            (_SET_PACKET_LOSS, expected_loss_percent),
        )
        for request, value in settings:
            self._set(request, value)
        # Made once: ctypes would make them anew for each frame.
        self._handle = ctypes.c_void_p(self._state)
        self._address = ctypes.c_void_p(self._pcm.ctypes.data)
        self._opus_encode = self._library.opus_encode

    @property
    def lookahead(self) -> int:
        """Samples at its rate by which what is decoded is later than what was encoded."""
        found = ctypes.c_int()
        self._library.opus_encoder_ctl(self._state, _GET_LOOKAHEAD, ctypes.byref(found))
        return found.value

    def encode(self, samples: Samples) -> bytes:
        """The packet of `frame_samples` int16 samples. Raises OpusError for another number."""
        if len(samples) != self.frame_samples or samples.dtype != np.int16:
            raise OpusError(f"a frame has {self.frame_samples} int16 samples, not {len(samples)}")
        self._pcm[:] = samples  # to where libopus looks: asking an array for its address is slower
        size = self._opus_encode(
            self._handle, self._address, self.frame_samples, self._packet, _MOST_PACKET_BYTES
        )
        if size < 0:
            raise OpusError(f"a frame could not be encoded: {_reason(size)}")
        packet: bytes = self._packet[:size]  # type: ignore[assignment]  # of chars it is bytes
        return packet

    def reset(self) -> None:
        """Forget what was before: the next frame begins a new sound."""
        self._library.opus_encoder_ctl(self._state, _RESET_STATE)

    def _set(self, request: int, value: int) -> None:
        result = self._library.opus_encoder_ctl(self._state, request, ctypes.c_int(value))
        if result < 0:
            raise OpusError(f"the Opus encoder does not take {value}: {_reason(result)}")

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_encoder_destroy(self._state)


@cache
def library() -> Any:
    """libopus, loaded once. Raises OpusError when there is none."""
    tried = []
    for name in _candidates():
        try:
            return _declared(ctypes.PyDLL(name))
        except (OSError, AttributeError) as error:
            tried.append(f"{name}: {error}")
    raise OpusError(f"libopus cannot be loaded ({'; '.join(tried) or 'it was not found'})")


def version() -> str:
    """As libopus names itself. Raises OpusError."""
    text: bytes = library().opus_get_version_string()
    return text.decode()


def _candidates() -> Iterator[str]:
    if (found := ctypes.util.find_library("opus")) is not None:
        yield found
    spec = find_spec("av")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent.parent / "av.libs"
        yield from sorted(str(path) for path in bundled.glob("libopus*"))


def _declared(loaded: Any) -> Any:
    """With the types of opus.h; the default would cut pointers to 32 bits."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    loaded.opus_decoder_create.restype = pointer
    loaded.opus_decoder_create.argtypes = [integer, integer, pointer]
    loaded.opus_decode.argtypes = [pointer, ctypes.c_char_p, integer, pointer, integer, integer]
    loaded.opus_decoder_destroy.argtypes = [pointer]
    loaded.opus_packet_get_nb_samples.argtypes = [ctypes.c_char_p, integer, integer]
    loaded.opus_encoder_create.restype = pointer
    loaded.opus_encoder_create.argtypes = [integer, integer, integer, pointer]
    loaded.opus_encode.argtypes = [pointer, pointer, integer, pointer, integer]
    loaded.opus_encoder_ctl.argtypes = [pointer, integer]  # and what the request takes
    loaded.opus_encoder_destroy.argtypes = [pointer]
    loaded.opus_get_version_string.restype = ctypes.c_char_p
    loaded.opus_strerror.restype = ctypes.c_char_p
    loaded.opus_strerror.argtypes = [integer]
    return loaded


def _reason(code: int) -> str:
    text: bytes = library().opus_strerror(code)
    return text.decode()
