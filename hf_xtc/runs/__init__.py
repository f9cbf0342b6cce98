"""One whole compression as a run that can be resumed, and what looks at its results."""
