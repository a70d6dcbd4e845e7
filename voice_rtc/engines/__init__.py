"""Models and services behind async Protocols: see `voice_rtc.engines.base`."""
