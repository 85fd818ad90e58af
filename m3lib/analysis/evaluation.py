"""Everything that is measured of one trained row: what `03_evaluate` shows and keeps in data/metrics/<row>.json."""

from dataclasses import dataclass

import pandas as pd

from m3lib.analysis import calibration, classes, factors, spaces
from m3lib.config import Variant
from m3lib.data.manifest import Prepared, hold_out
from m3lib.retrieval import metrics, ranking
from m3lib.retrieval.embeddings import Embeddings


@dataclass(frozen=True)
class Evaluation:
    """The measures of one row, all as fractions but in the tables, which are in percent.

    Of `summaries` and `class_means`, "random" is the score of the random ranking.
    """

    variant: Variant
    summaries: dict[str, dict[str, dict]]  # valid | test, then score: what `metrics.summarise` returns
    class_tables: dict[str, pd.DataFrame]  # score: `classes.class_table` of test
    class_means: dict[str, dict[str, float]]  # score, then class: MAP@all of its test queries
    likeness: dict[str, dict[str, float]]  # score, then attribute and factor: see `factors`
    spaces: pd.DataFrame  # `spaces.space_table` of test, and the advantage before training; empty without class spaces
    image_cosine: dict[str, float]  # see `spaces.image_cosine`
    calibration: dict[str, float]  # see `calibration.by_attribute`
    bytes: int  # of one image, by the row's score

    @property
    def bands(self) -> dict[str, dict[str, float]]:
        """Score, then band of class frequency: see `classes.band_means`."""
        own = self.class_tables[self.variant.score]
        return {score: classes.band_means(table) for score, table in self.class_tables.items()} | {
            "random": classes.band_means(own, "floor")
        }

    def to_dict(self, health: dict) -> dict:
        """Return the content of the metrics file; health: what the training wrote of the row's parts."""
        return {
            "variant": self.variant.name,
            "score": self.variant.score,
            **{split: {s: v for s, v in of.items() if s != "random"} for split, of in self.summaries.items()},
            "random": self.summaries["test"]["random"],
            "likeness": self.likeness,
            "classes": {score: means for score, means in self.class_means.items() if score != "random"},
            "bands": self.bands,
            "calibration": self.calibration,
            "bytes": self.bytes,
            "spaces": self.spaces.T.to_dict(),
            "image_cosine": self.image_cosine,
            "health": health,
        }


def evaluate(
    prepared: Prepared, variant: Variant, embeddings: Embeddings, untrained: Embeddings | None, seed: int
) -> Evaluation:
    """Measure a row by its embeddings of the valid and test images.

    untrained: those of some test images before the first step; needed if the row has class-specific embeddings.
    """
    scores = [*embeddings.scores, "random"]
    ranked = {
        split: {score: ranking.evaluate(prepared, split, score, embeddings, seed) for score in scores}
        for split in ("test", "valid")
    }
    by_class = ranked["test"]
    if prepared.relevance != "pair":  # then a query has no class
        by_class = {s: ranking.evaluate(prepared, "test", s, embeddings, seed, relevance="pair") for s in scores}
    trained = hold_out(prepared, variant.train.held_out)
    of_spaces = pd.DataFrame()
    if embeddings.classes is not None:
        of_spaces = spaces.space_table(prepared, "test", embeddings)
        of_spaces["advantage, untrained"] = spaces.space_table(prepared, "test", untrained)["advantage"]
    return Evaluation(
        variant,
        {split: {score: metrics.summarise(of) for score, of in by_score.items()} for split, by_score in ranked.items()},
        {score: classes.class_table(trained, "test", by_class[score]) for score in embeddings.scores},
        {score: classes.class_means(prepared, results) for score, results in by_class.items()},
        {score: factors.within_classes(prepared, "test", score, embeddings) for score in embeddings.scores},
        of_spaces,
        spaces.image_cosine(embeddings),
        calibration.by_attribute(prepared, "test", embeddings),
        embeddings.bytes_per_image(variant.score),
    )
