"""HTTP, wire protocols and the composition of the server."""
