"""A WebRTC media server for spoken conversation with an AI."""

__version__ = "0.1.0"
