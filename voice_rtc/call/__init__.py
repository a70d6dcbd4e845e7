"""One call: listening, deciding, answering. Knows engines only by their Protocols."""
