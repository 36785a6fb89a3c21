"""What is decided about the number of pods. Pure."""
