"""How the built-in stream is drawn from data that pip packages carry."""
