# %% [markdown]
# # Late start and early stop
# A fault at a step changes nothing before it, and often nothing any more soon after it: a spike that comes back ends
# the matter. What does it gain to run only what changes?

# %%
import os
import tempfile
from pathlib import Path

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
TRIALS, SAMPLES = (int(os.environ.get(name, default)) for name, default in (("TRIALS", "200"), ("SAMPLES", "32")))


# %% [markdown]
# The same faults in four ways: a bit of a membrane potential flips in one step of every image. A campaign does both
# (`auto`) unless it is set otherwise. Without the runtime's optimisations all four must agree to the bit.


# %%
def results(route: str) -> list[onnxfi.Result]:
    """A campaign on membrane potentials by one of the routes."""
    campaign = onnxfi.Campaign(
        ROOT / "models" / "fashion_snn.onnx",
        ROOT / "models" / "fashion_test.npz",
        samples=SAMPLES,
        expose=True,
        single=True,
        trials=TRIALS,
        target="activations",
        include="/membrane/",
        persistence="permanent",
        route=route,
        provider="cpu",
        optimization="off",
    )
    with tempfile.TemporaryDirectory() as folder:
        results: list[onnxfi.Result] = []
        onnxfi.run(campaign, store=Path(folder) / "store.db", on_result=results.append)
        return results


# %%
found = {}
for name, route in (("neither", "full"), ("late start", "late-start"), ("early stop", "early-stop"), ("both", "auto")):
    trials = results(route)
    rate = TRIALS / sum(trial.time_s for trial in trials)
    found[name] = [(trial.outcome, trial.metrics) for trial in trials]
    print(f"{name}: {rate:.0f} faults per second")

# %%
same = all(one == found["neither"] for one in found.values())
print(f"all four ways find the same: {same}")
