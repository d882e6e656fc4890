"""Benchmarks: one script per question. Each prints a table for people on stderr and one JSON object as its last line."""
