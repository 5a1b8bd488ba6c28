"""From a prompt to text: one code path behind the library, the command line and chat.

`Generator` decodes, `SamplingConfig` says how, `Conversation` keeps a dialogue in the context.
"""

from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.sampling import TokenScore
from inkstone.inference.stream import Chunk, Generation

__all__ = ["Chunk", "Conversation", "Generation", "Generator", "SamplingConfig", "TokenScore"]
