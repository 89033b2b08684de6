"""The embedded engine. Its own modules are what a user calls, ``LLM`` and ``AsyncLLM``; a folder for each of the parts
that these are made of.
"""
