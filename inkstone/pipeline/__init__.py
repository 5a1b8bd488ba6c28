"""The main job: gather → clean → tokenizer → tokens → plan → train → evaluate → report.

Each stage's result is kept under the hash of what it depends on and reused when that is unchanged.
`train` starts a run in a new folder, `resume` continues one that was interrupted.
"""

from inkstone.pipeline.examples_use import predict_file, score_file
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.run import TrainingInterrupted, resume, train

__all__ = ["Observer", "TrainingInterrupted", "predict_file", "resume", "score_file", "train"]
