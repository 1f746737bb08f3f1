"""Guarded clients of the OpenAI SDK."""
