"""Assessments, checks, comparisons and plans on what a program holds: models and samples in memory as well as files.

As in run.py, what is given in memory is kept in files: while it is used, and for as long as an answer that names them
exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.api.run import answer_folder, kept_campaign, kept_data, kept_model
from onnxfi.numbers import named_whole, seconds

if TYPE_CHECKING:
    from onnxfi.analysis.assess import Assessment, OnPhase
    from onnxfi.analysis.environment import Environment
    from onnxfi.campaign.gate.budget import Budget
    from onnxfi.campaign.gate.check import CheckResult
    from onnxfi.campaign.plan.plan import Plan
    from onnxfi.campaign.report.compare import Comparison
    from onnxfi.campaign.run.runner import Running
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.graph.model.loading import ModelLike


def assess(
    model: ModelLike,
    data: Any = None,
    *,
    time_s: float | str = 300.0,
    environment: Environment | str | Path | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    on_phase: OnPhase | None = None,
    **fields: Any,
) -> Assessment:
    """Assess in a given time what breaks a network under bit flips in its weights, where, and how sure that is.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    data : path, arrays, dataset, or None
        Labelled data, as `open_data` takes it; synthetic inputs without.
    time_s : float or str
        Seconds that it takes, or a text as ``5m``.
    environment : Environment, str or Path, optional
        Memories, rates and mission, from which FIT is computed; or the file that describes them.
    out : str or Path, optional
        The folder of the stores; by default MODEL-stem.assess in the current folder.
    workers : int
        Worker processes, as in `run`.
    on_phase : callable, optional
        Called with a line of text as each part begins.
    **fields
        Fields of `Campaign`: ``samples``, ``include``, ``provider``, ….

    Returns
    -------
    Assessment
        The verdict in words, and the census, ranking and sweep that it rests on.

    Raises
    ------
    InputError
        For a time in which no trial can begin, with the least that would do, and as `run`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> with np.load("models/fashion_test.npz") as archive, tempfile.TemporaryDirectory() as folder:
    ...     images = {name: array[:20] for name, array in archive.items()}
    ...     found = assess(Path("models/fashion_cnn.onnx").read_bytes(), images, time_s=8, out=folder)
    >>> found.ranking is not None
    True
    """
    from onnxfi.analysis.assess import assess as assess_files
    from onnxfi.analysis.environment import load_environment
    from onnxfi.graph.write.output_file import make_folder

    folder = Path(out) if out is not None else Path(f"{_stem(model)}.assess")
    if isinstance(environment, str | Path):
        environment = load_environment(environment)
    if not _named(model) or not (data is None or isinstance(data, str | Path)):
        make_folder(folder)
    file = kept_model(model, folder / "given")
    samples = kept_data(data, file, folder / "given", fields)
    return assess_files(
        file, samples, out=folder, time_s=seconds(time_s), environment=environment,
        workers=named_whole("workers", workers), on_phase=on_phase, **fields,
    )  # fmt: skip


def check(
    model: ModelLike,
    budget: Budget | str | Path,
    data: Any = None,
    *,
    baseline: str | Path | None = None,
    store: str | Path | None = None,
    workers: int = 0,
    allow_code: bool = False,
    **fields: Any,
) -> CheckResult:
    """Run the campaign of a budget on a model, and compare the measurements with each limit.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    budget : Budget, str or Path
        The campaign and the limits, or the file that holds them.
    data : path, arrays, dataset, or None
        Labelled data in place of the budget's.
    baseline : str or Path, optional
        A store, or the JSON of a check, for limits on changes.
    store : str or Path, optional
        The store of the trials, where a check whose time ran out goes on; a temporary one by default.
    workers : int
        Worker processes, as in `run`.
    allow_code : bool
        Let the budget's file name code that is run.
    **fields
        Fields of the budget's `Campaign` that get other values.

    Returns
    -------
    CheckResult
        The verdict, and a finding for each limit.

    Raises
    ------
    InputError
        For limits that the model or its data cannot give, and for a baseline of another campaign, data set or network.

    Examples
    --------
    >>> found = check("models/fashion_cnn.onnx", "examples/ci/budget.yaml", samples=20, repeat=2)
    >>> found.findings[0].limit.rate
    'top1'
    """
    from onnxfi.campaign.gate.budget import Budget, load_budget
    from onnxfi.campaign.gate.check import check as check_files
    from onnxfi.graph.write.scratch_folder import scratch_folder

    given, workers = {**fields, **({} if data is None else {"data": data})}, named_whole("workers", workers)
    wanted = budget if isinstance(budget, Budget) else load_budget(budget, allow_code=allow_code, instead=given)
    with scratch_folder() as folder:
        place = folder / "given" if store is None else Path(store)
        file = kept_model(model, place)
        if data is not None:
            given["data"] = kept_data(data, file, place, fields)
        return check_files(file, wanted.with_fields(given), baseline=baseline, store=store, workers=workers)


def compare(
    models: Sequence[ModelLike] | Mapping[str, ModelLike],
    data: Any = None,
    stores: str | Path | None = None,
    *,
    workers: int = 0,
    on_start: Callable[[Running], None] | None = None,
    **fields: Any,
) -> Comparison:
    """Run one sweep on several versions of a network, each against its own golden run.

    Parameters
    ----------
    models : sequence of models, or mapping of str to model
        Two models or more: paths, bytes, onnx.ModelProto or Model; a mapping names those in memory.
    data : path, arrays, dataset, Campaign, or None
        The samples, as `open_data` takes them; or the sweep as a campaign, whose model is replaced by each of `models`.
    stores : str or Path, optional
        The folder of the stores, one for each model; a temporary one for as long as the comparison is, by default.
    workers : int
        Worker processes, as in `run`.
    on_start : callable, optional
        Called with each running campaign before its trials.
    **fields
        The fields of `Campaign`: ``ber``, ``repeat``, ….

    Returns
    -------
    Comparison
        The versions with their reports, on the same samples.

    Raises
    ------
    SpecError
        For a campaign that is not a sweep, or two models of one name.
    DataError
        For models that ran on different numbers of samples.

    Examples
    --------
    >>> versions = {"cnn": "models/fashion_cnn.onnx", "gru": Path("models/fashion_gru.onnx").read_bytes()}
    >>> found = compare(versions, "models/fashion_test.npz", ber=1e-4, repeat=2, samples=50)
    >>> [round(found.golden(version), 2) for version in found.versions]
    [0.88, 0.86]
    """
    from onnxfi.campaign.report.compare import compare as compare_files
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.errors import SpecError
    from onnxfi.graph.write.output_file import make_folder

    if isinstance(data, Campaign) and fields:
        raise SpecError(f"the campaign has its {next(iter(fields))} already; give it to Campaign, or data here")
    named = models if isinstance(models, Mapping) else {f"model{k}": model for k, model in enumerate(models, 1)}
    if stores is not None:
        make_folder(Path(stores))
    with answer_folder(stores) as (folder, forget):
        files = [kept_model(model, folder / name) for name, model in named.items()]
        if not isinstance(data, Campaign):
            samples = kept_data(data, files[0], folder / "given", fields) if files else None
            data = Campaign(model="", data=samples, **fields)
        found = compare_files(files, data, folder, workers=named_whole("workers", workers), on_start=on_start)
    forget(found)
    return found


def plan(model: ModelLike | Campaign, data: Any = None, **fields: Any) -> tuple[Plan, float | None]:
    """Plan the trials of a campaign without running them.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto, Model or Campaign
        The model, or a campaign as a value, which then has `data` and `fields` already.
    data : path, arrays, dataset, or None
        The samples, as `open_data` takes them.
    **fields
        The fields of `Campaign`: ``ber``, ``repeat``, ``single``, ….

    Returns
    -------
    plan : Plan
        The trials; its length is their number.
    golden_s : float or None
        Time of the golden run in seconds, if there is data.

    Raises
    ------
    SpecError
        For a design that the model cannot have.

    Examples
    --------
    >>> made, seconds = plan("models/fashion_cnn.onnx", single=True, margin=0.05)
    >>> len(made), seconds
    (664, None)
    """
    from onnxfi.campaign.run.runner import plan as plan_campaign

    with answer_folder() as (folder, forget):
        made, golden_s = plan_campaign(kept_campaign(model, data, folder / "given", fields))
    forget(made)
    return made, golden_s


def _named(model: Any) -> bool:
    """Return whether a model is a file, also an open one."""
    return isinstance(model, str | Path) or getattr(model, "path", None) is not None


def _stem(model: Any) -> str:
    return Path(getattr(model, "path", None) or (model if isinstance(model, str | Path) else "model")).stem
