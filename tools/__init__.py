"""Command-line programs beside the server: they speak HTTP and WebRTC to it, as any client does."""
