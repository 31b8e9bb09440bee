"""Offer the library on the command line: one module a group of commands, each command a thin call."""
