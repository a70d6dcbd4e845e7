"""STT slots and who holds them."""
