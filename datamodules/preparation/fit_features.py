"""Statistics of the training rows -> the features, the input specification of networks, and the serving schema."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch

from datamodules.features import Categories, Dates, Features, Images, Numbers, Texts, WordPiece, as_tensor
from datamodules.features.dates import varying_parts
from datamodules.features.numbers import bin_edges, quantiles
from datamodules.features.texts import TOKEN, TOTAL, idf, vocabulary
from datamodules.preparation.clean import text_rules
from datamodules.preparation.settings import Settings
from datamodules.preparation.statistics import LEVEL, ROWS, Statistics
from datamodules.schema import Column, ImageSpec, InputSpec, Kind, TargetSpec, TextSpec

BINS = 48
"""Maximum number of bins of a number, for networks with piecewise-linear embeddings."""
KNOTS = 49
"""Number of quantiles of a number in the drift reference."""
TOKENS_KEPT = 200
"""Number of the most frequent tokens of a text in the drift reference."""


class FeatureFit:
    """Fits the features of `columns`, the inputs of the network; quantiles are taken of `sample`, training rows."""

    def __init__(
        self,
        columns: Sequence[Column],
        settings: Settings,
        statistics: Statistics,
        sample: pl.DataFrame,
        shapes: Mapping[str, tuple[int, int, int]],
    ) -> None:
        self.columns = columns
        self.settings = settings
        self.statistics = statistics
        self.sample = sample
        self.shapes = shapes

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [column.name for column in self.columns if column.kind in kinds]

    def features(self) -> tuple[Features, InputSpec]:
        """The fitted features and the specification of their output."""
        names, dates, texts, images = (self.of_kind(kind) for kind in ("number", "date", "text", "image"))
        categories, counts = self.of_kind("category"), self.statistics.levels
        parts = [varying_parts(as_tensor(self.sample[name])) for name in dates]
        calendar = Dates(dates, parts)
        values = {name: as_tensor(self.sample[name]) for name in (*names, *dates)}
        derived = calendar(values)
        number_names = [*names, *derived]
        missing = {name for name, number in self.statistics.numbers.items() if number.missing}
        for name, kept in zip(dates, parts, strict=True):
            # One indicator per date is enough; those of its other parts would be equal.
            missing |= {f"{name} {part}" for part in kept[:1] if name in missing}
        stacked = [(values | derived)[name] for name in number_names]
        rows = len(self.sample)
        numbers = Numbers(
            number_names,
            torch.stack(stacked, 1) if stacked else torch.zeros(rows, 0, dtype=torch.float64),
            self.settings.numbers,
            self.settings.number_rules(self.columns),
            indicated=[name for name in number_names if name in missing],
        )
        encoded = numbers(values | derived, rows).double().unbind(1)
        levels = [dict(counts[name].iter_rows()) for name in categories]
        codes = Categories(
            categories,
            levels,
            self.settings.missing,
            self.settings.text_rules(self.columns),
            self.settings.max_levels,
            self.settings.hash_buckets,
        )
        words, text_specs = self._texts(texts)
        features = Features(
            calendar,
            numbers,
            codes,
            words,
            Images(images, [self.shapes[name] for name in images]),
        )
        inputs = InputSpec(
            numbers=tuple(number_names),
            indicators=tuple(number_names[index] for index in numbers.indicated.tolist()),
            categories=tuple(zip(categories, codes.sizes, strict=True)),
            edges=tuple(bin_edges(column, BINS) for column in encoded[: len(number_names)]),
            texts=text_specs,
            images=tuple(self._image(name) for name in images),
        )
        return features, inputs

    def _texts(self, names: Sequence[str]) -> tuple[Texts, tuple[TextSpec, ...]]:
        settings, counts = self.settings, [self.statistics.tokens[name] for name in names]
        if settings.vocabulary is not None:
            tokens = settings.vocabulary.tokens
            specs = [TextSpec(name, tokens, tuple(idf(each, tokens))) for name, each in zip(names, counts, strict=True)]
            return WordPiece(names, settings.vocabulary), tuple(specs)
        vocabularies = [vocabulary(each, settings.max_tokens) for each in counts]
        specs = [
            TextSpec(name, tuple(tokens), tuple(weights))
            for name, (tokens, weights) in zip(names, vocabularies, strict=True)
        ]
        return Texts(names, [tokens for tokens, _ in vocabularies], settings.char_ngrams), tuple(specs)

    def _image(self, name: str) -> ImageSpec:
        count, total, squares = self.statistics.pixels[name].double().unbind(0)
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(1.0).sqrt()  # at least one shade of 255
        return ImageSpec(name, self.shapes[name], tuple((mean / 255).tolist()), tuple((deviation / 255).tolist()))

    def describe(self, target: TargetSpec, unused: Sequence[str]) -> dict[str, Any]:
        """The serving schema: "columns", in order, for checks and flags; the names of "unused" columns; "target"; and
        "reference", for drift.
        """
        columns: list[dict[str, Any]] = []
        reference: dict[str, dict[str, Any]] = {"numbers": {}, "categories": {}, "texts": {}}
        rows = self.statistics.rows
        for column in self.columns:
            name = column.name
            described: dict[str, Any] = {"name": name, "kind": column.kind}
            if column.kind in ("number", "date"):
                number = self.statistics.numbers[name]
                rules = self.settings.number_rules([column]).get(name, {})
                described |= {
                    "missing": number.missing > 0,
                    # A column may have values in other splits only.
                    "min": number.low if number.missing < rows else 0.0,
                    "max": number.high if number.missing < rows else 0.0,
                    "range": list(self.settings.ranges.get(name, (None, None))),
                    "replace": [list(rule) for rule in rules.items()],
                }
                if column.kind == "date":
                    described["day_first"] = column.day_first
                knots = _knots(self.sample[name].replace(rules))
                reference["numbers"][name] = {"knots": knots, "missing": number.missing / rows}
            elif column.kind == "category":
                counts = dict(self.statistics.levels[name].select(LEVEL, ROWS).iter_rows())
                absent = counts.pop("", 0)
                described |= {
                    "missing": absent > 0,
                    "levels": list(counts),
                    "replace": [list(rule) for rule in self.settings.text_rules([column]).get(name, {}).items()],
                }
                reference["categories"][name] = {"levels": counts, "missing": absent / rows}
            elif column.kind == "text":
                most_frequent = self.statistics.tokens[name].tokens.sort(TOTAL, TOKEN, descending=[True, False])
                reference["texts"][name] = {
                    "tokens": dict(most_frequent.select(TOKEN, TOTAL).head(TOKENS_KEPT).iter_rows())
                }
            elif column.kind == "image":
                described["shape"] = list(self.shapes[name])
            columns.append(described)
        described_target = {
            "name": target.name,
            "task": target.task,
            "classes": list(target.classes),
            "mean": target.mean,
            "scale": target.scale,
            "replace": text_rules(self.settings.target_rules),
        }
        return {"columns": columns, "unused": list(unused), "target": described_target, "reference": reference}


def _knots(cells: pl.Series) -> list[float]:
    present = cells.drop_nulls()
    values = as_tensor(present) if len(present) else torch.zeros(1, dtype=torch.float64)
    knots: list[float] = quantiles(values.unsqueeze(1), torch.linspace(0, 1, KNOTS, dtype=torch.float64))[0].tolist()
    return knots
