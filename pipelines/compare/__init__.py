"""The comparison of all methods under one protocol; each command here is a program of its own."""
