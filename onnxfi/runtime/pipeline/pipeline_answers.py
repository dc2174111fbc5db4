"""The answers of a pipeline: the outputs of its answer, of every sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxfi.errors import DataError, EngineError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs, without_ones
from onnxfi.runtime.engine.ports import Array, Port, type_name
from onnxfi.runtime.pipeline.open_pipeline import OpenPipeline, Values
from onnxfi.runtime.pipeline.pipeline import Source


@dataclass(frozen=True)
class PipelineAnswers:
    """The golden outputs that count, and the answers that they are.

    Attributes
    ----------
    opened : OpenPipeline
        The pipeline.
    data : Data
        The data of the pipeline.
    values : tuple of mapping of Source to array
        The outputs of each sample.
    names : tuple of str
        The names of the outputs that are scored; none: all of numbers.
    """

    opened: OpenPipeline
    data: Data
    values: tuple[Values, ...] = field(repr=False)
    names: tuple[str, ...] = ()

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The outputs of the answer by name: that of the output, with its stage where several have it."""
        found: dict[Source, None] = dict.fromkeys(self.opened.answer)
        for values in self.values:
            found |= dict.fromkeys(source for source in values if source.stage in self.opened.whole)
        names = [source.output for source in found]
        return {s.output if names.count(s.output) == 1 else str(s): s for s in found}

    @property
    def output(self) -> str | None:
        """The name of the scored output, of several their names; None if all count."""
        return ", ".join(self.names) or None

    @cached_property
    def ports(self) -> tuple[Port, ...]:
        """The outputs of the answer, as golden outputs are."""
        return tuple(self._port(name, source) for name, source in self.sources.items())

    def _port(self, name: str, source: Source) -> Port:
        for values in self.values:
            if source not in values:
                raise DataError(f"stage {source.stage!r} gives {source.output!r} for some samples; give it for all")
        arrays = [values[source] for values in self.values]
        first, shapes = arrays[0], [array.shape[1:] for array in arrays]
        if len({len(shape) for shape in shapes}) > 1:
            return Port(name, type_name(first), None)
        rows = "N" if all(len(array) == 1 for array in arrays) else None
        dims = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
        return Port(name, type_name(first), (rows, *dims))

    @cached_property
    def run(self) -> tuple[Outputs, ...]:
        """The golden answers, one sample in each `Outputs`."""
        return tuple(self._outputs(sample, values) for sample, values in enumerate(self.values))

    def changed(self, sample: int, found: Values) -> Outputs:
        """Return the answer of a sample whose other outputs are these: the golden one where none of it is among them.

        EngineError if an output of the answer does not exist.
        """
        if not any(source in found for source in self.sources.values()):
            return self.run[sample]
        return self._outputs(sample, {**self.values[sample], **found})

    def _outputs(self, sample: int, values: Values) -> Outputs:
        if missing := next((s for s in self.sources.values() if s not in values), None):
            raise EngineError(f"stage {missing.stage!r} gave no output {missing.output!r}")
        arrays: dict[str, Array] = {name: values[source] for name, source in self.sources.items()}
        if self.names:
            arrays = {name: arrays[name] for name in self.names}
        else:
            arrays = {name: array for name, array in arrays.items() if array.dtype.kind not in "OSUT"}
        if not arrays:
            raise DataError("the answer of the pipeline is text; name a task that reads text with --task")
        if len(arrays) == 1:  # scores of classes [1, C, 1, 1] are [1, C], as of a model alone
            arrays = {name: without_ones(array) for name, array in arrays.items()}
        return Outputs(np.array([sample]), arrays)
