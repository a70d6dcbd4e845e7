"""What an SDP offer may look like before it reaches the parser.

An offer is a stranger's weapon: thousands of candidates freeze the parser, and a candidate names an
address to which the server would send packets. So offers are bounded, and remote candidates are
removed by default: browsers still connect, as peer-reflexive (RFC 8445 section 7.3.1.3).
"""

from __future__ import annotations

import re

from voice_rtc.config import LimitSettings
from voice_rtc.errors import BadOffer, NoAudioTrack

_BUNDLED = ("audio", "video", "application")
_CANDIDATE = re.compile(r"\s*a=(?:candidate|end-of-candidates)")


def check_offer(sdp: str, limits: LimitSettings) -> None:
    """Refuse an offer by its outer form. Raises BadOffer or NoAudioTrack."""
    if len(sdp.encode("utf-8", "replace")) > limits.sdp_bytes:
        raise BadOffer(f"the offer is larger than {limits.sdp_bytes} bytes", code="offer_too_large")
    if not sdp.startswith("v=0"):
        raise BadOffer("the body is not an SDP offer: it does not start with v=0")
    lines = sdp.splitlines()  # as aiortc's parser does: more than newlines end a line
    if len(lines) > limits.sdp_lines:
        raise BadOffer(f"the offer has more than {limits.sdp_lines} lines", code="offer_too_large")
    media = [line for line in lines if line.startswith("m=")]
    if len(media) > limits.sdp_media_lines:
        raise BadOffer(f"the offer has more than {limits.sdp_media_lines} m-lines")
    if sum(1 for line in lines if _CANDIDATE.match(line)) > limits.sdp_candidates:
        raise BadOffer(f"the offer has more than {limits.sdp_candidates} candidates")
    if not any(line.startswith("m=audio") for line in media):
        raise NoAudioTrack("the offer has no audio m-line")
    _check_bundle(lines)
    if not any(line.startswith("a=fingerprint:") for line in lines):
        raise BadOffer("the offer has no DTLS fingerprint")


def _check_bundle(lines: list[str]) -> None:
    """aiortc gives every bundled m-line the transport of the first, and does not look for it."""
    kinds: dict[str, str] = {}
    kind = mid = ""
    bundle: list[str] | None = None
    for line in [*lines, "m="]:
        if line.startswith("m="):
            if mid and mid in kinds:
                raise BadOffer("two m-lines have the same mid")
            if kind:
                kinds[mid] = kind
            kind, mid = line[2:].partition(" ")[0], ""
        elif kind and (line.startswith("a=mid:") or line == "a=mid"):
            mid = line[6:]
        elif line.startswith("a=group:BUNDLE") and not kind and bundle is None:
            bundle = line[14:].split()
    if bundle and kinds.get(bundle[0]) not in _BUNDLED:
        raise BadOffer("the BUNDLE group begins with a mid that no m-line has")
    if bundle and len(set(bundle)) < len(bundle):
        raise BadOffer("the BUNDLE group names a mid twice")


def strip_candidates(sdp: str) -> str:
    """The offer without ``a=candidate`` and ``a=end-of-candidates`` lines."""
    return "".join(f"{line}\r\n" for line in sdp.splitlines() if not _CANDIDATE.match(line))
