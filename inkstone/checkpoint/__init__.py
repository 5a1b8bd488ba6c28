"""A checkpoint is a Hugging Face folder that appears all at once, and that nothing in it can run.

`atomic_folder` writes one, `verify_folder` checks its hashes, `save_model` and `load_model` fill
and open it, `read_tensors` and `write_tensors` are the one way to tensors on disk.
"""

from inkstone.checkpoint.model import load_model, save_model
from inkstone.checkpoint.tensors import read_tensors, write_tensors
from inkstone.files import atomic_folder, recover, verify_folder

__all__ = [
    "atomic_folder",
    "load_model",
    "read_tensors",
    "recover",
    "save_model",
    "verify_folder",
    "write_tensors",
]
