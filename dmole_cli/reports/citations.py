"""Stub."""
def citation_text(source):
    return "citation"
