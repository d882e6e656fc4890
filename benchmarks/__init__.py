"""Benchmarks, one script per question: a table for people on stderr, and one JSON object as the last line."""
