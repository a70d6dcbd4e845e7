"""What an SDP offer may look like before it reaches the parser.

An offer is a stranger's weapon: thousands of candidates freeze the parser, and a candidate names an
address to which the server would send packets. So offers are bounded, and remote candidates are
removed by default: browsers still connect, as peer-reflexive (RFC 8445 section 7.3.1.3).
"""

from __future__ import annotations

import re

from voice_rtc.config import LimitSettings
from voice_rtc.errors import BadOffer, NoAudioTrack

_CANDIDATE = re.compile(r"\s*a=(?:candidate|end-of-candidates)")


def check_offer(sdp: str, limits: LimitSettings) -> None:
    """Refuse an offer by its outer form. Raises BadOffer or NoAudioTrack."""
    if len(sdp.encode("utf-8", "replace")) > limits.sdp_bytes:
        raise BadOffer(f"the offer is larger than {limits.sdp_bytes} bytes", code="offer_too_large")
    if not sdp.startswith("v=0"):
        raise BadOffer("the body is not an SDP offer: it does not start with v=0")
    lines = sdp.splitlines()  # as aiortc's parser does: more than newlines end a line
    media = [line for line in lines if line.startswith("m=")]
    if len(media) > limits.sdp_media_lines:
        raise BadOffer(f"the offer has more than {limits.sdp_media_lines} m-lines")
    if sum(1 for line in lines if _CANDIDATE.match(line)) > limits.sdp_candidates:
        raise BadOffer(f"the offer has more than {limits.sdp_candidates} candidates")
    if not any(line.startswith("m=audio") for line in media):
        raise NoAudioTrack("the offer has no audio m-line")
    if not any(line.startswith("a=fingerprint:") for line in lines):
        raise BadOffer("the offer has no DTLS fingerprint")


def strip_candidates(sdp: str) -> str:
    """The offer without ``a=candidate`` and ``a=end-of-candidates`` lines."""
    return "".join(f"{line}\r\n" for line in sdp.splitlines() if not _CANDIDATE.match(line))
