"""Where a model comes from, and bringing it here: a directory, a repository of the Hugging Face hub, an S3 prefix.

The supervisor uses `source` to tell which, and starts `python -m container.model_source` for the two that must be
downloaded. Knows files, the two services and their errors. Must not know the engine, HTTP routes or the environment.
"""
