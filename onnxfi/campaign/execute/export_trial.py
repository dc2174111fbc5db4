"""Exporting a trial of a store: the faulty model that it ran."""

from __future__ import annotations

from pathlib import Path

from onnxfi.campaign.execute.instrumented_model import bake_trial
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.open_model import reopen
from onnxfi.campaign.results.store import Store
from onnxfi.errors import StoreError
from onnxfi.faults.faultlist import LineReader
from onnxfi.graph.write.faulty_copy import FileEdits, find_edits, look_up_words, write_copy
from onnxfi.runtime.data.untrusted_yaml import parse_yaml


def export_trial(store: str | Path, trial: int, out: str | Path) -> None:
    """Write the faulty model of one trial; StoreError if the model is another one by now."""
    with Store.open(store) as opened:
        header = opened.header()
        lines = opened.trial(trial)["lines"].splitlines()
        said = parse_yaml(opened.get("spec").encode(), str(store), "campaign", StoreError)
    model = reopen(header.file, said | {"time_axis": None})  # the counts are scored, and no part of the model
    if model.digest != header.model:
        raise StoreError(f"{store} is of the model {header.model}, {header.file} is {model.digest} now")
    fault_targets = FaultTargets.from_header(model, header)
    reader = LineReader(header, fault_targets.targets, str(store), lambda: fault_targets.listed(header))
    [(_, faults)] = reader.trials(enumerate(lines, 1))
    here = fault_targets.in_activations(faults)
    if here.any():
        bake_trial(fault_targets, faults.pick(here), faults.pick(~here), Path(out))
        return
    write_copy(
        model, find_edits(model, faults, look_up_words(model, faults)[1]) if len(faults) else FileEdits(), Path(out)
    )
