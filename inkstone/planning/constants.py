"""Every number that planning turns on, named, in one place, each with where it comes from."""

from __future__ import annotations

# --- How loss falls with parameters and data -----------------------------------------------------
# L(N, D) = E + A / N^α + B / D^α, and the worth of repeated data and of surplus parameters:
# "Scaling Data-Constrained Language Models" (Muennighoff et al. 2023), equations 5-7 and the fit of
# its appendix A. Two of its numbers were measured again, in runs of minutes on a few megabytes,
# where a larger model that sees the text less often wins: a parameter is surplus beyond one for
# each unique token (there 1/20), and R*_D is 4 (there 15.39). Early stopping keeps the best model.
LOSS_FLOOR_NATS = 1.87
LOSS_PARAMETERS = 521.0  # A
LOSS_DATA = 1488.0  # B
LOSS_EXPONENT = 0.3527  # α = β
EQUAL_NATS = 0.01  # expected losses that differ by less count as equal
REPEATS_WORTH = 4.0  # R*_D: repetitions after which data has given 1 - 1/e of what it can
PARAMETERS_PER_TOKEN = 1.0  # of the unique text; beyond that a parameter is surplus
SURPLUS_WORTH = 5.31  # R*_N: the same for surplus parameters
EPOCHS_LIKE_NEW = 4.0  # up to here repetition is almost as good as new text (same paper, section 6)
EPOCHS_USEFUL = 16.0  # beyond here it buys next to nothing (same paper, figure 5)
EPOCHS_CORRUPTED = 40.0  # where each pass hides other words (Devlin et al. 2019, appendix A.2)

# --- How fast a step is --------------------------------------------------------------------------
# Share of the measured matmul peak that a step of width d reaches before it has been timed:
# PEAK_SHARE · d / (d + HALF_WIDTH). Only a first guess: candidates are then timed.
PEAK_SHARE = 0.6
HALF_WIDTH = 256
TIMED_SHAPES = 3  # candidates timed at most
TIMING_SECONDS = 2.5  # spent on each

# --- Shapes: (layers, width). Depth grows more slowly than width below 100M parameters -----------
SHAPES = (
    (2, 64), (3, 96), (4, 128), (4, 160), (4, 192), (5, 224), (5, 256), (6, 320), (6, 384),
    (8, 448), (8, 512), (10, 640), (12, 768), (16, 896), (16, 1024), (20, 1280), (24, 1536),
    (24, 2048), (32, 2560),
)  # fmt: skip
HEAD_DIM = 64  # 32 below NARROW, so that even a narrow model has several heads
NARROW = 256
FEW_KV_HEADS_ABOVE = 1024  # grouped-query attention from this width on (Ainslie et al. 2023)

# --- Vocabulary ----------------------------------------------------------------------------------
# V ≈ 2·√bytes, a power of two: Heaps' law (vocabulary grows like the square root of the text), set
# so that an average token is seen some hundreds of times.
VOCAB_PER_ROOT_BYTE = 2.0
VOCAB_MIN, VOCAB_MAX = 512, 32768
VOCAB_MAX_SHORT = 8192  # for budgets below SHORT_MINUTES on a CPU: the head would eat the time
SHORT_MINUTES = 60.0
VOCAB_PER_CHARACTER = 2  # at least this many tokens for each frequent character (Chinese)

# --- Steps ---------------------------------------------------------------------------------------
STEPS_WANTED = 1500  # short runs need many small steps more than few accurate ones
STEPS_MIN = 300  # even tiny data gets this many before repetition stops the run
TOKENS_PER_STEP_MIN, TOKENS_PER_STEP_MAX = 2048, 1 << 19
MICRO_TOKENS = {"cpu": 8192, "cuda": 65536}  # beyond this a larger micro-batch is not faster
ACTIVATION_BYTES = 40  # per token, layer and unit of width, in a training step
MEMORY_SHARE = 0.5  # of free memory, for one micro-batch's activations
SEQ_LEN_BY_TOKENS = ((2e8, 256), (2e9, 512), (float("inf"), 1024))

# --- Rates and cadence ---------------------------------------------------------------------------
MUON_LR, MUON_MATRIX_LR = 3e-3, 0.02  # Jordan et al. 2024 (modded-nanogpt)
ADAMW_LR = (0.003239, 0.0001395)  # lr = a - b·ln N: Kaplan et al. 2020, equation D.1
WARMUP_SHARE, WARMUP_MIN, WARMUP_MAX = 0.02, 10, 500
EVALUATIONS = 20  # during a run
STEPS_BETWEEN_EVALUATIONS = 10  # at least
EVALUATION_SHARE = 0.04  # of the time, for all of them together
SAVES = 6
SAVE_MINUTES_MIN, SAVE_MINUTES_MAX = 0.5, 10.0
PATIENCE = 5  # evaluations without improvement before a repeated corpus stops the run
DEFAULT_MINUTES = 10.0
