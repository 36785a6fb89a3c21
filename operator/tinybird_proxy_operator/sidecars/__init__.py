"""What is decided about sidecars in other people's pods. Pure."""
