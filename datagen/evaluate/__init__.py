"""`datagen eval`: a dataset measured against gold, masks and texts, with the metrics of the PAM paper's tables."""

from datagen.evaluate.report import evaluate

__all__ = ["evaluate"]
