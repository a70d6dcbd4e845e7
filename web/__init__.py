"""The call page: plain HTML, CSS and ES modules."""
