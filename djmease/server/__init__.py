"""The WebSocket server: one event loop, imported by its own process alone."""
