"""One file a model family. The folder is the registry: `registry.load("models", "gpt2")`.

A family is `KIND`, `Config`, `Model`, `PRESETS`, `MODEL_TYPES` and the two functions that map its
configuration to and from a Hugging Face `config.json`, with the table of its weights' names there.
"""
