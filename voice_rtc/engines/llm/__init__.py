"""Implementations of the LLM Protocols of `voice_rtc.engines.base`."""
