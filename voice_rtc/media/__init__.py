"""The aiortc edge: peer connections, audio in, audio out, the data channel."""
