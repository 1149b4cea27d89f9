"""Bench reports as text, Markdown, JSON and HTML, and their comparison."""
