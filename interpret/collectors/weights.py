"""Every tensor of the state: digests, norms, sketches, filters, histograms."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interpret.collectors import Array, Collector, Record
from interpret.functional.statistics import count_sketch, histogram

NEAR_ZERO = 1e-3
DISTINCT_FILTERS = 8


class Weights(Collector):
    """Describes the checkpoint's tensors so exactly that two of them compare without the checkpoints."""

    name = "weights"

    def record(self) -> Record:
        """weights.json and weights.npz."""
        owner = {name: call.key for call in self.setting.trace.calls for name in call.tensors}
        entries: list[dict[str, Any]] = []
        columns: dict[str, list[Array]] = {
            name: [] for name in ("sketch", "histogram", "filter_digest", "filter_norm", "filter_zeros")
        }
        for name, tensor in self.setting.state.items():
            entry, rows = describe(name, owner.get(name), tensor)
            entries.append(entry)
            for column, row in rows.items():
                columns[column].append(row)
        if not entries:
            return Record({}, {}, {}, "the model has no state")
        arrays = {
            name: np.stack(rows) if rows[0].ndim and name in ("sketch", "histogram") else np.concatenate(rows)
            for name, rows in columns.items()
        }
        return Record({"weights": arrays}, {"weights.json": {"tensors": entries}}, {})


def describe(name: str, call: str | None, tensor: Tensor) -> tuple[dict[str, Any], dict[str, Array]]:
    """One entry of weights.json and the tensor's row of every array in weights.npz; FORMAT.md says what each is."""
    tensor = tensor.detach().cpu().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = list(tensor.shape)
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = np.atleast_1d(real.float().numpy())
    value_sha256 = hashlib.sha256(values.data).hexdigest()
    stored = value_sha256 if tensor.dtype == torch.float32 else hashlib.sha256(_bytes(tensor).data).hexdigest()
    filters = values.reshape(shape[0], -1) if len(shape) > 1 and values.size else np.empty((0, 0), np.float32)
    # nan wherever something is not finite: one pass instead of a mask over every entry
    total = float(np.dot(values.ravel(), values.ravel()))
    nonfinite = 0 if np.isfinite(total) else int(np.count_nonzero(~np.isfinite(values)))
    finite = values[np.isfinite(values)] if nonfinite else values
    norms = (
        np.sqrt(np.einsum("ij,ij->i", filters, filters, dtype=np.float64)) if nonfinite == 0 else _finite_norms(filters)
    )
    filter_zeros = np.asarray(filters.shape[1] - np.count_nonzero(filters, axis=1) if len(filters) else [], np.int64)
    zeros = int(filter_zeros.sum()) if len(filters) else int(values.size - np.count_nonzero(values))
    entry = {
        "name": name,
        "call": call,
        "shape": shape,
        "dtype": dtype,
        "sha256": hashlib.sha256(f"{dtype} {shape} {stored}".encode()).hexdigest(),
        "value_sha256": value_sha256,
        "entries": int(values.size),
        "filters": len(filters),
        **_moments(finite),
        "zeros": zeros,
        "nonfinite": nonfinite,
        "zero_filters": int(np.sum(filter_zeros == filters.shape[1])) if len(filters) else 0,
        "near_zero_filters": int(np.sum(norms <= NEAR_ZERO * np.median(norms))) if len(norms) else 0,
        "distinct": _distinct(filters),
    }
    rows: dict[str, Array] = {
        "sketch": count_sketch(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if nonfinite else values),
        "histogram": histogram(values),
        "filter_digest": _filter_digests(filters),
        "filter_norm": norms.astype(np.float32),
        "filter_zeros": filter_zeros,
    }
    return entry, rows


def _bytes(tensor: Tensor) -> Array:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _moments(finite: Array) -> dict[str, float | None]:
    names = ("norm", "mean", "standard_deviation", "minimum", "maximum")
    if not finite.size:
        return dict.fromkeys(names)
    flat = finite.ravel()
    mean = float(flat.mean(dtype=np.float64))
    norm = float(np.sqrt(np.einsum("i,i", flat, flat, dtype=np.float64)))
    # deviations from the mean as a float32, whose own error is taken out again: exact without a copy in float64
    near = np.float32(mean)
    apart = flat - near
    squares = float(np.einsum("i,i", apart, apart, dtype=np.float64))
    deviation = float(np.sqrt(max(squares / flat.size - (mean - float(near)) ** 2, 0.0)))
    return dict(zip(names, (norm, mean, deviation, float(flat.min()), float(flat.max())), strict=True))


def _finite_norms(filters: Array) -> Array:
    finite = np.nan_to_num(filters, nan=0.0, posinf=0.0, neginf=0.0)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", finite, finite, dtype=np.float64)))


def _filter_digests(filters: Array) -> Array:
    digests = b"".join(hashlib.sha256(row).digest()[:8] for row in filters)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _distinct(filters: Array) -> int:
    if not len(filters):
        return 0
    rows = filters[np.linspace(0, len(filters) - 1, min(DISTINCT_FILTERS, len(filters))).astype(int)]
    ordered = np.sort(rows, axis=1)
    return int((np.count_nonzero(np.diff(ordered, axis=1), axis=1) + 1).max())
