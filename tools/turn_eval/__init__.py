"""The turn-taking evaluation: what callers do (`scripts`), done in calls, and scored."""
